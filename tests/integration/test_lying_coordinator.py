"""Every lie that a coordinator can tell, told over real TLS to real node processes: each ends in a refusal that names it.

Nothing that helps the liar has left by then: no answer of the phase in which the lie was told, no upload before a charge, one
signed list, one kind of share of each peer. What leaves is judged by what arrived at the liar, not by what the node says.
"""

from __future__ import annotations

import re
from contextlib import contextmanager

import numpy as np
import pytest
from coordinator_lies import LIES, Lie, instead, items, without
from lying_session import KIND, PHASES, Refusal, Session
from wary_hospitals import HOSPITALS, NODES, WaryHospitals

from proto import federation_pb2 as pb
from proto.layout import model_digest
from study.processes import Family

pytestmark = pytest.mark.sockets

READY, DECLINED = pb.NodeReport.READY, pb.NodeReport.DECLINED
CHARGED = ("confirm", "reveal")  # phases before which the upload left


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    with Family(1) as family:
        made = WaryHospitals(tmp_path_factory.mktemp("wary") / "study", family)
        made.approve(made.plan)
        made.start_all()
        made.past = honest_round(made)
        yield made
        made.coordinator.stop()


def honest_round(hospitals):
    hospitals.ready(*NODES)
    session = Session(hospitals, *NODES)
    for phase in PHASES:
        session.step(phase)
    for name in NODES:
        session.tell_result(name, session.result())
    return session


@contextmanager
def shown(hospitals, plan, *names):
    """These nodes are offered another plan than the others."""
    uris = [hospitals.uri(name) for name in names]
    hospitals.coordinator.plans.update(dict.fromkeys(uris, plan))
    hospitals.coordinator.rejoin(*uris)
    try:
        yield
    finally:
        hospitals.coordinator.plans.clear()
        hospitals.coordinator.rejoin(*uris)


def check_split(ours, theirs, phase, code):
    """Two nodes in two contexts under one session id: neither takes what the other signed, and nothing was released."""
    for session, name in ((ours, "north"), (theirs, "east")):
        assert session.refused(phase, name, session.honest(phase, name)).code == code
        assert session.hospitals.refusals_logged(name)[-1] == {"phase": phase, "code": code, "culprit": "unknown"}
        nothing_released(session)


def nothing_released(session):
    for name in session.real:
        assert {"upload", "confirmation", "revealed"}.isdisjoint(session.sent(name))
        assert not session.hospitals.charged(name, session.id)
    session.check_nothing_helps()


def test_without_a_lie_the_same_coordinator_opens_the_mean(hospitals):
    """What the lies below are told to would otherwise have worked; otherwise none of them proves anything."""
    session = honest_round(hospitals)
    assert session.refusals == []
    expected = np.mean([hospitals.update(name) for name in HOSPITALS], axis=0)
    assert np.abs(session.mean() - expected).max() < 2e-6
    session.check_nothing_helps()
    for name in NODES:
        assert hospitals.kinds(name)[-2:] == ["charge", "verified"]
        assert hospitals.refusals_logged(name) == []


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie.phase}: {lie.name}")
def test_a_lie_in_one_order(hospitals: WaryHospitals, lie: Lie) -> None:
    hospitals.ready(lie.victim)
    log_before = hospitals.log(lie.victim).stat().st_size
    session = Session(hospitals, lie.victim).until(lie.phase)
    order = session.honest(lie.phase, lie.victim)
    lie.change(order, session)
    assert order != session.honest(lie.phase, lie.victim)
    told_at = len(hospitals.coordinator.received)

    refusal = session.refused(lie.phase, lie.victim, order)

    culprit = lie.culprit if lie.culprit == "unknown" else session.uri(lie.culprit)
    assert (refusal.code, refusal.culprit) == (lie.code, culprit), refusal
    assert re.search(lie.detail, refusal.detail), refusal
    assert hospitals.refusals_logged(lie.victim, log_before) == [{"phase": lie.phase, "code": lie.code, "culprit": culprit}]
    assert KIND[lie.phase] not in session.sent(lie.victim, told_at)
    assert hospitals.charged(lie.victim, session.id) == (lie.phase in CHARGED)
    after_the_lie(session, lie)
    session.check_nothing_helps()


