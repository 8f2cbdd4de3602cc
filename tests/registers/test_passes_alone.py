"""One forward pass is its own: threads, nested calls, recomputation, copies, wrappers, shared parts, `.forward`."""

from __future__ import annotations

import copy
import pickle
import threading

import peft
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from regtune.config import RegisterConfig
from regtune.errors import InputError, UnsupportedModelError
from regtune.registers import passes
from regtune.registers.registers import Registers
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
from tiny import ABSOLUTE, FAMILIES, inputs, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # peft calls what transformers has renamed
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),  # reentrant checkpoints in no_grad
]

N = 3
CASES = [
    (family, placement, depth)
    for family in FAMILIES
    for placement in (("prefix", "after_cls", "suffix") if family in ABSOLUTE else ("prefix", "suffix"))
    for depth in (("input",) if family == "albert" else ("input", "every_layer"))
]
every_case = pytest.mark.parametrize(("family", "placement", "depth"), CASES)


def registered(family="bert", head="sequence-classification", *, placement="prefix", depth="input", **changes):
    config = RegisterConfig(num_registers=N, init_std=0.5, placement=placement, depth=depth)
    return add_registers(tiny_model(family, head, **changes), config)


def left(batch):
    """Padding on the left as well as on the right, so that rows have their registers at other columns."""
    batch["attention_mask"][0, :2] = 0
    return batch


def three_batches(family):
    shapes = ((2, 12, 4), (3, 9, 2), (2, 7, 0))
    return [left(inputs(family, batch=b, seq=t, pad=p, seed=s)) for s, (b, t, p) in enumerate(shapes)]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def in_threads(*jobs):
    """Runs the jobs together, each four times; what differs from what was expected."""
    wrong: list[str] = []
    start = threading.Barrier(len(jobs))

    def work(run, expected):
        start.wait()
        for _ in range(4):
            try:
                if not torch.equal(run(), expected):
                    wrong.append("another result")
            except Exception as error:  # a thread's error is lost otherwise
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@every_case
def test_threads_give_what_each_gives_alone(family, placement, depth):
    model = registered(family, placement=placement, depth=depth)
    one, two, three = three_batches(family)

    def switched_off():
        with disable_registers(model):
            return logits(model, one)

    def hidden():
        with mask_registers(model, [1]):
            return logits(model, two)

    jobs = [switched_off, hidden, lambda: logits(model, three)]
    assert in_threads(*[(job, job()) for job in jobs]) == []


@every_case
def test_nested_calls_give_what_each_gives_alone(family, placement, depth):
    model = registered(family, placement=placement, depth=depth)
    one, two, three = three_batches(family)
    alone = [logits(model, batch) for batch in (one, two, three)]
    with disable_registers(model):
        without = logits(model, one)
    inner, nested = [], [False]

    def call_again(*_):
        if not nested[0]:
            nested[0] = True
            inner.append(logits(model, two))
            with disable_registers(model):
                inner.append(logits(model, one))
            nested[0] = False

    norms = [m for m in backbone_of(model).modules() if isinstance(m, nn.LayerNorm)]
    for module in (
        model.get_input_embeddings(),
        norms[0],
        norms[-2],
    ):
        module.register_forward_hook(call_again)  # before the registers join, and when they are in
    assert torch.equal(logits(model, three), alone[2])
    assert len(inner) >= 6
    assert all(torch.equal(found, (alone[1], without)[place % 2]) for place, found in enumerate(inner))


def gradients(model):
    found = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: value for name, value in found.items() if value is not None}


def loss_of(model, batch):
    return model(**batch).logits.square().sum()


def layers_of(model):
    lists = [m for name, m in backbone_of(model).named_modules() if name.split(".")[-1] in ("layer", "layers")]
    return next(m for m in lists if isinstance(m, nn.ModuleList))


