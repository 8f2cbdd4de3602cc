"""The doctor on architectures that no family describes: what it finds, proves, writes and refuses."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import tiny_images
import tiny_seq2seq
from command_line import invoke
from families.conformance import HEADS, heads_of, model_of
from families.unlisted import tiny_model
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families._family import Family
from regtune.registers.cache_names import CACHE
from regtune.registers.hooks import RegisterHooks
from regtune.registers.surgery import add_registers, backbone_of, find_registers, max_text_length
from regtune.registry import FAMILIES, load_plugin
from regtune.testing import search
from regtune.testing.doctor import examine
from regtune.testing.evidence import read_parts
from regtune.testing.invariants import Finding
from regtune.testing.search import search_family
from regtune.testing.subject import make_inputs
from tiny_tokenizer import save_tiny, tiny_tokenizer

TWO = RegisterConfig(num_registers=2)
THREE = ("--registers.num-registers", "3")
NOT_READ = {
    *("name", "model_types", "inputs", "encoder", "decoder", "unsupported", "refusal", "mixing"),
    *("relevance", "attention_by", "single_precision"),
}
"""What is given beforehand, what is tried later, and what only a person knows."""
OTHERWISE = {
    "BART": {"leading", "lm_head", "head_bias"},  # of a model with a decoder the way to the words isn't read
    "BERT": {"lm_head"},  # `cls`, which only calls `cls.predictions`
    "CLIP (vision)": {"final_norm"},  # it is called on [CLS] alone
    "DINOv2": {"gated", "feed_forward_in", "feed_forward_out"},  # the largest models have gated units
    "Marian": {"lm_head", "head_bias"},
    "NomicBERT": {"lm_head"},
    "T5": {"feed_forward_in", "lm_head", "head_scaled"},  # its name depends on the version
}
"""Where a family's own file says something else than what is read, rightly."""
LISTED = (
    *(
        "BART",
        "BERT",
        "CLIP (vision)",
        "DINOv2",
        "DeiT",
        "DistilBERT",
        "ELECTRA",
        "EuroBERT",
        "GPT-2",
        "GPT-NeoX",
        "Gemma2",
    ),
    *(
        "Llama",
        "MPNet",
        "Marian",
        "ModernBERT",
        "NomicBERT",
        "Phi-3",
        "Qwen3",
        "RoBERTa",
        "SigLIP (vision)",
        "T5",
        "ViT",
    ),
)


@pytest.fixture(autouse=True)
def forget_families(monkeypatch):
    """Families that a test registers are forgotten afterwards, and their files run again."""
    monkeypatch.setattr(FAMILIES, "_added", dict(FAMILIES._added))
    for name in [name for name in sys.modules if name.startswith("regtune_plugin_")]:
        monkeypatch.delitem(sys.modules, name)


def save(folder: Path, kind: str) -> Path:
    """A checkpoint of an unlisted architecture, with a tokenizer."""
    tokenizer = tiny_tokenizer()
    tiny_model(kind).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", LISTED)
def test_what_is_read_of_a_listed_architecture_is_what_its_file_says(name):
    family, heads = FAMILIES.get(name), heads_of(name)
    head = next(one for one in ("masked LM", "causal LM", "text to text", "image classification") if one in heads)
    model = model_of(name, HEADS[head])
    parts = read_parts(model, backbone_of(model), make_inputs(model)[0])
    told = {field.name for field in dataclasses.fields(Family)} - NOT_READ - OTHERWISE.get(name, set())
    defaults = {field.name: field.default for field in dataclasses.fields(Family) if field.name in told}
    plain = dataclasses.replace(family, **defaults | {"positions": "absolute"})

    def stated(one: Family) -> dict:
        return {key: sorted(getattr(one, key)) if key == "norms" else getattr(one, key) for key in told}

    found = [stated(candidate) for candidate in search._candidates(plain, parts)]
    assert stated(family) in found, {key: value for key, value in found[0].items() if value != stated(family)[key]}


