"""How a history was cut into rounds and in which order it came changes no reading of it: through real ledgers, mixed ones too.

Each example writes two ledgers for one set of patients. Both hold the same steps of the same mechanisms; one was charged in
other rounds, by other studies, in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import DELTA, at, make_plan, new_ledger

from hospital_node import ledger_rules as rules
from hospital_node.accounting import Mechanism, best_guess, epsilon, merged
from hospital_node.budget import BudgetView
from hospital_node.crosscheck import prv_epsilon
from hospital_node.ledger import Cap, Ledger
from hospital_node.releases import counted, done
from hospital_node.statement import statement

WIDE = Cap(epsilon=60.0, delta=DELTA)
KINDS = ((1.1, 20), (2.0, 10), (4.0, 5))  # (noise multiplier, one over the rate)
UNIT_STEPS = 5


@dataclass(frozen=True)
class Piece:
    """One round of a study that has this mechanism and so many steps."""

    kind: int
    units: int  # of UNIT_STEPS

    @property
    def mechanism(self) -> Mechanism:
        sigma, k = KINDS[self.kind]
        return Mechanism(sigma, 1 / k, self.units * UNIT_STEPS)


def written(folder: Path, pieces: Sequence[Piece]) -> Ledger:
    """A ledger on which these rounds were charged, in this order, each kind and size by a study of its own."""
    ledger = new_ledger(folder, make_plan(), WIDE)  # the first approval chooses the filter's order, for life
    plans, rounds = {}, dict.fromkeys(pieces, 0)
    for piece in dict.fromkeys(pieces):
        sigma, k = KINDS[piece.kind]
        plans[piece] = make_plan(study=f"s{piece.kind}-{piece.units}", sigma=sigma, k=k, steps=piece.units * UNIT_STEPS)
    for piece in sorted(plans, key=lambda piece: (piece.kind, piece.units)):
        ledger.approve(plans[piece], "Dr Keller", "x", WIDE, at(1))
    for place, piece in enumerate(pieces):
        rounds[piece] += 1
        plan = plans[piece]
        asked = ledger.authorize(plan, rounds[piece])
        ledger.commit(asked, bytes([place]) * 32, bytes([place]) * 16, at(10))
        ledger.record_verified(plan, rounds[piece], at(10))
    return ledger


@st.composite
def two_tellings(draw: st.DrawFn) -> tuple[list[Piece], list[Piece]]:
    """One history, told twice: cut otherwise and in another order."""
    pieces = draw(st.lists(st.builds(Piece, st.integers(0, len(KINDS) - 1), st.integers(1, 4)), min_size=1, max_size=4))
    units = [Piece(piece.kind, 1) for piece in pieces for _ in range(piece.units)]
    again: list[Piece] = []
    for kind in range(len(KINDS)):
        left = sum(unit.kind == kind for unit in units)
        while left:
            size = draw(st.integers(1, left))
            again.append(Piece(kind, size))
            left -= size
    return pieces, draw(st.permutations(again))


def readings(ledger: Ledger) -> tuple[object, ...]:
    """Every figure that anybody reads."""
    view, made = ledger.budget(), statement(ledger.events())
    return (
        view.spent,
        view.read_by,
        view.non_adaptive,
        view.across_hospitals,
        view.recognised,
        made.profile,
        made.recognised,
        best_guess(counted(rules.releases(ledger.events()))),
    )


@settings(max_examples=8)
@given(told=two_tellings())
def test_splitting_merging_and_reordering_change_no_reading(
    told: tuple[list[Piece], list[Piece]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, other = (written(tmp_path_factory.mktemp("told"), pieces) for pieces in told)
    past = [merged(done(rules.releases(ledger.events()))) for ledger in (one, other)]
    assert past[0] == past[1] == merged(piece.mechanism for piece in told[0])
    assert readings(one) == readings(other)
    view: BudgetView = one.budget()
    assert view.read_by == ("pld" if len(past[0]) == 1 else "renyi")
    assert view.spent >= epsilon(past[0], DELTA) > 0


@settings(max_examples=3)
@given(told=two_tellings())
def test_the_second_opinion_of_a_mixed_history_is_the_first_within_its_error(
    told: tuple[list[Piece], list[Piece]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = written(tmp_path_factory.mktemp("told"), told[1])
    past = counted(rules.releases(ledger.events()))
    prv = prv_epsilon(past, DELTA)
    assert prv is not None
    assert prv == pytest.approx(epsilon(past, DELTA), rel=0.01, abs=0.02)
    assert prv == pytest.approx(prv_epsilon([piece.mechanism for piece in told[0]], DELTA), rel=1e-6)


def test_another_step_or_another_noise_is_another_reading(tmp_path: Path) -> None:
    """The comparison above can fail."""
    ledgers = []
    for name, pieces in {
        "a": [Piece(0, 2), Piece(1, 1)],
        "b": [Piece(0, 2), Piece(1, 2)],
        "c": [Piece(0, 2), Piece(2, 1)],
    }.items():
        (tmp_path / name).mkdir()
        ledgers.append(readings(written(tmp_path / name, pieces)))
    assert len({found[0] for found in ledgers}) == len({found[2] for found in ledgers}) == 3