@every_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_run_again_after_another_pass_have_their_own_pass(family, placement, depth, reentrant):
    if family == "albert" or (reentrant and depth == "input"):
        pytest.skip("no layer has a hook of registers; models are run again as a whole below")
    model = registered(family, placement=placement, depth=depth)
    one, two, _ = three_batches(family)
    loss_of(model, one).backward()
    expected = gradients(model)
    with disable_registers(model):
        loss_of(model, one).backward()
    expected_off = gradients(model)
    layers = layers_of(model)
    way = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer, way)
    first = loss_of(model, one)
    with disable_registers(model):
        off = loss_of(model, one)
    logits(model, two)
    for loss, right in ((first, expected), (off, expected_off)):
        loss.backward()
        found = gradients(model)
        assert found.keys() == right.keys()
        for name, value in right.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_whole_model_run_again_keeps_its_settings(family, reentrant):
    model = registered(family)
    batch = three_batches(family)[0]
    with mask_registers(model, [0]):
        loss_of(model, batch).backward()
        expected = gradients(model)
        embeds = torch.ones(1, requires_grad=True)

        def run(one):
            return model(**batch).logits * one

        loss = checkpoint(run, embeds, use_reentrant=reentrant).square().sum()
    loss.backward()  # the context is over
    found = gradients(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    loss = checkpoint(run, embeds, use_reentrant=reentrant).square().sum()
    with pytest.raises(InputError, match="it isn't clear which is meant"):
        loss.backward()


def test_what_was_moved_away_before_a_recomputation_is_refused():
    model = registered(placement="suffix", depth="every_layer")
    layers = layers_of(model)
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer, CheckpointImpl.NO_REENTRANT)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = loss_of(model, three_batches("bert")[0])
    with pytest.raises(InputError, match="can't be told from which forward pass"):
        loss.backward()


def test_nothing_is_remembered_of_passes_that_are_gone():
    model = registered(depth="every_layer")
    batch = three_batches("bert")[0]
    logits(model, batch)
    before = len(passes._REMEMBERED)
    for _ in range(5):
        logits(model, batch)
    assert len(passes._REMEMBERED) <= before


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


@every_case
def test_replicas_copies_and_pickles_run_with_their_own_registers(family, placement, depth):
    model = registered(family, "none", placement=placement, depth=depth)
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


@every_case
def test_forward_called_directly_and_embeddings_called_alone(family, placement, depth):
    model = registered(family, "none", placement=placement, depth=depth)
    batch = three_batches(family)[0]
    with torch.no_grad():
        assert torch.equal(model.forward(**batch).last_hidden_state, model(**batch).last_hidden_state)
        assert model.embeddings(input_ids=batch["input_ids"]).shape[1] == batch["input_ids"].shape[1]
    remove_registers(model)
    assert "forward" not in model.__dict__


@every_case
def test_models_that_share_a_stack_leave_each_other_alone(family, placement, depth):
    one = registered(family, "none", placement=placement, depth=depth)
    other = copy.deepcopy(remove_registers(copy.deepcopy(one)))
    batch = three_batches(family)[0]
    with torch.no_grad():
        alone, plain = one(**batch).last_hidden_state, other(**batch).last_hidden_state
        for name in ("encoder", "transformer", "layers", "final_norm", "embeddings"):
            if hasattr(one, name):
                setattr(other, name, getattr(one, name))
        assert torch.equal(other(**batch).last_hidden_state, plain)
        add_registers(other, RegisterConfig(num_registers=2, init_std=0.5, placement=placement))
        both = other(**batch).last_hidden_state
        assert not torch.equal(both, plain)
        assert torch.equal(one(**batch).last_hidden_state, alone)
        remove_registers(one)
        assert torch.equal(other(**batch).last_hidden_state, both)
        assert torch.equal(one(**batch).last_hidden_state, plain)