@pytest.mark.parametrize(
    ("kind", "task", "positions"),
    [("ernie", "mlm", "absolute"), pytest.param("falcon", "lm", "rotary", marks=pytest.mark.slow)],
)
def test_an_unlisted_architecture_is_found_written_loaded_proved_and_trained(
    kind, task, positions, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / kind, kind)
    code, out, err = invoke(capsys, ("doctor", kind, *THREE, "--write", "mine.py"))
    assert code == 0, out + err
    assert "registers are safe on this model" in out
    assert f"regtune --plugin mine.py doctor {kind}" in out
    assert "position_ids moved by 3" in out
    assert kind not in {one for name in FAMILIES for one in FAMILIES.get(name).model_types}, "nothing stays registered"
    code, again, err = invoke(capsys, ("--plugin", "mine.py", "doctor", kind, *THREE))
    assert code == 0, again + err
    assert "all that the family" in again
    assert "No family describes" not in again
    family = next(FAMILIES.get(name) for name in FAMILIES if kind in FAMILIES.get(name).model_types)
    assert (family.positions, family.causal) == (positions, kind == "falcon")
    assert set(family.relevance) <= {"attnlrp", "cp-lrp"}
    Path("texts.txt").write_text("the cat lives in the house.\n" * 6)
    sets = ("--data.train", "texts.txt", "--data.eval", "texts.txt", "--data.max-length", "24", *THREE)
    quick = ("--training.epochs", "1", "--training.batch-size", "6", "--training.precision", "float32")
    blocks = ("--settings.stride", "8") if task == "lm" else ()
    command = ("--plugin", "mine.py", "train", "--task", task, "--model", kind, "--output-dir", "run")
    code, out, err = invoke(capsys, (*command, *sets, *quick, *blocks))
    assert code == 0, out + err
    assert Path("run/run.json").is_file()


