"""Builds the wheel, installs it into an empty environment, and checks that it works there without the source tree.

Run by `make check`; not a pytest file, because it needs minutes and a package index.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SMOKE = """
import pathlib, time
started = time.perf_counter()
import regtune
assert time.perf_counter() - started < 0.3, "import regtune must cost nothing"
assert "site-packages" in regtune.__file__, regtune.__file__
import torch, transformers
config = transformers.BertConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=30
)
model = regtune.add_registers(transformers.BertForQuestionAnswering(config), regtune.RegisterConfig(num_registers=3))
assert model(torch.arange(10).unsqueeze(0)).start_logits.shape == (1, 10)
model.save_pretrained("model")
again = regtune.from_pretrained(transformers.AutoModelForQuestionAnswering, "model")
assert regtune.num_registers(again) == 3
questions = regtune.load_questions(["embedded:train", "embedded:dev"])
assert len(questions.items) >= 500, "the embedded questions are in the wheel"
from regtune.errors import MissingExtraError
for name in regtune.__all__:
    try:
        getattr(regtune, name)
    except MissingExtraError as error:
        assert name == "RegisterLoraConfig" and "regtune[peft]" in str(error), name
assert (pathlib.Path(regtune.__file__).parent / "py.typed").is_file()
print("the wheel works:", regtune.__version__, len(questions.items), "embedded questions")
"""


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command and stops with its output if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "", flush=True)


def main() -> None:
    """Build, install, smoke-test."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
        wheel = next(folder.glob("*.whl"))
        venv.create(folder / "empty", with_pip=True)
        python = folder / "empty" / "bin" / "python"
        constraints = ("--quiet", "--constraint", ROOT / "constraints.txt")
        run(python, "-m", "pip", "install", *constraints, "torch==2.13.0")
        run(python, "-m", "pip", "install", *constraints, wheel)
        run(python, "-W", "error::DeprecationWarning:regtune", "-c", SMOKE, cwd=folder)
        run(folder / "empty" / "bin" / "regtune", "--version", cwd=folder)
        run(folder / "empty" / "bin" / "regtune", "--help", cwd=folder)


if __name__ == "__main__":
    main()
