"""The one sentence on top: helps, hurts, equivalent, cannot tell; and the names of arms."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from regtune.config import RegisterConfig, to_dict
from regtune.methods.used import label_of, methods_of
from regtune.records import RunRecord
from regtune.report.arms import arm_of, settings_of, told_apart
from regtune.report.headline import control_sentence, headline
from regtune.stats.comparison import compare
from regtune.stats.scores import ArmScores
from regtune.tasks.qa.task import F1, PUBLISHED
from report.synthetic import ARMS, config_of


def arm(config):
    record = RunRecord(
        config=to_dict(config),
        config_hash="",
        metrics={},
        training={},
        data={},
        parameters={},
        versions={},
        machine={},
        task=config.task,
        methods=[used.describe() for used in methods_of(config)],
        label=label_of(config),
    )
    return arm_of(record, settings_of(record, Path(".")))


def found(effects, *, questions=800, seeds=6, noise=0.002):
    """Comparisons of N = 4, 8 … with these effects; every seed shifts all questions a little."""
    difficulty = np.random.default_rng(0).uniform(0.3, 0.7, questions)
    shifts = np.random.default_rng(1).normal(0, noise, (len(effects) + 1, seeds, 1))
    rows = [np.clip(difficulty + effect + shift, 0, 1) for effect, shift in zip((0.0, *effects), shifts, strict=True)]
    base, *arms = (ArmScores(scores=row, metric=F1, name=f"N{i}") for i, row in enumerate(rows))
    results = compare(base, {each.name: each for each in arms}, resamples=1000)
    names = [arm(config_of("registers", 4 * (i + 1), 0)) for i in range(len(effects))]
    return dict(zip(names, results, strict=True))


def test_one_n_that_helps_is_named_and_the_rest_is_not_claimed():
    top = headline(found((0.05, 0.0)), set_name="dev")
    assert top.verdict == "helps"
    assert top.sentence.startswith("Registers help at N = 4: +")
    assert top.sentence.endswith(" At N = 8 they are equivalent to the baseline.")


def test_an_n_that_hurts_is_not_hidden_behind_one_that_helps():
    top = headline(found((0.05, -0.05)), set_name="dev")
    assert top.sentence.startswith("Registers help at N = 4: +")
    assert top.sentence.endswith(" At N = 8 they hurt.")


def test_controls_that_do_as_well_stand_beside_the_verdict():
    names = [arm(config_of(kind, 16, 0)) for kind in ("random", "sep")]
    results = dict(zip(names, found((0.05, -0.05)).values(), strict=True))
    assert control_sentence(results) == (
        "Better than these registers: frozen random vectors. Worse than these registers: [SEP] copies."
    )


def test_several_n_that_hurt_are_listed_with_the_worst():
    top = headline(found((-0.05, -0.1)), set_name="dev")
    assert top.verdict == "hurts"
    assert top.sentence.startswith("Registers hurt at N = 4 and N = 8, most at N = 8: -")


def test_the_largest_of_several_differences_is_said_to_be_flattered_and_caveats_follow():
    top = headline(found((0.05, 0.0)), set_name="dev", examples="questions", caveats=["One thing.", "Another."])
    assert "N = 4 is named because its difference is the largest of 2 on these very questions" in top.basis
    assert top.basis.endswith(" One thing. Another.")
    assert "flatters" not in headline(found((0.05,)), set_name="dev").basis


def test_the_interval_beside_a_corrected_p_is_the_simultaneous_one_and_the_detectable_difference_the_largest():
    results = found((0.05, 0.0), noise=0.02)
    top = headline(results, set_name="dev")
    best = results[top.arm]
    low, high = (f"{100 * end:+.2f}" for end in best.simultaneous_interval)
    assert f"(95 % interval {low} to {high}, p " in top.sentence
    assert f"{100 * best.interval[0]:+.2f} to" not in top.sentence
    largest = max(result.minimal_detectable for result in results.values())
    assert (
        f"a true difference of {100 * largest:.2f} points would be found at every N with probability 0.8" in top.basis
    )
    assert "3 values of N tried (0, 4, 8)" in top.basis
    assert "corrected for 2 comparisons" in top.basis


def test_a_published_gain_is_excluded_where_the_corrected_limits_lie_below_it():
    claim = PUBLISHED
    top = headline(found((0.0, 0.0)), set_name="dev", published=claim)
    assert (
        "claims for 5 to 10 registers on BERT, is excluded at N = 4 and N = 8: the corrected upper limits" in top.proven
    )
    assert headline(found((0.2, 0.2)), set_name="dev", published=claim).proven.endswith(" is not excluded.")
    mixed = headline(found((0.2, 0.0)), set_name="dev", published=claim)
    assert mixed.proven.endswith("It is not excluded at N = 4.")
    other = [dataclasses.replace(claim[0], metric="accuracy")]
    assert headline(found((0.0, 0.0)), set_name="dev", published=other).proven == ""


def test_few_seeds_make_the_plan_a_guess():
    assert "(a guess: fewer than 5 seeds)" in headline(found((0.0,), seeds=4), set_name="dev").basis
    assert "guess" not in headline(found((0.0,), seeds=5), set_name="dev").basis


def test_two_valued_seeds_are_named():
    top = headline(found((0.0,), seeds=6), set_name="dev")
    assert "two sharp groups" not in top.basis
    odd = {arm: dataclasses.replace(result, two_valued=True) for arm, result in found((0.0,)).items()}
    assert "At N = 4 the seeds' differences fall into two sharp groups" in headline(odd, set_name="dev").basis


def test_equivalent_needs_every_n():
    top = headline(found((0.0, 0.0), noise=0.0005), set_name="dev")
    assert top.verdict == "equivalent"
    assert "equivalent to the baseline within ±1 point at N = 4 and N = 8" in top.sentence


def test_cannot_tell_says_how_many_seeds_it_would_take():
    top = headline(found((0.0, 0.0), noise=0.03), set_name="dev")
    assert top.verdict == "cannot tell"
    assert "It would take about " in top.sentence
    assert " more seeds in each arm to settle every N at ±1 point." in top.sentence


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("baseline", "baseline"),
        ("registers", "registers, N = 16"),
        ("random", "frozen random vectors, N = 16"),
        ("sep", "[SEP] copies, N = 16"),
        ("mask", "[MASK] copies, N = 16"),
        ("every_layer", "registers in every layer, N = 16"),
        ("frozen", "registers, N = 16 + backbone frozen"),
        ("warm_up", "registers, N = 16 + warm-up"),
        ("warm_up_control", "warm-up"),
    ],
)
def test_an_arm_has_the_label_that_its_record_has(name, label):
    assert arm(config_of(name, 16, 3)).label == label
    assert set(ARMS) >= {name}


def test_the_kind_of_an_arm_is_its_label_without_n():
    assert [arm(config_of(name, 4, 0)).kind for name in ("registers", "frozen", "baseline")] == [
        "registers",
        "registers + backbone frozen",
        "baseline",
    ]


def test_runs_of_one_arm_differ_in_their_seed_alone():
    assert arm(config_of("registers", 4, 0)) == arm(config_of("registers", 4, 1))
    assert arm(config_of("registers", 4, 0)) != arm(config_of("registers", 8, 0))


def test_a_baseline_is_the_same_whatever_its_registers_would_have_been():
    plain = config_of("baseline", 0, 0)
    other = dataclasses.replace(
        plain,
        registers=RegisterConfig(num_registers=0, init="embedding"),
        training=dataclasses.replace(plain.training, register_learning_rate=0.5),
    )
    assert arm(plain) == arm(other)


def test_arms_with_the_same_name_are_told_apart_by_what_differs():
    one, other = (arm(config_of("registers", 4, 0, learning_rate=rate)) for rate in (1e-4, 2e-4))
    assert [named.label for named in told_apart([one, other]).values()] == [
        "registers, N = 4 (learning_rate 0.0001)",
        "registers, N = 4 (learning_rate 0.0002)",
    ]
