"""What is put around a model, or made of it: copies, replicas, PEFT, DDP, FSDP2, torch.compile, offloading, a trainer,
sentence-transformers, a module of one's own. Each gives what the model gives alone, or refuses with a sentence."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

import regtune
from registers.placed import N, every_case, logits, padded, registered, three_batches
from registers.shared_out import LABELS, WAYS, train
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, InputError, UnsupportedModelError
from regtune.registers.cache_names import CACHE
from regtune.registers.registers import Registers
from regtune.registers.saving import from_pretrained, load_registers, save_registers
from regtune.registers.surgery import (
    add_registers,
    backbone_of,
    disable_registers,
    find_registers,
    mask_registers,
    num_registers,
    register_parameters,
    remove_registers,
)
from tiny import FAMILIES, HEADS, inputs, tiny_model
from two_processes import TESTS, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what transformers has renamed
placed_anywhere = pytest.mark.parametrize(("family", "placement", "depth"), every_case())
one_always = pytest.mark.parametrize(
    "families", [("bert",), pytest.param(tuple(FAMILIES)[1:], marks=pytest.mark.slow)], ids=["bert", "the others"]
)


def replicas(module, count):
    """As `torch.nn.parallel.replicate` makes them, on the CPU."""
    copies = []
    modules = list(module.modules())
    index = {id(one): place for place, one in enumerate(modules)}
    for _ in range(count):
        made = [one._replicate_for_data_parallel() for one in modules]
        for one, new in zip(modules, made, strict=True):
            for name, child in one._modules.items():
                if child is None:
                    new._modules[name] = None
                else:
                    setattr(new, name, made[index[id(child)]])
            for name, parameter in one._parameters.items():
                if parameter is None:
                    new._parameters[name] = None
                else:
                    setattr(new, name, parameter.clone())
        copies.append(made[0])
    return copies


@pytest.mark.grid
@placed_anywhere
def test_replicas_copies_and_pickles_run_with_their_own_registers(family, placement, depth):
    model = registered(family, head="none", placement=placement, depth=depth)
    batch = three_batches(family)[0]
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    first, second = replicas(model, 2)
    twin, revived = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (first, second, twin, revived):
        with torch.no_grad():
            assert torch.equal(other(**batch).last_hidden_state, expected)
            found = find_registers(other)
            found.tokens.add_(1.0)
            changed = other(**batch).last_hidden_state
            assert not torch.equal(changed, expected)
            with disable_registers(model):
                assert torch.equal(other(**batch).last_hidden_state, changed), "only the original is switched off"
            assert torch.equal(model(**batch).last_hidden_state, expected)
    with disable_registers(model), torch.no_grad():
        plain, found = model(**batch).last_hidden_state, []
        (replica,) = replicas(model, 1)
        thread = threading.Thread(target=lambda: found.append(replica(**batch).last_hidden_state))
        thread.start()
        thread.join()
        assert torch.equal(found[0], plain), "a replica's thread does as its caller was told"


class Own(nn.Module):
    """A person's own wrapper."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Frame(Own):
    """One with a forward of its own."""

    def forward(self, **batch):
        return self.inner(**batch)


def test_wrappers_are_seen_through_and_two_sets_are_told_apart():
    model, batch = registered(), three_batches("bert")[0]
    own = Own(inner=model)
    assert num_registers(own) == num_registers(nn.DataParallel(model)) == N
    assert num_registers(torch.compile(model, backend="eager")) == N
    assert backbone_of(own) is model.bert
    two = Own(first=model, second=registered("roberta"))
    for ask in (num_registers, find_registers, remove_registers):
        with pytest.raises(UnsupportedModelError, match=r"2 sets of registers \(in first\.bert, second\.roberta\)"):
            ask(two)
    assert len(register_parameters(two)) == 4
    with disable_registers(model):
        without = logits(model, batch)
    for wrapper in (own, two):
        with disable_registers(wrapper):
            assert torch.equal(logits(model, batch), without)
    frame = Frame(inner=model)
    assert torch.equal(logits(frame, batch), logits(model, batch))
    with disable_registers(frame):
        assert torch.equal(logits(frame, batch), without)
    with pytest.raises(UnsupportedModelError, match=r"2 Hugging Face models.*pass the one"):
        add_registers(Own(first=tiny_model("bert"), second=tiny_model("bert")))
    assert num_registers(add_registers(Own(inner=tiny_model("bert")), RegisterConfig(num_registers=2))) == 2


def test_only_a_registers_module_is_taken_for_one():
    model = tiny_model("bert")
    model.bert.add_module("registers", nn.Linear(2, 2))
    assert find_registers(model) is None
    assert isinstance(find_registers(registered()), Registers)