def after_the_lie(session: Session, lie: Lie) -> None:
    """The honest order comes too late, unless the session was never entered or the lie changed nothing."""
    again = session.step(lie.phase, lie.victim)[lie.victim]
    if lie.phase == "open" or not lie.ends:
        assert not isinstance(again, Refusal), again
    else:
        assert again.code == "session-ended"


# ---- asked again ----


@pytest.mark.parametrize("phase", PHASES)
def test_the_same_question_again_gets_the_same_bytes(hospitals, phase):
    hospitals.ready("north")
    session = Session(hospitals, "north").until(phase)
    first, again = (session.step(phase, "north")["north"] for _ in range(2))
    assert first == again
    assert session.sent("north").count(KIND[phase]) == 2
    session.check_nothing_helps()


@pytest.mark.parametrize("phase", PHASES)
def test_another_question_in_an_answered_phase(hospitals, phase):
    hospitals.ready("north")
    session = Session(hospitals, "north").until(phase)
    session.step(phase, "north")
    other = session.honest(phase, "north")
    del items(other)[-1]
    refusal = session.refused(phase, "north", other)
    assert refusal.code == "second-question"
    assert hospitals.refusals_logged("north")[-1] == {"phase": phase, "code": "second-question", "culprit": "unknown"}
    assert session.refused(phase, "north", session.honest(phase, "north")).code == "session-ended"
    assert session.sent("north").count(KIND[phase]) == 1
    session.check_nothing_helps()


@pytest.mark.parametrize(
    ("done", "asked"),
    [("open", "mask"), ("open", "confirm"), ("open", "reveal"), ("share", "confirm"), ("share", "reveal"), ("mask", "reveal")],
)
def test_a_phase_asked_before_its_turn(hospitals, done, asked):
    """The refusal changes nothing: the session goes on in the right order."""
    hospitals.ready("north")
    following = PHASES[PHASES.index(done) + 1]
    session = Session(hospitals, "north").until(following)
    early = {
        "mask": hospitals.past.honest("mask", "north"),
        "confirm": pb.Confirm(survivors=sorted(map(session.uri, HOSPITALS))),
        "reveal": hospitals.past.honest("reveal"),
    }[asked]
    early.session = session.id
    assert session.refused(asked, "north", early).code == "out-of-place"
    assert hospitals.refusals_logged("north")[-1] == {"phase": asked, "code": "out-of-place", "culprit": "unknown"}
    assert KIND[asked] not in session.sent("north")
    assert not isinstance(session.step(following)["north"], Refusal)
    session.check_nothing_helps()


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_session_that_another_one_replaced(hospitals, phase):
    hospitals.ready("north")
    session = Session(hospitals, "north").until("mask")
    question = session.honest(phase, "north")
    Session(hospitals, "north").step("open")
    assert session.refused(phase, "north", question).code == "unknown-session"
    again = session.refused("open", "north", session.honest("open"))
    assert again.code == "session-repeated"
    session.check_nothing_helps()


@pytest.mark.parametrize("phase", PHASES)
def test_every_question_again_after_the_result(hospitals, phase):
    past = hospitals.past
    refusal = past.refused(phase, "north", past.honest(phase, "north"))
    assert refusal.code == ("no-update" if phase == "open" else "unknown-session")
    past.check_nothing_helps()


def test_a_released_update_joins_no_other_session(hospitals):
    hospitals.ready("north")
    session = Session(hospitals, "north").until("confirm")
    other = Session(hospitals, "north")
    assert other.refused("open", "north", other.honest("open")).code == "no-update"
    assert not isinstance(session.step("confirm")["north"], Refusal), "the session that it belongs to goes on"
    session.check_nothing_helps()


