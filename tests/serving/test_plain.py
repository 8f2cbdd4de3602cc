"""Plain models: registers as words, as a prefix, and as key and value biases, give what the model gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig
from safetensors.torch import load_file
from transformers import DynamicCache

import tiny_seq2seq
from analyses.registers.test_register_states import hidden_from_text
from regtune.errors import CheckpointError, ConfigError, MissingExtraError, UnsupportedModelError
from regtune.methods.peft import AdaptedModel
from regtune.registers.cache_names import CACHE
from regtune.registers.in_peft import RegisterLoraConfig, with_registers
from regtune.registers.surgery import add_registers, disable_registers
from regtune.serving.export import export
from regtune.session import around, load_model
from serving.placed_on import N, session_on, texts
from tiny import DECODERS, WINDOWED, tiny_model
from tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

EXACT = 2e-5
GREEDY = {"max_new_tokens": 5, "do_sample": False}


def opened(folder: Path, kind: str):
    """What is in the folder, and peft's prefix where there is one."""
    from peft import PeftModel

    model = load_model(kind, folder).eval()
    return PeftModel.from_pretrained(model, str(folder / "prefix")).eval() if (folder / "prefix").is_dir() else model


PEFT_READS = CACHE == "past_key_values"
"""peft asks for the cache by this name alone."""


def with_the_prefix(folder: Path, model, batch):
    """What the model is given where peft can't give it, as docs/serving.md says."""
    saved = load_file(folder / "prefix" / "adapter_model.safetensors")["prompt_embeddings"]
    config, n, mask = model.config, N, batch["attention_mask"]
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    prefix = saved.view(n, config.num_hidden_layers, 2, 1, heads, -1).permute(1, 2, 3, 4, 0, 5)
    cache = DynamicCache(list(prefix.expand(-1, -1, len(mask), -1, -1, -1)))
    return batch | {"attention_mask": torch.cat([mask.new_ones(len(mask), n), mask], dim=1), CACHE: cache}


# Decoders: words


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("gpt2", "sequence-classification"),
        ("llama", "question-answering"),
        ("gemma3_text", "causal-lm"),
        *(pytest.param(family, "causal-lm", marks=pytest.mark.slow) for family in DECODERS if family != "gemma3_text"),
    ],
)
def test_a_decoders_registers_become_words_that_change_no_logit(family, head, tmp_path):
    session = session_on(family, head, windows="leave" if family in WINDOWED else "stay")
    found = export(session, tmp_path / "out", format="plain", tolerance=EXACT, progress=False)
    assert found.largest <= EXACT
    assert {check.padded for check in found.checks} == {True, False}
    assert {check.shape[0] for check in found.checks} >= {1, 2, 5}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "registers" not in config
    assert config["vocab_size"] == 120  # unused rows of the table are taken


@pytest.mark.parametrize(("family", "n"), [("llama", N), ("gpt2", 30)])
def test_the_tokenizer_puts_registers_in_front_and_generation_gives_the_same_tokens(family, n, tmp_path):
    session = session_on(family, "causal-lm", n=n)
    session.reader.chat_template = "{{ messages[0]['content'] }}"
    found = export(session, tmp_path / "out", format="plain", tolerance=EXACT, progress=False)
    reader = load_reader_of(tmp_path / "out")
    names = "".join(f"<|register_{index}|>" for index in range(n))
    first, text = len(session.reader), "who was in the house?"
    ids = reader(text).input_ids
    assert ids == [*range(first, first + n), *session.reader(text).input_ids]
    assert reader.decode(ids, skip_special_tokens=True) == session.reader.decode(
        session.reader(text).input_ids, skip_special_tokens=True
    )
    chat = reader.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    assert chat == names + text
    assert not found.notes
    model = opened(tmp_path / "out", type(session.model).__name__)
    expected = session.model.generate(**given(session.reader, [text, "cat"]), **GREEDY)[:, -5:]
    assert torch.equal(model.generate(**given(reader, [text, "cat"]), **GREEDY)[:, -5:], expected)
    assert model.generation_config.suppress_tokens == [*range(first, first + n)]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    logits = model(**given(reader, [text])).logits[..., first : first + n]
    assert tied or not logits.any()


def adapted(adapter):
    """A session on a decoder with this adapter, random where it would start from nothing."""
    model = AdaptedModel(tiny_model("llama", "causal-lm"), adapter)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    return around(model.eval(), tiny_tokenizer())


def test_an_adapter_is_merged_before_its_registers_become_words(tmp_path):
    session = adapted(RegisterLoraConfig(registers={"num_registers": N}, r=4, target_modules=["q_proj", "down_proj"]))
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    found = export(session, tmp_path / "out", format="plain", tolerance=EXACT, progress=False)
    assert found.num_registers == N
    after = session.model.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    reader, model = load_reader_of(tmp_path / "out"), opened(tmp_path / "out", "LlamaForCausalLM")
    assert type(model).__module__.startswith("transformers.")
    expected = session.model.generate(**given(session.reader, ["the cat"]), **GREEDY)[:, -5:]
    assert torch.equal(model.generate(**given(reader, ["the cat"]), **GREEDY)[:, -5:], expected)
    with session.model.disable_adapter():
        plain = session.model(**given(session.reader, ["the cat"])).logits
    assert not torch.allclose(plain, session.model(**given(session.reader, ["the cat"])).logits, atol=1e-2)


