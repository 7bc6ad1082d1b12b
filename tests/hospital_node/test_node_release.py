"""The road of one update: an honest session end to end, the order ledger-before-byte, every lie before it, and restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_world import (
    BASE,
    EVALUATOR,
    LAYOUT,
    ME,
    NAMES,
    NOW_S,
    Counter,
    Folders,
    Rehearsal,
    approve,
    make_desk,
    make_folders,
    make_plan,
    uri,
)

from hospital_node.ledger import Charge, Ledger, LedgerError
from hospital_node.release import Outcome, ReleaseDesk, UpdateUnusable
from hospital_node.session import Charged, MaskingSession, Member, SessionRefused
from hospital_node.state import StateFolder
from proto import federation_pb2 as pb
from proto import wire
from proto.layout import model_digest
from proto.plan import DECLINE_CODES
from secagg import Policy, RoundParams

PLAN = make_plan()
UPDATE = np.linspace(-0.5, 0.5, LAYOUT.length, dtype=np.float32)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("study"))


@dataclass
class Here:
    """A node that holds a trained update of round 1, and an honest coordinator."""

    folders: Folders
    desk: ReleaseDesk
    coordinator: Rehearsal

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.folders.state.ledger)

    def charges(self) -> list[Charge]:
        return [event.entry for event in self.ledger.events() if isinstance(event.entry, Charge)]

    def hold(self, round_number: int = 1) -> None:
        self.desk.hold(UPDATE.copy(), model_digest(BASE), self.ledger.authorize(PLAN, round_number))

    def restart(self) -> None:
        self.desk = make_desk(self.folders, PLAN, lambda: self.ledger)

    def to_share(self) -> pb.Share:
        return self.coordinator.take_advert(self.desk.open(self.coordinator.order))

    def to_mask(self) -> pb.Mask:
        return self.coordinator.take_shares(self.desk.share(self.to_share()))

    def to_confirm(self) -> pb.Confirm:
        _, upload = self.desk.mask(self.to_mask())
        return self.coordinator.take_upload(b"".join(bytes(part) for part in upload.pieces()))

    def to_reveal(self) -> pb.Reveal:
        return self.coordinator.take_confirmation(self.desk.confirm(self.to_confirm()))


@pytest.fixture
def here(study: Folders, tmp_path: Path) -> Iterator[Here]:
    folders = Folders(tmp_path, study.identities)
    folders.state.create()
    approve(folders.state.open_ledger(ME, datetime.fromtimestamp(NOW_S, UTC)), PLAN)
    world = Here(folders, make_desk(folders, PLAN, lambda: Ledger.open(folders.state.ledger)), Rehearsal(PLAN, study))
    world.hold()
    return world


def refused(call: Callable[[], Any]) -> SessionRefused:
    with pytest.raises(SessionRefused) as caught:
        call()
    return caught.value


# ---- the honest session ----


def test_an_honest_session_opens_the_mean_and_is_recorded_as_verified(here: Here) -> None:
    result = here.coordinator.take_revealed(here.desk.reveal(here.to_reveal()))
    assert here.desk.result(result) is Outcome.COUNTED
    expected = np.mean([UPDATE, *(peer.update for peer in here.coordinator.peers)], axis=0)
    assert np.allclose(here.coordinator.opened.mean, expected, atol=2e-6)
    kinds = [event.kind for event in here.ledger.events()]
    assert kinds[-2:] == ["charge", "verified"]


def test_the_charge_names_round_session_and_mechanism(here: Here) -> None:
    here.desk.mask(here.to_mask())
    (charge,) = here.charges()
    assert (charge.round, charge.session) == (1, here.coordinator.session.hex())
    assert (charge.noise_multiplier, charge.sampling_rate, charge.steps) == (4.0, 0.25, 2)


def test_the_receipt_in_the_header_is_the_ledgers(here: Here) -> None:
    charged, _ = here.desk.mask(here.to_mask())
    assert len(charged.receipt) == 32
    assert charged.receipt != here.ledger.head


# ---- order: ledger before the first byte ----


def test_no_masked_word_exists_before_the_commit(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    commit, mask = Ledger.commit, MaskingSession.mask

    def committing(self: Ledger, *args: Any) -> Any:
        order.append("commit")
        return commit(self, *args)

    def masking(self: MaskingSession, *args: Any) -> Any:
        order.append(f"mask after {len(here.charges())} charges")
        return mask(self, *args)

    monkeypatch.setattr(Ledger, "commit", committing)
    monkeypatch.setattr(MaskingSession, "mask", masking)
    here.desk.mask(here.to_mask())
    assert order == ["commit", "mask after 1 charges"]


def test_a_crash_between_commit_and_upload_counts_as_spent_and_is_never_released_again(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = here.to_mask()

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MaskingSession, "mask", power_cut)
    with pytest.raises(KeyboardInterrupt):
        here.desk.mask(order)
    monkeypatch.undo()
    assert len(here.charges()) == 1
    assert refused(lambda: here.desk.mask(order)).code == "no-update"
    here.restart()
    with pytest.raises(LedgerError, match="released once"):
        here.hold()
    assert len(here.charges()) == 1


def test_a_commit_that_fails_releases_nothing_and_drops_the_update(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    order = here.to_mask()
    here.ledger.pause("Dr Keller", "wait", datetime.fromtimestamp(1.8e9).astimezone())
    refusal = refused(lambda: here.desk.mask(order))
    assert (refusal.code, refusal.detail) == ("paused", DECLINE_CODES["paused"])
    assert here.charges() == []
    assert not here.desk.holds(1, model_digest(BASE))


def test_a_receipt_for_another_session_masks_nothing(here: Here) -> None:
    session = MaskingSession(_member(here), here.coordinator.params)
    assert refused(lambda: session.mask(UPDATE, Charged(b"\x09" * 16, b""))).code == "not-charged"


def test_an_update_enters_one_charged_session_only(here: Here) -> None:
    here.desk.mask(here.to_mask())
    second = Rehearsal(PLAN, _study_of(here), session=b"\x02" * 16)
    assert refused(lambda: here.desk.open(second.order)).code == "no-update"


def test_an_uncommitted_update_joins_another_session_of_its_round(here: Here) -> None:
    here.to_mask()
    here.coordinator = Rehearsal(PLAN, _study_of(here), session=b"\x02" * 16)
    here.desk.mask(here.to_mask())
    (charge,) = here.charges()
    assert charge.session == here.coordinator.session.hex()


def test_an_aborted_committed_session_leaves_nothing_to_send(here: Here) -> None:
    here.to_confirm()
    assert here.desk.result(here.coordinator.result(opened=False)) is Outcome.LOST
    assert not here.desk.holds(1, model_digest(BASE))
    assert [event.kind for event in here.ledger.events()][-1] == "charge"
    with pytest.raises(LedgerError):
        here.hold()


def test_a_result_that_names_other_survivors_than_signed_is_not_verified(here: Here) -> None:
    result = here.coordinator.take_revealed(here.desk.reveal(here.to_reveal()))
    del result.survivors[:]
    result.survivors.extend([ME, uri("h1"), uri("h2")])
    assert here.desk.result(result) is Outcome.LOST
    assert [event.kind for event in here.ledger.events()][-1] == "charge"


def test_two_releases_without_a_result_pause_the_node(here: Here) -> None:
    here.to_confirm()
    here.desk.result(here.coordinator.result(opened=False))
    here.hold(2)
    here.coordinator = Rehearsal(PLAN, _study_of(here), session=b"\x02" * 16, round=2)
    here.to_confirm()
    here.desk.result(here.coordinator.result(opened=False))
    with pytest.raises(LedgerError) as caught:
        here.hold(3)
    assert caught.value.code == "paused"


# ---- restarts and session ids ----


def test_a_session_id_is_on_disk_before_its_first_answer(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: list[bytes] = []
    monkeypatch.setattr(StateFolder, "remember_session", lambda _self, session: remembered.append(session))
    here.desk.open(here.coordinator.order)
    assert remembered == [here.coordinator.session]


def test_a_session_is_never_answered_again_after_a_restart(here: Here) -> None:
    share = here.to_share()
    here.restart()
    assert refused(lambda: here.desk.share(share)).code == "unknown-session"
    here.hold()
    assert refused(lambda: here.desk.open(here.coordinator.order)).code == "session-repeated"


def test_a_session_that_was_left_is_not_taken_up_again(here: Here) -> None:
    here.desk.open(here.coordinator.order)
    here.desk.open(Rehearsal(PLAN, _study_of(here), session=b"\x02" * 16).order)
    assert refused(lambda: here.desk.open(here.coordinator.order)).code == "session-repeated"


def test_nothing_is_answered_after_the_result(here: Here) -> None:
    reveal = here.to_reveal()
    here.desk.result(here.coordinator.take_revealed(here.desk.reveal(reveal)))
    assert refused(lambda: here.desk.reveal(reveal)).code == "unknown-session"


def test_an_update_that_missed_its_round_is_dropped(here: Here) -> None:
    assert here.desk.result(here.coordinator.result()) is Outcome.NOT_HERE
    assert not here.desk.holds(1, model_digest(BASE))


def test_a_restart_holds_no_update(here: Here) -> None:
    here.restart()
    assert refused(lambda: here.desk.open(here.coordinator.order)).code == "no-update"


def test_a_restart_after_the_commit_has_nothing_to_reveal(here: Here) -> None:
    confirm = here.to_confirm()
    here.restart()
    assert refused(lambda: here.desk.confirm(confirm)).code == "unknown-session"


# ---- repeated questions ----


def test_identical_questions_get_identical_bytes(here: Here) -> None:
    coordinator = here.coordinator
    first = here.desk.open(coordinator.order)
    assert here.desk.open(coordinator.order) == first
    share = coordinator.take_advert(first)
    shares = here.desk.share(share)
    assert here.desk.share(share) == shares
    mask = coordinator.take_shares(shares)
    charged, upload = here.desk.mask(mask)
    words = b"".join(bytes(part) for part in upload.pieces())
    again, resent = here.desk.mask(mask)
    assert (again, b"".join(bytes(part) for part in resent.pieces())) == (charged, words)
    assert resent.finish() == upload.finish()
    assert len(here.charges()) == 1
    confirm = coordinator.take_upload(words)
    confirmation = here.desk.confirm(confirm)
    assert here.desk.confirm(confirm) == confirmation
    reveal = coordinator.take_confirmation(confirmation)
    assert here.desk.reveal(reveal) == here.desk.reveal(reveal)


def test_the_order_of_a_list_does_not_make_another_question(here: Here) -> None:
    share = here.to_share()
    shares = here.desk.share(share)
    turned = pb.Share(session=share.session, adverts=reversed(share.adverts))
    assert here.desk.share(turned) == shares


@pytest.mark.parametrize("phase", ["open", "share", "mask", "confirm", "reveal"])
def test_a_second_question_with_other_content_ends_the_session(here: Here, phase: str) -> None:
    order, answer, other = _asked_once(here, phase)
    answer(order)
    assert refused(lambda: answer(other)).code == "second-question"
    assert refused(lambda: answer(order)).code == "session-ended"


def _asked_once(here: Here, phase: str) -> tuple[Any, Callable[[Any], Any], Any]:
    orders: dict[str, Callable[[], Any]] = {
        "open": lambda: here.coordinator.order,
        "share": here.to_share,
        "mask": here.to_mask,
        "confirm": here.to_confirm,
        "reveal": here.to_reveal,
    }
    order = orders[phase]()
    other = type(order)()
    other.CopyFrom(order)
    match phase:
        case "open":
            other.members[-1].base_digest = bytes(32)
        case "share":
            del other.adverts[-1]
        case "mask":
            del other.sets[-1]
        case "confirm":
            del other.survivors[-1]
        case _:
            del other.confirmations[-1]
    return order, getattr(here.desk, phase), other


@pytest.mark.parametrize("phase", ["share", "mask", "confirm", "reveal"])
def test_a_question_out_of_its_place_changes_nothing(here: Here, phase: str) -> None:
    coordinator = here.coordinator
    first = here.desk.open(coordinator.order)
    early = {
        "share": pb.Share(session=b"\x07" * 16),
        "mask": pb.Mask(session=coordinator.session),
        "confirm": pb.Confirm(session=coordinator.session, survivors=[uri(name) for name in NAMES]),
        "reveal": pb.Reveal(session=coordinator.session),
    }[phase]
    assert refused(lambda: getattr(here.desk, phase)(early)).code in {"out-of-place", "unknown-session"}
    here.desk.share(coordinator.take_advert(first))


# ---- lies: each ends in a named refusal and without a charge ----


def _with(order: Any, change: Callable[[Any], None]) -> Any:
    other = type(order)()
    other.CopyFrom(order)
    change(other)
    return other


def _swap_key(order: pb.Open) -> None:
    order.members[1].public_key, order.members[2].public_key = order.members[2].public_key, order.members[1].public_key


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(order: Any) -> None:
        target, name = order, path
        while "." in name:
            step, _, name = name.partition(".")
            target = target[int(step)] if step.isdigit() else getattr(target, step)
        setattr(target, name, value)

    return change


OPEN_LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "another key than the confirmed one": (_swap_key, "unpinned-key"),
    "my own key replaced": (lambda o: _set("members.0.public_key", o.members[1].public_key)(o), "malformed"),
    "another weight than the plan's": (_set("members.1.weight", 7), "wrong-roster"),
    "another base for me": (_set("members.0.base_digest", b"\x05" * 32), "wrong-model"),
    "another base for a peer": (_set("members.2.base_digest", b"\x05" * 32), "wrong-model"),
    "a member that the plan does not admit": (_set("members.3.uri", EVALUATOR), "wrong-roster"),
    "a member twice": (_set("members.3.uri", uri("h2")), "malformed"),
    "a cohort below the minimum": (lambda o: o.members.__delitem__(slice(2, 4)), "policy"),
    "a session without me": (lambda o: o.members.__delitem__(0), "wrong-roster"),
    "another round": (_set("round", 2), "no-update"),
    "a short session id": (_set("session", b"short"), "malformed"),
}


@pytest.mark.parametrize("lie", OPEN_LIES)
def test_a_lie_in_the_opening_is_refused(here: Here, lie: str) -> None:
    change, code = OPEN_LIES[lie]
    order = _with(here.coordinator.order, change)
    assert refused(lambda: here.desk.open(order)).code == code
    assert here.charges() == []
    assert here.desk.holds(1, model_digest(BASE)), "a refused opening does not cost the update"


SHARE_LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a forged advert": (_set("adverts.1.mask_key", b"\x09" * 32), "bad-signature"),
    "my own advert altered": (_set("adverts.0.seed_commitment", b"\x09" * 32), "own-message-altered"),
    "my own advert missing": (lambda o: o.adverts.__delitem__(0), "own-message-altered"),
    "an advert twice": (lambda o: o.adverts.append(o.adverts[1]), "duplicate-party"),
    "too few adverts": (lambda o: o.adverts.__delitem__(slice(1, 4)), "too-few"),
    "a short key": (_set("adverts.1.seal_key", b"\x09"), "malformed"),
}


@pytest.mark.parametrize("lie", SHARE_LIES)
def test_a_lie_in_the_adverts_is_refused(here: Here, lie: str) -> None:
    change, code = SHARE_LIES[lie]
    order = _with(here.to_share(), change)
    assert refused(lambda: here.desk.share(order)).code == code
    assert here.charges() == []


MASK_LIES: dict[str, tuple[Callable[[Any], None], str, str | None]] = {
    "a box altered on the way": (_set("sets.1.boxes.0.sealed", b"\x09" * 100), "altered-box", None),
    "a share set twice": (lambda o: o.sets.append(o.sets[1]), "duplicate-party", None),
    "a signature of another": (lambda o: _set("sets.1.signature", o.sets[2].signature)(o), "bad-signature", None),
    "too few sets": (lambda o: o.sets.__delitem__(slice(1, 4)), "too-few", "unknown"),
    "my box withheld": (lambda o: o.sets[1].boxes.__delitem__(0), "altered-box", None),
}


@pytest.mark.parametrize("lie", MASK_LIES)
def test_a_lie_in_the_boxes_is_refused_before_the_ledger_is_asked(here: Here, lie: str) -> None:
    change, code, culprit = MASK_LIES[lie]
    order = _with(here.to_mask(), change)
    refusal = refused(lambda: here.desk.mask(order))
    assert refusal.code == code
    assert culprit is None or refusal.culprit == culprit
    assert here.charges() == []
    assert here.desk.holds(1, model_digest(BASE)), "nothing left, so the update may join another session"


def test_a_box_that_its_sender_spoiled_names_the_sender(here: Here) -> None:
    share = here.to_share()
    shares = here.desk.share(share)
    liar = here.coordinator.peers[0]
    honest = type(liar).answer

    def spoiling(self: Any, params: RoundParams, phase: str, given: Any, rand: Callable[[int], bytes]) -> Any:
        answer = honest(self, params, phase, given, rand)
        return _spoiled(self, answer) if phase == "share" and self is liar else answer

    here.coordinator.peers[0].__class__.answer = spoiling  # type: ignore[method-assign]
    try:
        order = here.coordinator.take_shares(shares)
    finally:
        type(liar).answer = honest  # type: ignore[method-assign]
    refusal = refused(lambda: here.desk.mask(order))
    assert (refusal.code, refusal.culprit) == ("bad-box", liar.identity.uri)
    assert here.charges() == []


def _spoiled(peer: Any, share_set: Any) -> Any:
    """The liar signs a box that does not open: validly signed, so attributable."""
    from dataclasses import replace

    from secagg.identity import Purpose
    from secagg.messages import NO_DIGESTS, Box
    from secagg.statements import shares_statement

    boxes = tuple(Box(box.receiver, bytes(len(box.sealed))) if box.receiver == ME else box for box in share_set.boxes)
    bare = replace(share_set, boxes=boxes, digests=NO_DIGESTS).with_digests()
    signature = peer.state.seat.sign(Purpose.SHARES, shares_statement(peer.identity.uri, peer.state.seen, bare.digests))
    return replace(share_set, boxes=boxes, digests=NO_DIGESTS, signature=signature)


CONFIRM_LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "I am said to have dropped": (lambda o: o.survivors.remove(ME), "not-on-list"),
    "a stranger survives": (lambda o: o.survivors.append(EVALUATOR), "unknown-party"),
    "a survivor twice": (lambda o: o.survivors.append(uri("h1")), "malformed"),
    "too few survivors": (lambda o: o.survivors.__delitem__(slice(2, 4)), "too-few"),
}


@pytest.mark.parametrize("lie", CONFIRM_LIES)
def test_a_lie_in_the_survivor_list_is_not_signed(here: Here, lie: str) -> None:
    change, code = CONFIRM_LIES[lie]
    order = _with(here.to_confirm(), change)
    assert refused(lambda: here.desk.confirm(order)).code == code


REVEAL_LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "too few signatures": (lambda o: o.confirmations.__delitem__(slice(1, 4)), "too-few"),
    "a signature twice": (lambda o: o.confirmations.append(o.confirmations[1]), "duplicate-party"),
    "a signature over something else": (
        lambda o: _set("confirmations.1.signature", o.confirmations[2].signature)(o),
        "bad-signature",
    ),
}


@pytest.mark.parametrize("lie", REVEAL_LIES)
def test_a_lie_in_the_confirmations_reveals_nothing(here: Here, lie: str) -> None:
    change, code = REVEAL_LIES[lie]
    order = _with(here.to_reveal(), change)
    assert refused(lambda: here.desk.reveal(order)).code == code


# ---- what the node demands of its own side ----


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(LAYOUT.length - 1, np.float32),
        np.zeros(LAYOUT.length, np.float64),
        np.full(LAYOUT.length, np.nan, np.float32),
    ],
    ids=["short", "double", "not finite"],
)
def test_an_update_that_cannot_be_sent_is_not_held(here: Here, vector: Any) -> None:
    here.restart()
    with pytest.raises(UpdateUnusable):
        here.desk.hold(vector, model_digest(BASE), here.ledger.authorize(PLAN, 1))
    assert not here.desk.holds(1, model_digest(BASE))


def test_the_nodes_own_policy_is_stricter_than_the_plan(here: Here) -> None:
    here.desk = make_desk(here.folders, PLAN, lambda: here.ledger, max_colluders=2)
    here.hold()
    assert refused(lambda: here.desk.open(here.coordinator.order)).code == "policy"


def test_a_refusal_by_the_ledger_carries_no_figure_of_the_hospital(here: Here) -> None:
    here.ledger.pause("Dr Keller", "a private reason", datetime.fromtimestamp(1.8e9).astimezone())
    refusal = refused(lambda: here.desk.open(here.coordinator.order))
    assert refusal.detail == DECLINE_CODES["paused"]


def test_update_and_secrets_of_a_session_are_gone_when_it_ends(here: Here) -> None:
    session = MaskingSession(_member(here), here.coordinator.params)
    order = here.coordinator.take_advert(pb.PhaseAnswer(advert=wire.to_advert(session.advertise((), model_digest(BASE)))))
    shares = session.share([wire.from_advert(item) for item in order.adverts])
    sets = here.coordinator.take_shares(pb.PhaseAnswer(shares=wire.to_share_set(shares)))
    session.check([wire.from_share_set(item) for item in sets.sets])
    session.mask(UPDATE, Charged(session.id, bytes(32)))
    assert session.upload is not None
    session.end(SessionRefused("session-ended", "over"))
    assert session.upload is None
    assert session._state is None
    assert refused(lambda: session.confirm([ME])).code == "session-ended"


def _member(here: Here) -> Member:
    identity = here.folders.identities[ME]
    pinned = {party: one.fingerprint for party, one in here.folders.identities.items()}
    return Member(ME, identity.key, Policy(pinned, 3, 1), Counter())


def _study_of(here: Here) -> Folders:
    return here.coordinator.folders