def test_an_upload_cut_in_the_middle_comes_again_with_the_same_bytes(hospitals):
    hospitals.ready("north")
    session = Session(hospitals, "north").until("mask")
    hospitals.coordinator.cut_uploads = 1
    session.step("mask")
    hospitals.coordinator.wait(lambda: session.sent("north").count("upload") == 2, "the upload comes again")
    session.check_nothing_helps()
    assert [charge.session for charge in hospitals.charges("north")].count(session.id.hex()) == 1


# ---- several nodes are told different things ----


def test_different_rosters(hospitals):
    """`north` is shown four members and `east` three: their adverts are signed in two contexts."""
    hospitals.ready("north", "east")
    four = Session(hospitals, "north")
    three = Session(hospitals, "east", names=("north", "east", "west"), session=four.id)
    four.step("open", "north", "south", "west")
    three.step("open", "east", "west")
    four.answers["open"]["east"] = three.answers["open"]["east"]
    three.answers["open"]["north"] = four.answers["open"]["north"]
    check_split(four, three, "share", "bad-signature")


def test_different_models(hospitals):
    """Each node is trained on a model of its own and then told that everybody has its base."""
    hospitals.round += 1
    other_base = hospitals.base[::-1].copy()
    assert hospitals.train("north")["north"].state == hospitals.train("east", base=other_base)["east"].state == READY
    ours, theirs = Session(hospitals, "north"), Session(hospitals, "east", base=other_base)
    theirs.id = ours.id
    mixed = ours.honest("open")
    for member in mixed.members:
        if member.uri == ours.uri("east"):
            member.base_digest = theirs.base
    for name in ("north", "east"):
        refusal = ours.refused("open", name, mixed) if name == "north" else theirs.refused("open", name, mixed)
        assert (refusal.code, "mixes updates of different models" in refusal.detail) == ("wrong-model", True)
    ours, theirs = Session(hospitals, "north"), Session(hospitals, "east", base=other_base, session=ours.id)
    ours.step("open", "north", "south", "west")
    theirs.step("open", "east", "west")
    ours.answers["open"]["east"] = theirs.answers["open"]["east"]
    theirs.answers["open"] |= {name: ours.answers["open"][name] for name in ("north", "south")}
    check_split(ours, theirs, "share", "bad-signature")


def test_different_plans(hospitals):
    """Both plans were approved here; with the wider clip a sum of `east` and `north` would be read on two scales."""
    wider = hospitals.make_plan(update_clip=1.0)
    hospitals.approve(wider)
    with shown(hospitals, wider, "east"):
        hospitals.ready("north", "east")
        ours = Session(hospitals, "north")
        theirs = Session(hospitals, "east", plan=wider, session=ours.id)
        ours.step("open", "north", "south", "west")
        theirs.step("open", "east", "west")
        ours.answers["open"]["east"] = theirs.answers["open"]["east"]
        theirs.answers["open"] |= {name: ours.answers["open"][name] for name in ("north", "south")}
        check_split(ours, theirs, "share", "bad-signature")


def test_two_adverts_of_one_colluder(hospitals):
    """`north` sees one and everybody else the other: the share sets were signed over what their senders saw."""
    hospitals.ready(*NODES)
    session = Session(hospitals, *NODES).until("share")
    twin = session.signed_advert(seed_commitment=b"c" * 32)
    told = session.honest("share")
    instead("west", lambda _: twin)(told, session)
    session.step("share", north=told)
    refusals = session.step("mask", *NODES)
    assert {name: refusal.code for name, refusal in refusals.items()} == dict.fromkeys(NODES, "bad-signature")
    nothing_released(session)


def test_an_advert_hidden_from_one_node(hospitals):
    hospitals.ready(*NODES)
    session = Session(hospitals, *NODES).until("share")
    told = session.honest("share")
    without("south")(told, session)
    session.step("share", north=told)
    refusals = session.step("mask", *NODES)
    assert {name: refusal.code for name, refusal in refusals.items()} == dict.fromkeys(NODES, "malformed")
    nothing_released(session)