def test_an_architecture_in_which_nothing_attends_gets_a_sentence(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40, "state_size": 4}
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(tmp_path / "mamba")
    with pytest.raises(UnsupportedModelError, match=r"no module of its layers has keys and values \(a MambaBlock has"):
        examine(str(tmp_path / "mamba"), write=tmp_path / "mine.py")
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fnet", "takes no attention_mask"),
        ("opt", "calls parts of its OPTModel, and never that"),
        ("xlnet", r"layers read states of shape|no module of its layers has keys"),
        ("convbert", r"another token behind its attention_mask changes the states of the text by \d"),
    ],
)
def test_what_registers_can_t_join_is_refused_with_what_was_seen(kind, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        search_family(tiny_model(kind), make_inputs, TWO)


def leave_them_in(self, module, args, kwargs, output):
    return None


def test_an_invariant_that_fails_is_named_with_the_best_family(tmp_path, monkeypatch, capsys):
    save(tmp_path / "ernie", "ernie")
    monkeypatch.setattr(search, "_MOST", 2)
    monkeypatch.setattr(RegisterHooks, "leave", leave_them_in)
    code, out, _ = invoke(capsys, ("doctor", tmp_path / "ernie", *THREE, "--write", tmp_path / "mine.py"))
    assert code == 1
    assert "FAILED  3 staying inside" in out
    written = (tmp_path / "mine.py").read_text()
    assert "did NOT hold" in written
    compile(written, "mine.py", "exec")


def test_the_model_is_left_as_it_was():
    model = tiny_model("ernie")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search_family(model, make_inputs, TWO)
    assert find_registers(model) is None
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    assert not [hook for hook in hooks if "regtune" in str(getattr(hook, "func", hook).__module__)]


def test_nothing_is_overwritten_and_a_known_architecture_has_nothing_to_write(tmp_path):
    there = tmp_path / "there.py"
    there.write_text("mine = 1\n")
    folder = str(save_tiny(tmp_path / "bert"))
    with pytest.raises(ConfigError, match="exists already"):
        examine(folder, write=there)
    with pytest.raises(ConfigError, match=r"ends in \.py"):
        examine(folder, write=tmp_path / "family.txt")
    with pytest.raises(ConfigError, match="no folder"):
        examine(folder, write=tmp_path / "missing" / "family.py")
    with pytest.raises(ConfigError, match=r"BERT is known \(built in\)"):
        examine(folder, write=tmp_path / "new.py")
    assert there.read_text() == "mine = 1\n"
    assert not (tmp_path / "new.py").exists()


def test_a_family_file_with_a_path_that_leads_nowhere_is_refused_and_the_path_named(tmp_path, capsys):
    save(tmp_path / "ernie", "ernie")
    for part, path in (("layers", "encoder.blocks"), ("attention_out", "attention.output.project")):
        file = tmp_path / f"{part}.py"
        file.write_text(
            "from regtune import Family, register\n"
            f'register.family(Family(name="My {part}", model_types=("ernie",), {part}="{path}", positions="absolute"))'
        )
        code, out, err = invoke(capsys, ("--plugin", file, "doctor", tmp_path / "ernie", *THREE))
        assert code == 1
        assert path in out + err
        assert "no such module" in out + err
        FAMILIES._added.pop(f"My {part}")


@pytest.mark.parametrize("family", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_an_encoder_decoder_is_examined(family, tmp_path):
    tiny_seq2seq.tiny_model(family).save_pretrained(tmp_path)
    report = examine(str(tmp_path), TWO)
    assert report.healthy, str(report)
    assert "tokens are written alike" in str(report)


def test_a_model_of_images_is_examined_without_a_tokenizer(tmp_path):
    report = examine(str(tiny_images.save_tiny(tmp_path / "vit")), TWO)
    assert report.healthy, str(report)
    assert "ViTImageProcessor" in str(report)
    assert "tokenizer" not in str(report)


def test_a_written_file_gives_the_family_again(tmp_path):
    family = Family(name='A "quoted" one', model_types=("x",), positions="rotary", causal=True, norms=("a",), keys=None)
    finding = Finding(name="1", passed=True, text="")
    made = search.FamilySearch(family=family, evidence=(), trials=(), findings=(finding,), origin="")
    (tmp_path / "mine.py").write_text(made.file)
    load_plugin(tmp_path / "mine.py")
    assert FAMILIES.get(family.name) == family


def test_positions_that_run_out_cost_registers_places():
    """RoFormer has a row of angles for each of its positions, and takes no position_ids."""
    model = tiny_model("roformer")
    family = Family(name="Mine", model_types=("roformer",), positions="relative")
    assert not search._reads_longest(model, family, TWO, {})
    kept = dataclasses.replace(family, positions_run_out=True)
    assert search._reads_longest(model, kept, TWO, {})
    with FAMILIES.lent(kept):
        assert max_text_length(model) == 66
        assert max_text_length(add_registers(model, TWO)) == 64


def test_a_decoder_that_always_makes_masks_is_given_them():
    """Falcon makes a mask where SDPA needs none, and would make it for the text alone: a step from the cache."""
    model, ids = tiny_model("falcon"), torch.arange(4, 16).unsqueeze(0)
    family = {"name": "Mine", "model_types": ("falcon",), "positions": "rotary", "causal": True, "norm": None}
    family |= {"layers": "h", "stack": "ln_f", "embeddings": "word_embeddings", "word_embeddings": "word_embeddings"}
    with FAMILIES.lent(Family(**family, masks_always=True)), torch.no_grad():
        add_registers(model, TWO)
        cache = model(ids[:, :-1], use_cache=True)[CACHE]
        step = model(ids[:, -1:], **{CACHE: cache}).logits
        torch.testing.assert_close(step, model(ids).logits[:, -1:], atol=1e-4, rtol=1e-4)


def test_an_unlisted_architecture_is_sent_to_the_doctor():
    with pytest.raises(UnsupportedModelError, match="regtune doctor MODEL"):
        add_registers(tiny_model("ernie"))