@pytest.mark.grid
@placed_anywhere
def test_peft_wrappers_are_seen_through_and_its_copies_train(family, placement, depth):
    if family == "deberta-v2-conv":
        pytest.skip("as deberta-v2")
    model = registered(family, placement=placement, depth=depth)
    together = {"modernbert": "Wqkv", "gpt2": "c_attn", "phi3": "qkv_proj", "gpt_neox": "query_key_value"}
    names = (together[family],) if family in together else ("query", "q_lin", "query_proj", "q", "q_proj")
    settings = {"r": 2, "modules_to_save": ["registers"], "fan_in_fan_out": family == "gpt2"}
    config = peft.LoraConfig(target_modules=list(names), **settings)
    wrapped = peft.get_peft_model(model, config).train(False)
    batch = three_batches(family)[0]
    assert num_registers(wrapped) == num_registers(model) == N
    on = logits(wrapped, batch)
    with disable_registers(wrapped):
        off = logits(wrapped, batch)
    assert not torch.equal(on, off)
    wrapped(**batch).logits.square().sum().backward()
    copied = find_registers(wrapped)
    parts = dict(copied.named_parameters())
    assert ("deep" in parts) == (depth == "every_layer")
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in parts.values())
    with torch.no_grad():
        copied.tokens.add_(1.0)
    assert not torch.equal(logits(wrapped, batch), on)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped, batch), on), "without the adapter the original registers act"
    with pytest.raises(UnsupportedModelError, match=r"inside a ModulesToSaveWrapper; undo that first"):
        remove_registers(wrapped)


def test_an_adapter_with_registers_is_saved_and_loaded_and_missed_aloud(tmp_path):
    """`modules_to_save=["registers"]`."""
    batch = three_batches("bert")[0]
    config = peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=["registers"])
    wrapped = peft.get_peft_model(registered(), config).eval()
    with torch.no_grad():
        find_registers(wrapped).tokens.add_(1.0)
    expected = logits(wrapped, batch)
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(registered(), tmp_path).eval()
    assert torch.equal(logits(loaded, batch), expected)
    assert torch.equal(logits(copy.deepcopy(loaded), batch), expected)
    lost = peft.PeftModel.from_pretrained(tiny_model("bert", "sequence-classification"), tmp_path)
    for ask in (num_registers, remove_registers, lambda model: save_registers(model, tmp_path / "alone")):
        with pytest.raises(CheckpointError, match=r"adapter 'default' was trained with registers.*has none"):
            ask(lost)
    plain = wrapped.merge_and_unload()
    assert torch.equal(logits(plain, batch), expected)
    assert num_registers(plain) == N
    assert num_registers(remove_registers(plain)) == 0


def test_a_backbone_that_peft_copies_with_its_registers_is_asked_about_in_parts(tmp_path):
    """`modules_to_save=["bert"]`: the copy has registers of its own, that train and act."""
    batch = three_batches("bert")[0]
    config = peft.LoraConfig(target_modules=["classifier"], r=2, modules_to_save=["bert"])
    wrapped = peft.get_peft_model(registered(), config).eval()
    asked = [num_registers, find_registers, remove_registers, lambda model: save_registers(model, tmp_path)]
    for ask in asked:
        with pytest.raises(UnsupportedModelError, match=r"2 sets .*bert\.original_module, .*pass the part"):
            ask(wrapped)
    copied = wrapped.get_submodule("base_model.model.bert.modules_to_save.default")
    assert num_registers(copied) == N
    on = logits(wrapped, batch)
    loss = wrapped(**batch).logits.square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in copied.registers.parameters())
    with disable_registers(wrapped):
        off = logits(wrapped, batch)
    assert not torch.equal(on, off)
    with disable_registers(copied):
        assert torch.equal(logits(wrapped, batch), off)
    save_registers(copied, tmp_path)
    with torch.no_grad():
        find_registers(copied).tokens.add_(1.0)
    assert not torch.equal(logits(wrapped, batch), on)


def behind_a_prefix(wrapped, batch):
    """Logits by peft's class, or by hand where transformers has another name for the cache than peft asks for."""
    if CACHE == "past_key_values":
        return logits(wrapped, batch)
    mask = batch["attention_mask"]
    longer = torch.cat([mask.new_ones(len(mask), 4), mask], dim=1)
    given = batch | {"attention_mask": longer, CACHE: wrapped.get_prompt(len(mask))}
    return logits(wrapped.get_base_model(), given)


@pytest.mark.parametrize("placement", ["prefix", "after_cls", "suffix"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_prefix_tuning_comes_before_the_registers(family, placement):
    """Prefix keys are seen by all, whatever the placement: where positions are absolute, it makes no difference."""
    found = []
    batch = inputs(family, batch=2, seq=10, pad=3)
    for where in ("prefix", placement):
        torch.manual_seed(4)
        model = registered(family, placement=where)
        torch.manual_seed(4)
        config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
        wrapped = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            for parameter in find_registers(model).parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
            full = behind_a_prefix(wrapped, batch)
        with disable_registers(model):
            assert not torch.equal(behind_a_prefix(wrapped, batch), full)
        with mask_registers(model):
            masked = behind_a_prefix(wrapped, batch)
        with disable_registers(model):
            torch.testing.assert_close(behind_a_prefix(wrapped, batch), masked, atol=1e-5, rtol=1e-4)
        found.append(full)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mpnet", "modernbert"])
def test_a_prefix_that_a_model_would_drop_is_refused(family):
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 5, 8), 0)
    batch = inputs(family, batch=2, seq=10)
    model = registered(family, head="none")
    with pytest.raises(InputError, match=f"takes no {CACHE}"):
        model(**batch, **{CACHE: cache})