@pytest.mark.parametrize("listed", [True, False], ids=["listed as alive", "listed as lost"])
def test_a_share_set_hidden_from_one_node(hospitals, listed):
    """`north` masks without `east`. Then no list is both signed by it and confirmed by the others."""
    hospitals.ready("north", "east")
    session = Session(hospitals, "north", "east").until("mask")
    told = session.honest("mask", "north")
    without("east")(told, session)
    session.step("mask", north=told)
    names = HOSPITALS if listed else ("north", "south", "west")
    order = pb.Confirm(session=session.id, survivors=sorted(map(session.uri, names)))
    if listed:
        assert session.refused("confirm", "north", order).code == "never-shared"
    else:
        session.ask("confirm", dict.fromkeys(names, order))
        assert session.refused("reveal", "north", session.honest("reveal")).code == "bad-signature"
    assert "revealed" not in session.sent("north")
    session.check_nothing_helps()


@pytest.mark.parametrize("east", ["alive", "lost"])
@pytest.mark.parametrize("south", ["alive", "lost"])
def test_lists_on_which_north_is_alive_and_dropped(hospitals, east, south):
    """The split-list attack on `north`, with one colluder: whoever is shown which list, one of its secrets stays closed."""
    hospitals.ready("north", "east")
    session = Session(hospitals, "north", "east").until("confirm")
    lists = {"alive": HOSPITALS, "lost": ("east", "south", "west")}
    shown_to = {"north": "alive", "east": east, "south": south}
    orders = {
        name: pb.Confirm(session=session.id, survivors=sorted(map(session.uri, lists[which])))
        for name, which in shown_to.items()
    }
    session.ask("confirm", orders)
    for which, members in lists.items():
        signers = [name for name in members if shown_to.get(name) == which]
        signed = [session.answers["confirm"][name] for name in signers] + [session.signed_list(*members)]
        reveal = pb.Reveal(session=session.id, confirmations=signed)
        for name in signers:
            if name in session.real or len(signed) >= session.params.threshold:
                answer = session.ask("reveal", {name: reveal})[name]
                assert (getattr(answer, "code", "") == "too-few") == (len(signed) < session.params.threshold)
    session.check_nothing_helps()


def test_a_node_that_signed_everybody_alive_signs_nobody_dropped(hospitals):
    """Alive first, for the seeds; then dropped, for the keys."""
    hospitals.ready(*NODES)
    session = Session(hospitals, *NODES).until("reveal")
    session.step("reveal")
    later = pb.Confirm(session=session.id, survivors=sorted(map(session.uri, ("east", "south", "west"))))
    for name in ("east", "south"):
        assert session.refused("confirm", name, later).code == "second-question"
    assert [session.sent(name).count("confirmation") for name in NODES] == [1, 1, 1]
    session.check_nothing_helps()


def test_a_survivor_that_never_shared(hospitals):
    hospitals.ready("north")
    session = Session(hospitals, "north").until("share")
    session.step("share", "north", "east", "south")
    session.step("mask")
    order = pb.Confirm(session=session.id, survivors=sorted(map(session.uri, HOSPITALS)))
    assert session.refused("confirm", "north", order).code == "never-shared"
    assert "confirmation" not in session.sent("north")
    session.check_nothing_helps()


# ---- restarts ----


def test_a_coordinator_started_again_gets_the_same_bytes_and_no_second_list(hospitals):
    hospitals.ready("north")
    session = Session(hospitals, "north").until("confirm")
    first = session.step("confirm", "north")["north"]
    hospitals.coordinator.stop()
    hospitals.coordinator.forget()
    hospitals.coordinator.start()
    assert session.step("confirm", "north")["north"] == first
    other = session.honest("confirm")
    other.survivors.remove(session.uri("east"))
    assert session.refused("confirm", "north", other).code == "second-question"
    assert session.sent("north").count("confirmation") == 2
    session.check_nothing_helps()


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_node_started_again_knows_nothing_of_its_session(hospitals, phase):
    """The same questions and the session id come again, to a process that lost its memory in the middle of the session."""
    hospitals.ready("north")
    session = Session(hospitals, "north").until(phase)
    session.step(phase, "north")
    sent = session.sent("north")
    hospitals.power_cut("north")
    for asked in PHASES[1 : PHASES.index(phase) + 1]:
        assert session.refused(asked, "north", session.honest(asked, "north")).code == "unknown-session"
    report = hospitals.train("north")["north"]
    if phase == "share":
        assert report.state == READY
        assert session.refused("open", "north", session.honest("open")).code == "session-repeated"
    else:
        assert (report.state, report.code) == (DECLINED, "already-released")
        assert "charged and released before" in hospitals.sentence("north")
        assert session.refused("open", "north", session.honest("open")).code == "no-update"
    assert [kind for kind in session.sent("north") if kind != "refusal"] == sent
    session.check_nothing_helps()


