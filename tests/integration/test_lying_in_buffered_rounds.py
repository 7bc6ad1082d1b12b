"""Lies that only buffered rounds offer, told over real TLS to real node processes: each ends in a refusal that names it.

The first is the one that the rules of secagg/README.md, Bounds, are made against: the others are parked on a dead model, at
which nothing is learned, so that the sum would be one hospital's update.
"""

from __future__ import annotations

import numpy as np
import pytest
from lying_session import Session
from wary_hospitals import FIELDS, NODES, WaryHospitals

from hospital_node.state import StateFolder
from proto import federation_pb2 as pb
from proto.layout import model_digest
from study.processes import Family

pytestmark = pytest.mark.sockets

MAX_STALENESS = 2
BUFFERED = FIELDS | {"buffer": {"updates": 3, "max_staleness": MAX_STALENESS}}
READY = pb.NodeReport.READY


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    with Family(1) as family:
        made = WaryHospitals(tmp_path_factory.mktemp("buffered") / "study", family, dict(BUFFERED))
        made.approve(made.plan)
        made.start_node("north")
        made.start_node("east")
        made.coordinator.wait(lambda: made.coordinator.joined(made.uri("north"), made.uri("east")), "both join")
        yield made
        made.coordinator.stop()


def dead(hospitals: WaryHospitals) -> np.ndarray:
    return hospitals.base[::-1].copy()


def bent(session: Session, **rows: dict) -> pb.Open:
    """The Open order with other rows for these members."""
    order = session.honest("open")
    del order.members[:]
    order.members.extend(session.member(name, **rows.get(name, {})) for name in session.names)
    return order


def held(hospitals: WaryHospitals, name: str, base: np.ndarray | None = None) -> None:
    """The hospital holds an update of a round of its own that nobody has seen before."""
    hospitals.round += MAX_STALENESS + 1  # what it held is too old now
    (report,) = hospitals.train(name, base=base).values()
    assert (report.state, report.round) == (READY, hospitals.round)


def nothing_left(session: Session, name: str) -> None:
    assert {"upload", "confirmation", "revealed"}.isdisjoint(session.sent(name))
    assert not session.hospitals.charged(name, session.id)
    session.check_nothing_helps()


@pytest.mark.parametrize("staleness", range(MAX_STALENESS + 1))
def test_without_a_lie_an_update_of_any_allowed_age_enters(hospitals, staleness):
    """What the lies below are told to would otherwise have worked."""
    held(hospitals, "north")
    session = Session(hospitals, "north", staleness=staleness)
    assert session.step("open", "north")["north"].party == session.uri("north")
    assert "upload" not in session.sent("north")


@pytest.mark.parametrize("parked", [("east", "south"), ("east", "south", "west")])
def test_others_parked_on_a_dead_model_are_refused_by_the_victim(hospitals, parked):
    held(hospitals, "north")
    session = Session(hospitals, "north")
    elsewhere = {"base_digest": model_digest(dead(hospitals))}
    refusal = session.refused("open", "north", bent(session, **dict.fromkeys(parked, elsewhere)))
    assert (refusal.code, refusal.culprit) == ("too-few", "unknown")
    assert (
        f"{4 - len(parked)} members are left with this member's own model, beside {len(parked)} with others" in refusal.detail
    )
    nothing_left(session, "north")
    assert not isinstance(session.step("open", "north")["north"], type(refusal)), "the honest session is still open to it"


def test_the_parked_refuse_where_the_rows_say_that_all_share_the_victims_model(hospitals):
    held(hospitals, "east", dead(hospitals))
    session = Session(hospitals, "east")
    refusal = session.refused("open", "east", session.honest("open"))
    assert refusal.code == "wrong-model"
    nothing_left(session, "east")


def test_each_is_told_that_all_share_its_own_model(hospitals):
    """Two contexts under one id: neither takes what the other signed."""
    held(hospitals, "north")
    (report,) = hospitals.train("east", base=dead(hospitals)).values()
    assert report.base_digest == model_digest(dead(hospitals))
    ours = Session(hospitals, "north")
    theirs = Session(hospitals, "east", base=dead(hospitals), session=ours.id)
    ours.step("open", "north", "south", "west")
    theirs.step("open", "east", "west")
    ours.answers["open"]["east"] = theirs.answers["open"]["east"]
    theirs.answers["open"] |= {name: ours.answers["open"][name] for name in ("north", "south")}
    for session, name in ((ours, "north"), (theirs, "east")):
        assert session.refused("share", name, session.honest("share", name)).code == "bad-signature"
        nothing_left(session, name)


@pytest.mark.parametrize("claimed", [0, 2])
def test_an_update_weighed_as_one_of_another_age(hospitals, claimed):
    held(hospitals, "north")
    session = Session(hospitals, "north", staleness=1)
    weight = hospitals.plan.session_weights(session.uri("north"))[claimed]
    refusal = session.refused("open", "north", bent(session, north={"weight": weight}))
    assert refusal.code == "wrong-roster"
    assert "does not weigh this node's update as one of 1 rounds ago" in refusal.detail
    nothing_left(session, "north")


def test_a_weight_that_drowns_the_others(hospitals):
    held(hospitals, "north")
    session = Session(hospitals, "north")
    refusal = session.refused("open", "north", bent(session, east={"weight": 1}, south={"weight": 1}))
    assert refusal.code == "wrong-roster"
    assert "another weight than the plan" in refusal.detail
    nothing_left(session, "north")


def test_an_update_older_than_the_plan_allows_is_let_go_uncharged(hospitals):
    held(hospitals, "north")
    session = Session(hospitals, "north", staleness=MAX_STALENESS)
    session.round += 1
    refusal = session.refused("open", "north", session.honest("open"))
    assert refusal.code == "stale-update"
    assert "rounds old, more than the plan allows: it was let go" in refusal.detail
    nothing_left(session, "north")
    later = Session(hospitals, "north")
    assert later.refused("open", "north", later.honest("open")).code == "no-update"


def test_every_lie_was_told_to_nodes_that_never_released_anything(hospitals):
    for name in NODES[:2]:
        assert hospitals.charges(name) == []
        assert StateFolder(hospitals.world.state(hospitals.role(name))).ledger.exists()