@pytest.mark.parametrize("depth", ["input", "every_layer"])
@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert"])
def test_parameters_that_accelerate_offloads_are_there_when_they_are_needed(family, depth):
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    model, batch = registered(family, head="none", depth=depth), three_batches(family)[0]
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert find_registers(model).tokens.device.type == "meta"
        assert torch.equal(model(**batch).last_hidden_state, expected)
        remove_hook_from_submodules(model)


def test_sentence_transformers_encodes_texts_of_different_length(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from tiny_tokenizer import save_tiny

    folder = str(save_tiny(tmp_path))
    encoder = sentence_transformers.SentenceTransformer(folder, device="cpu")  # with mean pooling
    texts = ["the old bridge is long", "stones"]
    plain = encoder.encode(texts, convert_to_tensor=True)
    add_registers(encoder[0].auto_model, RegisterConfig(num_registers=N, init_std=0.5))
    assert num_registers(encoder) == N
    together = encoder.encode(texts, convert_to_tensor=True)
    for text, row, before in zip(texts, together, plain, strict=True):
        torch.testing.assert_close(encoder.encode([text], convert_to_tensor=True)[0], row, atol=1e-5, rtol=1e-4)
        assert not torch.equal(row, before)


def test_a_trainer_as_the_documents_advise_gives_registers_a_rate_of_their_own_and_no_weight_decay(tmp_path):
    start = (TESTS.parent / "docs" / "index.md").read_text()
    advice = next(block for block in start.split("```python\n")[1:] if "optimizers=" in block).split("```")[0]
    model, batch = registered(depth="every_layer"), inputs("bert", batch=4)
    rows = [{name: value[row] for name, value in batch.items()} | {"labels": row % 2} for row in range(4)]
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=2)
    names = {"model": model, "arguments": arguments, "rows": rows, "Trainer": Trainer, "torch": torch}
    names["regtune"] = regtune
    exec(advice, names)
    mine, before = register_parameters(model), find_registers(model).tokens.detach().clone()
    groups = names["optimizer"].param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        own = [any(parameter is one for one in mine) for parameter in group["params"]]
        assert (group["weight_decay"], group["lr"]) == ((0.0, 1e-3) if any(own) else (0.01, 5e-5))
        assert all(own) or not any(own)
    names["trainer"].train()
    assert not torch.equal(find_registers(model).tokens, before)


# Several processes, and a compiler


@pytest.mark.slow
@one_always
def test_two_processes_train_save_and_load_like_one(tmp_path, families):
    run_in_two_processes(Path(__file__).with_name("shared_out.py"), tmp_path, *families)
    for case in every_case(families):
        batch, alone = padded(case[0], batch=4, seq=12, pad=4), registered(*case)
        start = logits(alone, batch)
        train(alone, batch, LABELS)
        expected = {"on": logits(alone, batch)}
        with disable_registers(alone):
            expected["off"] = logits(alone, batch)
        assert not torch.allclose(expected["on"], start, atol=1e-3)
        for way in WAYS:
            folder = tmp_path / "-".join((*case, way))
            found = load_file(folder / "found.safetensors")
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=f"{case} {way} {name}")
            loaded = from_pretrained(HEADS["sequence-classification"], folder, attn_implementation="eager").eval()
            assert torch.equal(logits(loaded, batch), found["on"])
            assert torch.equal(found["loaded"], found["on"])
            load_registers(remove_registers(loaded), folder / "registers")
            assert torch.equal(logits(loaded, batch), found["on"])
            add, remove = (folder / "refused.txt").read_text().splitlines()
            assert add == remove
            assert "distributed over several processes" in add


def compiled(program, folder, families):
    """What a program that compiles models of these families found."""
    command = [str(Path(__file__).with_name(program)), str(folder / "found.json"), *families]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())
    assert list(found) == list(families)
    return found


@one_always
@pytest.mark.slow
def test_a_compiled_model_gives_what_the_model_gives(tmp_path, families):
    for family, differences in compiled("compiled.py", tmp_path, families).items():
        assert differences.pop("effect") > 1e-3, family
        assert max(differences.values()) < 1e-4, (family, differences)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_a_compiled_step_writes_the_same_tokens_and_is_compiled_as_often_as_without_registers(tmp_path, family):
    """With a static cache: once, however long the text has become; where windows are counted in Python, more often."""
    found = compiled("compiled_decoding.py", tmp_path, [family])[family]
    assert found["effect"] > 1e-3
    assert found["same"]
    assert found["graphs"] == found["plain_graphs"]
    assert family == "mistral" or found["graphs"] == 1
    assert found["difference"] < 1e-4