class Own(nn.Module):
    """A person's own wrapper."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


@every_case
def test_peft_wrappers_are_seen_through_and_its_copies_train(family, placement, depth):
    if family == "deberta-v2-conv":
        pytest.skip("as deberta-v2")
    model = registered(family, placement=placement, depth=depth)
    names = ("Wqkv",) if family == "modernbert" else ("query", "q_lin", "query_proj", "q")
    config = peft.LoraConfig(target_modules=list(names), r=2, modules_to_save=["registers"])
    wrapped = peft.get_peft_model(model, config).train(False)
    batch = three_batches(family)[0]
    assert num_registers(wrapped) == num_registers(model) == N
    on = logits(wrapped, batch)
    with disable_registers(wrapped):
        off = logits(wrapped, batch)
    assert not torch.equal(on, off)
    loss_of(wrapped, batch).backward()
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


def test_wrappers_are_seen_through_and_two_sets_are_told_apart():
    model, batch = registered(), three_batches("bert")[0]
    own = Own(inner=model)
    assert num_registers(own) == N
    assert num_registers(torch.compile(model, backend="eager")) == N
    assert backbone_of(own) is model.bert
    two = Own(first=model, second=registered("roberta"))
    for ask in (num_registers, find_registers, remove_registers):
        with pytest.raises(UnsupportedModelError, match=r"2 sets of registers \(in BertModel, RobertaModel\)"):
            ask(two)
    assert len(register_parameters(two)) == 4
    with disable_registers(model):
        without = logits(model, batch)
    for wrapper in (own, two):
        with disable_registers(wrapper):
            assert torch.equal(logits(model, batch), without)
    with pytest.raises(UnsupportedModelError, match=r"2 Hugging Face models.*pass the one"):
        add_registers(Own(first=tiny_model("bert"), second=tiny_model("bert")))
    assert num_registers(add_registers(Own(inner=tiny_model("bert")), RegisterConfig(num_registers=2))) == 2


def test_a_model_in_eval_mode_stays_in_eval_mode():
    model = tiny_model("bert")
    assert not any(module.training for module in add_registers(model).modules())
    assert all(module.training for module in add_registers(tiny_model("bert").train()).modules())


@pytest.mark.parametrize("depth", ["input", "every_layer"])
@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert"])
def test_parameters_that_accelerate_offloads_are_there_when_they_are_needed(family, depth):
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    model, batch = registered(family, "none", depth=depth), three_batches(family)[0]
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert find_registers(model).tokens.device.type == "meta"
        assert torch.equal(model(**batch).last_hidden_state, expected)
        remove_hook_from_submodules(model)


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
            full = wrapped(**batch).logits
        with disable_registers(model):
            assert not torch.equal(logits(wrapped, batch), full)
        with mask_registers(model):
            masked = logits(wrapped, batch)
        with disable_registers(model):
            torch.testing.assert_close(logits(wrapped, batch), masked, atol=1e-5, rtol=1e-4)
        found.append(full)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mpnet", "modernbert"])
def test_a_prefix_that_a_model_would_drop_is_refused(family):
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 5, 8), 0)
    batch = inputs(family, batch=2, seq=10)
    model = registered(family, "none")
    with pytest.raises(InputError, match="takes no past_key_values"):
        model(**batch, past_key_values=cache)


def test_masks_that_do_not_fit_are_refused_in_words():
    model, ids = registered(head="none"), inputs("bert")["input_ids"]
    with pytest.raises(InputError, match=r"int64; a full mask is added to the scores as it is"):
        model(input_ids=ids, attention_mask=torch.ones(3, 1, 20, 20, dtype=torch.long))
    with pytest.raises(InputError, match=r"\(3, 25\), which doesn't fit 20 tokens"):
        model(input_ids=ids, attention_mask=torch.ones(3, 25, dtype=torch.long))


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


class NoRegisterDecay(Trainer):
    """As README advises for a plain Trainer."""

    def get_decay_parameter_names(self, model):
        mine = {id(parameter) for parameter in register_parameters(model)}
        named = dict(model.named_parameters())
        return [name for name in super().get_decay_parameter_names(model) if id(named[name]) not in mine]


def test_a_trainer_as_readme_advises_gives_registers_no_weight_decay(tmp_path):
    model = registered(depth="every_layer")
    arguments = TrainingArguments(str(tmp_path), weight_decay=0.1, use_cpu=True, report_to=[])
    mine = {id(parameter) for parameter in register_parameters(model)}
    groups = NoRegisterDecay(model=model, args=arguments).create_optimizer().param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    everything = {id(parameter) for group in groups for parameter in group["params"]}
    assert mine <= everything
    assert not mine & decayed
    assert decayed


def test_only_a_registers_module_is_taken_for_one():
    model = tiny_model("bert")
    model.bert.add_module("registers", nn.Linear(2, 2))
    assert find_registers(model) is None
    assert isinstance(find_registers(registered()), Registers)