def test_an_adapter_that_can_t_be_merged_is_refused_with_what_else_there_is(tmp_path):
    config = with_registers(PromptTuningConfig)(
        registers={"num_registers": N}, num_virtual_tokens=2, task_type="CAUSAL_LM"
    )
    with pytest.raises(UnsupportedModelError, match=r"can't be merged into the model's weights .*`onnx` or `torch`"):
        export(adapted(config), tmp_path / "out", format="plain", progress=False)
    assert list(tmp_path.iterdir()) == []


def load_reader_of(folder: Path):
    from regtune.models.loading import load_tokenizer

    return load_tokenizer(folder)


def given(reader, batch: list[str]):
    padded = reader(batch, return_tensors="pt", padding=True, padding_side="left")
    return {name: padded[name] for name in ("input_ids", "attention_mask")}


# Decoders: a prefix


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"depth": "every_layer"}),
        ("llama", {"rotary": "shared"}),
        ("qwen3", {"depth": "every_layer", "rotary": "shared"}),
        ("gpt2", {"depth": "every_layer"}),
    ],
)
def test_registers_that_are_no_words_become_a_prefix_that_peft_reads(family, settings, tmp_path):
    session = session_on(family, "causal-lm", **settings)
    found = export(session, tmp_path / "out", format="plain", tolerance=EXACT, progress=False)
    assert found.largest <= EXACT
    batch = given(session.reader, ["who was in the house?", "cat"])
    model = opened(tmp_path / "out", type(session.model).__name__)
    expected = session.model.generate(**batch, **GREEDY)
    assert bool(found.notes) != PEFT_READS
    if PEFT_READS:
        assert torch.equal(model.generate(**batch, **GREEDY), expected)
    model, told = model.get_base_model(), with_the_prefix(tmp_path / "out", model.get_base_model(), batch)
    ids = batch["input_ids"]
    told["input_ids"] = torch.cat([ids.new_zeros(len(ids), N), ids], dim=1)  # tokens that the cache stands for
    assert torch.equal(model.generate(**told, **GREEDY)[:, N:], expected)
    prefix = json.loads((tmp_path / "out" / "prefix" / "adapter_config.json").read_text())
    assert prefix["peft_type"] == "PREFIX_TUNING"
    assert prefix["num_virtual_tokens"] == N


@pytest.mark.parametrize("family", sorted(WINDOWED))
def test_registers_that_no_window_lets_go_of_are_refused(family, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"see a window .*windows='stay'.*`onnx` or `torch`"):
        export(session_on(family), tmp_path / "out", format="plain", progress=False)


# Encoders: key and value biases


@pytest.mark.parametrize(
    ("family", "head", "placement"),
    [
        ("bert", "question-answering", "prefix"),
        ("roberta", "sequence-classification", "after_cls"),
        ("xlm-roberta", "token-classification", "suffix"),
        ("electra", "token-classification", "prefix"),
    ],
)
def test_an_encoders_constant_registers_become_biases_that_change_no_output(family, head, placement, tmp_path):
    session = session_on(family, head, depth="every_layer", placement=placement)
    data = texts(tmp_path, head)
    found = export(session, tmp_path / "out", format="plain", tolerance=EXACT, data=[data], progress=False)
    assert found.largest <= EXACT
    batch = session.batches(session.rows(session.sample([data])))[0]
    inputs = {name: batch[name] for name in found.inputs}
    assert ("token_type_ids" in inputs) == (family == "bert")
    assert len(found.notes) == (family == "bert") + (not PEFT_READS)
    if family == "bert":  # peft drops the segments, and they are all zero here
        assert not inputs["token_type_ids"].any()
    with torch.no_grad():
        expected = session.model(**inputs)[0]
        alone = load_model(type(session.model).__name__, tmp_path / "out").eval()(**inputs)[0]
        model = opened(tmp_path / "out", type(session.model).__name__)
        found_again = model(**inputs)[0] if PEFT_READS else None
        model = model.get_base_model()
        by_hand = model(**with_the_prefix(tmp_path / "out", model, inputs))[0]
    torch.testing.assert_close(by_hand, expected, atol=EXACT, rtol=0)
    found_again = by_hand if found_again is None else found_again
    torch.testing.assert_close(found_again, expected, atol=EXACT, rtol=0)
    assert (alone - expected).abs().max() > 100 * EXACT  # the registers matter


def test_planted_constant_registers_become_biases_that_change_no_output(tmp_path):
    session = session_on("bert")
    hidden_from_text(session.model)
    data = texts(tmp_path)
    found = export(session, tmp_path / "out", format="plain", data=[data], tolerance=EXACT, progress=False)
    assert found.largest <= EXACT