# ---- before masking: plan, model, round ----


@pytest.mark.parametrize("masking", [{"update_clip": 5.0}, {"lanes": 2}, {"threshold": 2}, {"minimum_cohort": 4}], ids=str)
def test_a_plan_that_nobody_approved(hospitals, masking):
    hospitals.ready("north")
    with shown(hospitals, hospitals.make_plan(**masking), "north"):
        report = hospitals.train("north")["north"]
        session = Session(hospitals, "north")
        assert session.refused("open", "north", session.honest("open")).code == "no-update"
    assert (report.state, report.code) == (DECLINED, "policy" if "threshold" in masking else "not-approved")
    nothing_released(session)


def test_an_approved_plan_with_a_threshold_that_collusion_breaks(hospitals):
    low = hospitals.make_plan(threshold=2)
    hospitals.approve(low)
    with shown(hospitals, low, "north"):
        report = hospitals.train("north", number=1)["north"]
        assert "no cohort of the plan withstands the 1 colluders" in hospitals.sentence("north")
    assert (report.state, report.code) == (DECLINED, "policy")


def test_an_approved_plan_with_a_threshold_that_no_cohort_reaches(hospitals):
    high = hospitals.make_plan(threshold=5)
    hospitals.approve(high)
    with shown(hospitals, high, "north"):
        report = hospitals.train("north", number=1)["north"]
    assert (report.state, report.code) == (DECLINED, "policy")


def test_an_approved_plan_whose_weights_isolate_one_hospital(hospitals):
    """People may overlook it; the node does not: the sum of such a cohort is one hospital's update."""
    isolating = hospitals.make_plan(weights=(1, 60, 1, 1))
    hospitals.approve(isolating)
    with shown(hospitals, isolating, "north"):
        hospitals.ready("north")
        session = Session(hospitals, "north", plan=isolating)
        refusal = session.refused("open", "north", session.honest("open"))
    assert (refusal.code, "the weights amount to" in refusal.detail) == ("too-few", True)
    nothing_released(session)


def test_another_plan_in_the_middle_of_a_session(hospitals):
    """The update was trained under the plan that was approved; with another one it is gone, and the session with it."""
    hospitals.ready("north")
    session = Session(hospitals, "north").until("mask")
    question = session.honest("mask", "north")
    with shown(hospitals, hospitals.make_plan(update_clip=5.0), "north"):
        assert session.refused("mask", "north", question).code == "unknown-session"
    assert session.refused("mask", "north", question).code == "unknown-session"
    nothing_released(session)


@pytest.mark.parametrize("phase", ["mask", "confirm", "reveal"])
def test_an_order_to_train_in_the_middle_of_a_session(hospitals, phase):
    """The session is over with it: what was signed and revealed before stays all that there is."""
    hospitals.ready("north")
    session = Session(hospitals, "north").until(phase)
    question = session.honest(phase, "north")
    base = hospitals.base[::-1].copy() if phase == "mask" else None
    hospitals.round += phase != "mask"
    assert hospitals.train("north", base=base)["north"].state == READY
    assert session.refused(phase, "north", question).code == "unknown-session"
    assert KIND[phase] not in session.sent("north")
    assert hospitals.charged("north", session.id) == (phase in CHARGED)
    session.check_nothing_helps()


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (lambda base: base[::-1].tobytes(), "does not have the announced digest"),
        (lambda base: base.tobytes() + bytes(4), "more of the model than it announced"),
        (lambda base: base.tobytes()[:-4], "does not have the announced digest"),
    ],
    ids=["another one", "a longer one", "a shorter one"],
)
def test_another_model_than_announced(hospitals, sent, sentence):
    hospitals.round += 1
    digest = model_digest(hospitals.base)
    mine = hospitals.coordinator.models_of[hospitals.uri("north")]
    mine[digest] = sent(hospitals.base.astype("<f4"))
    try:
        report = hospitals.train("north")["north"]
    finally:
        mine.clear()
    assert (report.state, report.code) == (DECLINED, "wrong-model")
    assert sentence in hospitals.sentence("north")


