"""Server rules against their published update, against a textbook in float64, and on a problem with a known answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from coordinator_federation import LAYOUT
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator import optimizer
from coordinator.models import ModelError, ModelFolder
from proto.aggregation import ADAPTIVE, Aggregation

RULES = ("mean", *ADAPTIVE)
means = st.lists(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3), min_size=1, max_size=6)


def settings(rule: str, **fields: float | str) -> Aggregation:
    return Aggregation.model_validate({"rule": rule, "learning_rate": 0.5, "momentum": 0.9, **fields})


def run(chosen: Aggregation, base: np.ndarray, updates: list[np.ndarray]) -> np.ndarray:
    model, memory = base, None
    for number, mean in enumerate(updates, 1):
        model, memory = optimizer.apply(chosen, model, mean, memory, number)
    return model


def textbook(chosen: Aggregation, value: float, updates: list[float]) -> float:
    """One coordinate, in float64, as algorithm 2 of Reddi et al. prints it."""
    beta1, beta2, tau, m, v = chosen.momentum, chosen.second_momentum, chosen.adaptivity, 0.0, chosen.adaptivity**2
    for t, delta in enumerate(updates):
        rate = chosen.learning_rate * chosen.learning_rate_decay**t
        if chosen.rule == "mean":
            m = beta1 * m + delta
            value += rate * m
            continue
        m = beta1 * m + (1 - beta1) * delta
        if chosen.rule == "adagrad":
            v = v + delta**2
        elif chosen.rule == "adam":
            v = beta2 * v + (1 - beta2) * delta**2
        else:
            v = v - (1 - beta2) * delta**2 * math.copysign(1, v - delta**2) * (v != delta**2)
        value += rate * m / (math.sqrt(v) + tau)
    return value


@pytest.mark.parametrize("rule", RULES)
@given(updates=means, decay=st.sampled_from([1.0, 0.9]))
def test_every_rule_is_the_published_one(rule: str, updates: list[list[float]], decay: float) -> None:
    chosen = (
        settings(rule, adaptivity=0.05, learning_rate_decay=decay)
        if rule != "mean"
        else settings(rule, learning_rate_decay=decay)
    )
    base = np.array([0.25, -1.0, 3.0], np.float32)
    found = run(chosen, base, [np.array(mean, np.float32) for mean in updates])
    wanted = [textbook(chosen, float(base[at]), [mean[at] for mean in updates]) for at in range(3)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [("adagrad", 0.5 * 0.1 / (0.5 + math.sqrt(1.25)), 1.25), ("adam", 0.5 * 0.1 / (0.5 + math.sqrt(0.2575)), 0.2575),
     ("yogi", 0.5 * 0.1 / (0.5 + math.sqrt(0.26)), 0.26)],
)  # fmt: skip
def test_the_first_step_by_hand(rule: str, first: float, second: float) -> None:
    model, memory = optimizer.apply(settings(rule, adaptivity=0.5), np.zeros(1, np.float32), np.ones(1, np.float32), None, 1)
    assert model[0] == pytest.approx(first, rel=1e-6)
    assert memory is not None
    np.testing.assert_allclose(memory, [0.1, second], rtol=1e-6)
    assert memory.dtype == np.float32


@pytest.mark.parametrize(
    ("rule", "fields"),
    [("mean", {"learning_rate": 1.0, "momentum": 0.5}), ("adagrad", {"learning_rate": 1.0, "momentum": 0.0}),
     ("adam", {"learning_rate": 0.1}), ("yogi", {"learning_rate": 0.1})],
)  # fmt: skip
def test_every_rule_finds_the_least_of_a_stretched_bowl(rule: str, fields: dict[str, float]) -> None:
    """Hospitals with other least points and one tenth of the curvature along one axis; the update is the mean descent."""
    least, curvature = np.array([2.0, -3.0], np.float32), np.array([1.0, 0.1], np.float32)
    sites = (least + 1, least - 1)
    chosen = settings(rule, learning_rate_decay=0.995, **fields)
    model, memory = np.zeros(2, np.float32), None
    for number in range(1, 1001):
        mean = np.mean([0.5 * curvature * (site - model) for site in sites], axis=0, dtype=np.float32)
        model, memory = optimizer.apply(chosen, model, mean, memory, number)
    np.testing.assert_allclose(model, least, atol=0.05)


def test_adaptive_rules_move_rare_coordinates_as_far_as_frequent_ones() -> None:
    mean = np.array([1.0, 0.01], np.float32)
    plain = run(settings("mean"), np.zeros(2, np.float32), [mean] * 5)
    adam = run(settings("adam"), np.zeros(2, np.float32), [mean] * 5)
    assert plain[0] == pytest.approx(100 * plain[1], rel=1e-4)
    assert adam[0] < 2 * adam[1]


def test_the_rate_falls_round_by_round_in_the_same_bits() -> None:
    chosen = Aggregation(learning_rate=0.3, learning_rate_decay=0.99)
    rates = [chosen.rate(number) for number in range(1, 400)]
    assert rates[0] == 0.3
    assert rates == list(itertools.accumulate([0.99] * 398, lambda rate, factor: rate * factor, initial=0.3))


def test_memory_survives_on_disk_and_that_of_another_rule_is_refused(tmp_path) -> None:
    base, mean = np.zeros(LAYOUT.length, np.float32), np.full(LAYOUT.length, 0.5, np.float32)
    model, memory = optimizer.apply(settings("adam"), base, mean, None, 1)
    folder = ModelFolder(tmp_path, LAYOUT)
    digest = folder.write(model, memory).hex()
    read = folder.read_velocity(digest)
    assert read is not None
    after = [optimizer.apply(settings("adam"), model, mean, one, 2)[0] for one in (memory, read)]
    assert np.array_equal(*after)
    with pytest.raises(ValueError, match=r"holds \d+ values and the plan's rule needs"):
        optimizer.apply(settings("mean"), model, mean, read, 2)
    (tmp_path / f"{digest}.velocity.f32").write_bytes(b"\0" * 4 * (LAYOUT.length + 1))
    with pytest.raises(ModelError, match="values, the plan needs"):
        folder.read_velocity(digest)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"rule": "mean", "adaptivity": 0.1}, "does not read adaptivity"),
     ({"rule": "adagrad", "second_momentum": 0.5}, "does not read second_momentum"),
     ({"rule": "fedprox"}, "Input should be"), ({"learning_rate_decay": 1.5}, "less than or equal to 1")],
)  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Aggregation.model_validate(fields)


@given(updates=means, rule=st.sampled_from(RULES), shares=st.lists(st.floats(0.25, 1), min_size=6, max_size=6))
def test_the_absent_move_as_all_did_when_last_seen(updates: list[list[float]], rule: str, shares: list[float]) -> None:
    """The rule on the estimate, written out in float64, against the rule with `absent`."""
    fields = {} if rule == "mean" else {"adaptivity": 0.05}
    plain, standing_in = settings(rule, **fields), settings(rule, absent="momentum", **fields)
    model, memory, estimates = np.zeros(3, np.float32), None, [np.array(updates[0], np.float64)]
    for number, (mean, share) in enumerate(zip(updates, shares, strict=False), 1):
        model, memory = optimizer.apply(standing_in, model, np.array(mean, np.float32), memory, number, share)
        if number > 1:
            estimates.append(share * np.array(mean) + (1 - share) * estimates[-1])
    wanted = [textbook(plain, 0.0, [float(one[at]) for one in estimates]) for at in range(3)]
    np.testing.assert_allclose(model, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rule", RULES)
def test_where_nobody_is_absent_nothing_stands_in(rule: str) -> None:
    base, updates = np.zeros(3, np.float32), [np.array([1, -1, 0.5], np.float32), np.array([0.25, 2, 0], np.float32)]
    assert np.array_equal(run(settings(rule), base, updates), run(settings(rule, absent="momentum"), base, updates))


def test_a_model_swings_less_where_hospitals_that_differ_take_turns() -> None:
    """Two hospitals with other least points, one in each round, by turns."""
    least = np.array([[1.0], [-1.0]], np.float32)

    def swing(chosen: Aggregation) -> float:
        model, memory, seen = np.zeros(1, np.float32), None, []
        for number in range(1, 41):
            model, memory = optimizer.apply(chosen, model, 0.5 * (least[number % 2] - model), memory, number, 0.5)
            seen.append(float(model[0]))
        return max(seen[-4:]) - min(seen[-4:])

    plain = Aggregation()
    assert swing(Aggregation(absent="momentum")) < 0.75 * swing(plain)


def test_control_variates_leave_no_place_for_a_stand_in() -> None:
    with pytest.raises(ValidationError, match="does not read absent"):
        Aggregation(rule="scaffold", absent="momentum")