def test_registers_that_hardly_vary_are_kept_only_within_the_tolerance_and_the_error_is_said(tmp_path):
    session = session_on("bert")
    data = texts(tmp_path)
    with pytest.raises(CheckpointError, match=r"differ by 0\.\d+ .*more than tolerance=0\.0001, so nothing was kept"):
        export(session, tmp_path / "out", format="plain", data=[data], progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]
    found = export(session, tmp_path / "out", format="plain", data=[data], tolerance=10.0, progress=False)
    assert 1e-4 < found.largest < 10
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert said["largest"] == found.largest == max(check["difference"] for check in said["checks"])
    assert f"within {found.largest:.2g}" in str(found)


def test_registers_that_vary_with_the_text_are_refused_with_the_numbers(tmp_path):
    session = session_on("bert", init_std=0.05)
    with pytest.raises(
        UnsupportedModelError,
        match=r"registers 0 \(0\.\d+\), 1 \(0\.\d+\), 2 \(0\.\d+\) vary .* 8 windows .*at most 0\.01.*`onnx`",
    ):
        export(session, tmp_path / "out", format="plain", data=[texts(tmp_path)], progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["distilbert", "deberta-v2", "modernbert", "albert"])
def test_encoders_that_take_no_keys_from_outside_are_refused(family, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"takes no keys and values from outside .*`onnx` or `torch`"):
        export(session_on(family), tmp_path / "out", format="plain", progress=False)


# What else is refused, and who opens it


def test_what_can_t_be_plain_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    bare = around(tiny_model("llama", "causal-lm"), tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match="has no registers"):
        export(bare, out, format="plain", progress=False)
    session = session_on("llama", "causal-lm")
    with disable_registers(session.model), pytest.raises(UnsupportedModelError, match="switched off"):
        export(session, out, format="plain", progress=False)
    with pytest.raises(ConfigError, match=r"tolerance=0.* above 0"):
        export(session, out, format="plain", tolerance=0.0, progress=False)
    with pytest.raises(ConfigError, match="exists and holds something"):
        export(session, Path(texts(tmp_path)).parent, format="plain", progress=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    fresh = session_on("llama", "causal-lm", depth="every_layer")
    with pytest.raises(MissingExtraError, match=r"peft.*regtune\[peft\]"):
        export(fresh, out, format="plain", progress=False)
    assert not out.exists()


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    session = around(add_registers(tiny_seq2seq.tiny_model("t5")), tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match=r"an encoder with a decoder.*regtune\.open"):
        export(session, tmp_path / "out", format="torch", progress=False)


WITHOUT_REGTUNE = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoTokenizer, DynamicCache
words, prefix, given = sys.argv[1:]
inputs = {name: torch.tensor(value) for name, value in json.loads(given).items()}
with torch.no_grad():
    reader = AutoTokenizer.from_pretrained(words)
    model = AutoModelForCausalLM.from_pretrained(words).eval()
    said = model(**reader(["the cat"], return_tensors="pt", return_token_type_ids=False)).logits[0, -1, :60]
    model = AutoModelForQuestionAnswering.from_pretrained(prefix).eval()
    config, n = model.config, 3
    keys = load_file(prefix + "/prefix/adapter_model.safetensors")["prompt_embeddings"]
    keys = keys.view(n, config.num_hidden_layers, 2, 1, config.num_attention_heads, -1).permute(1, 2, 3, 4, 0, 5)
    mask = torch.cat([torch.ones(1, n), inputs.pop("attention_mask")], dim=1)
    started = model(**inputs, attention_mask=mask, past_key_values=DynamicCache(list(keys))).start_logits[0]
assert "regtune" not in sys.modules
print(json.dumps([said.tolist(), started.tolist()]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_never_imports_regtune_opens_both_kinds(tmp_path):
    decoder, encoder = session_on("llama", "causal-lm"), session_on("bert", depth="every_layer")
    export(decoder, tmp_path / "words", format="plain", progress=False)
    export(encoder, tmp_path / "biases", format="plain", data=[texts(tmp_path)], progress=False)
    inputs = {"input_ids": [[2, 5, 9, 14, 3]], "attention_mask": [[1] * 5], "token_type_ids": [[0, 0, 0, 1, 1]]}
    command = [sys.executable, "-c", WITHOUT_REGTUNE, "words", "biases", json.dumps(inputs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said, started = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        batch = decoder.reader(["the cat"], return_tensors="pt", return_token_type_ids=False)
        expected = decoder.model(**batch).logits[0, -1, :60]
        torch.testing.assert_close(torch.tensor(said), expected, atol=EXACT, rtol=0)
        asked = encoder.model(**{name: torch.tensor(value) for name, value in inputs.items()}).start_logits[0]
        torch.testing.assert_close(torch.tensor(started), asked, atol=EXACT, rtol=0)
