"""The installed `secagg-node`, with its own network and training, against the liar: refusals, the pause, and `resume`.

Two releases in a row without a verified result, and the node pauses itself until people have looked: a coordinator that
aborts every session would otherwise drain the privacy budget.
"""

from __future__ import annotations

import json

import pytest
from coordinator_lies import LIES
from lying_session import KIND, PHASES, Refusal, Session
from wary_hospitals import FIELDS, WaryHospitals

from proto import federation_pb2 as pb
from study import synthetic
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

PRIVATE = {**FIELDS, "privacy": {"noise_multiplier": 2.0, "inverse_sampling_rate": 2, "delta": 1e-3}, "rounds": 20}
BEFORE_RELEASE = (
    "a peer's key that nobody confirmed",
    "a session id of another length",
    "a masking key of the liar's",
    "another reader's box",
    "a colluder's spoiled box",
)
AFTER_RELEASE = ("a list without me", "too few signatures")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    with Family(1) as family:
        made = WaryHospitals(tmp_path_factory.mktemp("installed") / "study", family, PRIVATE, installed=True)
        synthetic.write_cohort(made.role("north").data, 0, 4, 5)
        made.approve(made.plan)
        made.start_node("north")
        made.coordinator.wait(lambda: made.coordinator.joined(made.uri("north")), "the node joins", within_s=240)
        yield made
        made.coordinator.stop()


def told(hospitals, name):
    """One lie of the table, told to `north`; it is refused and named."""
    lie = next(lie for lie in LIES if lie.name == name)
    session = Session(hospitals, "north").until(lie.phase)
    order = session.honest(lie.phase, "north")
    lie.change(order, session)
    refusal = session.refused(lie.phase, "north", order)
    assert refusal.code == lie.code
    assert hospitals.refusals_logged("north")[-1]["code"] == lie.code
    assert KIND[lie.phase] not in session.sent("north")
    session.check_nothing_helps()
    return session


def test_the_installed_node_refuses_pauses_and_goes_on_when_people_have_looked(hospitals):
    hospitals.round = 1
    assert hospitals.train("north")["north"].state == pb.NodeReport.READY
    for name in BEFORE_RELEASE:
        assert not hospitals.charged("north", told(hospitals, name).id)

    assert hospitals.charged("north", told(hospitals, AFTER_RELEASE[0]).id)
    hospitals.round = 2
    assert hospitals.train("north")["north"].state == pb.NodeReport.READY
    assert hospitals.charged("north", told(hospitals, AFTER_RELEASE[1]).id)

    hospitals.round = 3
    report = hospitals.train("north")["north"]
    assert (report.state, report.code) == (pb.NodeReport.DECLINED, "paused")
    assert "2 releases in a row were charged and no result came back" in hospitals.sentence("north")
    assert "code=paused" in hospitals.log("north").read_text().splitlines()[-1]
    session = Session(hospitals, "north")
    assert session.refused("open", "north", session.honest("open")).code == "no-update"
    config = hospitals.world.config(hospitals.role("north"))
    assert json.loads(hospitals.run_command("budget", "--config", config, "--json"))["state"] == "paused"

    count = len(hospitals.coordinator.received)
    assert "Resumed by Dr Test" in hospitals.run_command(
        "resume", "--config", config, "--by", "Dr Test", "--reason", "asked them"
    )
    hospitals.coordinator.give(hospitals.uri("north"), wait=pb.Wait(reason="nothing new"))

    def ready():
        reports = hospitals.coordinator.after(count, hospitals.uri("north"), {"report"})
        return [one.message.round for one in reports if one.message.state == pb.NodeReport.READY] == [3]

    hospitals.coordinator.wait(ready, "the node takes up the round that it declined")
    session = Session(hospitals, "north")
    for phase in PHASES:
        assert not isinstance(session.step(phase)["north"], Refusal)
    session.tell_result("north", session.result())
    assert hospitals.kinds("north")[-4:] == ["charge", "resume", "charge", "verified"]