@pytest.mark.parametrize(
    ("number", "code", "sentence"),
    [
        (lambda h: h.past.round, "already-released", "charged and released before"),
        (lambda h: h.plan.rounds + 1, "not-approved", "may not run"),
        (lambda h: (1 << 32) - 1, "not-approved", "may not run"),
    ],
    ids=["released before", "past the last", "far past the last"],
)
def test_a_round_that_may_not_run(hospitals, number, code, sentence):
    report = hospitals.train("north", number=number(hospitals))["north"]
    assert (report.state, report.code) == (DECLINED, code)
    assert sentence in hospitals.sentence("north")


# ---- the result ----

RESULTS = {  # what is announced, after which phase, and how the node names it
    "a list without me": ("reveal", lambda s: {"survivors": [s.uri("east"), s.uri("south"), s.uri("west")]}, "result-altered"),
    "a list without a peer": (
        "reveal",
        lambda s: {"survivors": [s.uri("east"), s.uri("north"), s.uri("west")]},
        "result-altered",
    ),
    "nobody survived": ("reveal", lambda s: {"survivors": []}, "result-altered"),
    "a survivor twice": ("reveal", lambda s: {"survivors": [s.uri("east")] * 2 + [s.uri("north")]}, "malformed"),
    "another round": ("reveal", lambda s: {"round": s.hospitals.past.round}, "result-altered"),
    "opened before anything was revealed": ("confirm", lambda s: {}, "out-of-place"),
    "opened before anything was confirmed": ("mask", lambda s: {}, "out-of-place"),
}


@pytest.mark.parametrize("lie", RESULTS)
def test_a_result_that_is_a_lie_is_no_verified_one(hospitals, lie):
    last, change, code = RESULTS[lie]
    hospitals.ready("north")
    session = Session(hospitals, "north").until(last)
    session.step(last)
    log_before = hospitals.log("north").stat().st_size
    session.tell_result("north", session.result(**change(session)))
    assert hospitals.refusals_logged("north", log_before) == [{"phase": "result", "code": code, "culprit": "unknown"}]
    assert hospitals.kinds("north")[-1] == "charge"
    assert session.refused("reveal", "north", hospitals.past.honest("reveal") if last != "reveal" else session.honest("reveal"))
    session.check_nothing_helps()


@pytest.mark.parametrize("opened", [True, False], ids=["opened by the others", "aborted"])
def test_a_result_without_a_node_that_signed_no_list_is_no_lie(hospitals, opened):
    """It was away when the list was made: nothing is refused, and nothing is verified either."""
    hospitals.ready("north")
    log_before = hospitals.log("north").stat().st_size
    session = Session(hospitals, "north").until("confirm")
    others = [uri for uri in session.result().survivors if uri != session.uri("north")]
    session.tell_result("north", session.result(survivors=others, opened=opened))
    assert hospitals.refusals_logged("north", log_before) == []
    assert hospitals.kinds("north")[-1] == "charge"
    assert session.refused("confirm", "north", session.honest("confirm")).code == "unknown-session"


def test_a_result_of_another_session_changes_nothing(hospitals):
    hospitals.ready("north")
    session = Session(hospitals, "north").until("confirm")
    session.tell_result("north", hospitals.past.result())
    assert hospitals.kinds("north")[-1] == "charge"
    assert not isinstance(session.step("confirm", "north")["north"], Refusal)
    session.check_nothing_helps()
