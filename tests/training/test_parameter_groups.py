"""Claims about which parameter learns at which rate."""

import pytest

from regtune.config import RegisterConfig
from regtune.interfaces import Group
from regtune.registers.surgery import add_registers, register_parameters
from regtune.training.parameter_groups import parameter_groups, register_group
from tiny import FAMILIES, tiny_model
from tiny_windows import settings


def _groups(model, **changes):
    config = settings(learning_rate=1e-4, register_learning_rate=1e-2, weight_decay=0.1, **changes)
    return {group["name"]: group for group in parameter_groups(model, config, claimed=[register_group(model, config)])}


@pytest.mark.parametrize("family", FAMILIES)
def test_registers_have_their_own_rate_and_no_decay_and_every_parameter_is_in_one_group(family):
    model = add_registers(tiny_model(family), RegisterConfig(num_registers=3))
    groups = _groups(model)
    assert {id(p) for p in groups["registers"]["params"]} == {id(p) for p in register_parameters(model)}
    assert (groups["registers"]["lr"], groups["registers"]["weight_decay"]) == (1e-2, 0.0)
    assert (groups["weights"]["lr"], groups["weights"]["weight_decay"]) == (1e-4, 0.1)
    assert groups["no_decay"]["weight_decay"] == 0.0
    assert all(parameter.dim() > 1 for parameter in groups["weights"]["params"])
    placed = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(placed) == sorted(id(parameter) for parameter in model.parameters())


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = add_registers(tiny_model("bert"), RegisterConfig(num_registers=3, trainable=False))
    assert "registers" not in _groups(model)
    model.bert.requires_grad_(False)
    groups = _groups(model)
    assert [parameter.shape for group in groups.values() for parameter in group["params"]] == [(2, 32), (2,)]


def test_of_two_groups_that_claim_a_parameter_the_first_has_it():
    model, config = tiny_model("bert"), settings(learning_rate=1e-4, weight_decay=0.1)
    head = tuple(model.qa_outputs.parameters())
    first, second = (Group(name=name, parameters=head, learning_rate=rate) for name, rate in (("a", 1.0), ("b", 2.0)))
    groups = {group["name"]: group for group in parameter_groups(model, config, claimed=[first, second])}
    assert set(groups) == {"weights", "no_decay", "a"}
    assert (groups["a"]["lr"], groups["a"]["params"]) == (1.0, list(head))
