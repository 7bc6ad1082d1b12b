"""Lies that only a session of more than 100 hospitals offers, where each member holds shares of those who drew it.

One hospital is a real node over real TLS; the others are played here with their own keys and without their own checks, which
are not what is tested. Every lie ends in a refusal that names it, before the answer of its phase has left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from coordinator_lies import instead, of, put
from lying_session import COLLUDER, KIND, PHASES, Session
from wary_hospitals import HOSPITALS, WaryHospitals

from secagg import Sparse, identity
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

SIZE = 104


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    names = (*HOSPITALS, *(f"p{number:03d}" for number in range(SIZE - len(HOSPITALS))))
    with Family(1) as family, pytest.MonkeyPatch.context() as patch:
        made = WaryHospitals(tmp_path_factory.mktemp("sparse") / "study", family, names=names)
        made.approve(made.plan)
        made.start_node("north")
        made.coordinator.wait(lambda: made.coordinator.joined(made.uri("north")), "the node joins")
        patch.setattr(identity, "verify", lambda *_, **__: None)  # members that are played here believe everything
        yield made
        made.coordinator.stop()


def strangers(session: Session) -> list[str]:
    """Who drew not north."""
    place = session.names.index("north")
    return [n for n in session.names if n not in ("north", COLLUDER) and place not in session.answers["open"][n].neighbours]


def friends(session: Session) -> list[str]:
    """Who drew north, so that north holds their shares."""
    return [n for n in session.names if n not in ("north", COLLUDER, *strangers(session))]


def neighbours_of_another(order: Any, session: Session) -> None:
    one, other = of(order.adverts, session, "east"), of(order.adverts, session, "south")
    one.neighbours[:] = other.neighbours


def summary(value: bytes) -> Callable[[Any, Session], None]:
    def change(order: Any, session: Session) -> None:
        put("summary", strangers(session)[0], value)(order, session)

    return change


def summary_where_a_box_is_due(order: Any, session: Session) -> None:
    name = friends(session)[0]
    reader = next(
        n for n in session.names if n != name and session.names.index(n) not in session.answers["open"][name].neighbours
    )
    instead(name, lambda s: s.relayed(s.answers["share"][name], reader))(order, session)


def no_seal(order: Any, session: Session) -> None:
    del order.seals[0]


def seal_of_another(order: Any, session: Session) -> None:
    order.seals[0].digest, order.seals[0].signature = order.seals[1].digest, order.seals[1].signature


def dropped_without_saying(order: Any, session: Session) -> None:
    """A list with more than the threshold, on which too few of one member's holders are left."""
    gone = [session.names[place] for place in session.answers["open"]["east"].neighbours if session.names[place] != "north"]
    kept = [one for one in order.survivors if one not in set(map(session.uri, gone))]
    seals = [seal for seal in order.seals if seal.party in kept]
    del order.survivors[:], order.seals[:]
    order.survivors.extend(kept)
    order.seals.extend(seals)


@dataclass(frozen=True)
class SparseLie:
    name: str
    phase: str
    change: Callable[[Any, Session], None]
    code: str
    culprit: str = "unknown"


LIES = (
    SparseLie("neighbours of another", "share", neighbours_of_another, "bad-signature"),
    SparseLie(
        "a colluder that drew itself too few",
        "share",
        instead("west", lambda s: s.signed_advert(neighbours=tuple(s.answers["open"]["west"].neighbours)[1:])),
        "bad-neighbours",
        "west",
    ),
    SparseLie("another summary", "mask", summary(b"s" * 32), "bad-signature"),
    SparseLie("no summary", "mask", summary(b""), "malformed"),
    SparseLie("a summary where a box is due", "mask", summary_where_a_box_is_due, "malformed"),
    SparseLie("a survivor without its seal", "confirm", no_seal, "never-uploaded"),
    SparseLie("a survivor with another's seal", "confirm", seal_of_another, "bad-signature"),
    SparseLie("the holders of one member dropped", "confirm", dropped_without_saying, "too-few"),
)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie.phase}: {lie.name}")
def test_a_lie_in_a_sparse_session(hospitals: WaryHospitals, lie: SparseLie) -> None:
    hospitals.ready("north")
    session = Session(hospitals, "north").until(lie.phase)
    order = session.honest(lie.phase, "north")
    lie.change(order, session)
    refusal = session.refused(lie.phase, "north", order)
    culprit = lie.culprit if lie.culprit == "unknown" else session.uri(lie.culprit)
    assert (refusal.code, refusal.culprit) == (lie.code, culprit), refusal
    assert hospitals.refusals_logged("north")[-1] == {"phase": lie.phase, "code": lie.code, "culprit": culprit}
    assert KIND[lie.phase] not in session.sent("north")
    assert hospitals.charged("north", session.id) == (lie.phase == "confirm")
    session.check_nothing_helps()


def test_a_share_set_hidden_from_one_node_shows_in_the_seals(hospitals: WaryHospitals) -> None:
    """North masks with one sharer fewer than everybody else: their uploads were signed over other sharers than it saw."""
    hospitals.ready("north")
    session = Session(hospitals, "north").until("mask")
    hidden = strangers(session)[0]
    told = session.honest("mask", "north")
    told.sets.remove(of(told.sets, session, hidden))
    session.step("mask", north=told)
    order = session.honest("confirm", "north")
    order.survivors.remove(session.uri(hidden))
    assert session.refused("confirm", "north", order).code == "bad-signature"
    session.check_nothing_helps()


def test_without_a_lie_the_same_session_opens_the_mean(hospitals: WaryHospitals) -> None:
    hospitals.ready("north")
    session = Session(hospitals, "north")
    assert isinstance(session.params.graph, Sparse)
    for phase in PHASES:
        session.step(phase)
    assert session.refusals == []
    expected = np.mean([hospitals.update(name) for name in hospitals.names], axis=0)
    assert np.abs(session.mean() - expected).max() < 1e-4
    session.tell_result("north", session.result())
    assert hospitals.kinds("north")[-2:] == ["charge", "verified"]
    session.check_nothing_helps()
