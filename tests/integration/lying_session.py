"""One masking session in a liar's hands: honest as long as nothing else is said, with a place to lie at every order.

Some members are real node processes. The others are played here with their own keys: they keep to the protocol unless a
lie needs their key for something else, so `west`, and only `west`, is made to sign what its protocol would refuse.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lying_coordinator import Received, Upload
from wary_hospitals import WaryHospitals

from hospital_node.session import Charged, MaskingSession, Member
from proto import federation_pb2 as pb
from proto import wire
from proto.layout import model_digest
from proto.plan import Plan
from secagg import Policy, identity
from secagg.coordinate import SessionView, add_upload, open_sum
from secagg.identity import Purpose
from secagg.messages import NO_DIGESTS, Box, ShareSet, UploadSeal
from secagg.statements import advert_statement, adverts_digest, list_statement, share_set_statement

PHASES = ("open", "share", "mask", "confirm", "reveal")
KIND = dict(zip(PHASES, ("advert", "shares", "upload", "confirmation", "revealed"), strict=True))
COLLUDER = "west"


@dataclass(frozen=True)
class Refusal:
    """A node left a session, or an order unanswered, and said why."""

    name: str
    phase: str
    code: str
    culprit: str
    detail: str


class Session:
    """Build it after `WaryHospitals.ready`. `real` are the members that are node processes."""

    def __init__(
        self,
        hospitals: WaryHospitals,
        *real: str,
        plan: Plan | None = None,
        names: Sequence[str] = (),
        session: bytes | None = None,
        base: np.ndarray | None = None,
        staleness: int = 0,
    ) -> None:
        self.hospitals = hospitals
        self.plan = plan or hospitals.plan
        self.id = session or os.urandom(16)
        self.round, self.staleness = hospitals.round + staleness, staleness
        self.names = tuple(sorted(names or hospitals.names))
        self.real = real
        self.base = model_digest(hospitals.base if base is None else base)
        bound = self.plan.masking.bind_log
        self.log_head = hospitals.coordinator.head(hospitals.uri(real[0])) if bound else b""
        self.params = wire.open_params(self.plan, self.honest("open"), hospitals.layout)
        self.played = {name: self._member(name) for name in self.names if name not in real}
        self.answers: dict[str, dict[str, Any]] = {phase: {} for phase in PHASES}  # phase, name, message
        self.refusals: list[Refusal] = []
        self._full: dict[tuple[str, bytes], ShareSet] = {}
        self.first = len(hospitals.coordinator.received)

    def uri(self, name: str) -> str:
        return self.hospitals.uri(name)

    # ---- what an honest coordinator says ----

    def honest(self, phase: str, reader: str = "") -> Any:
        """The order of a phase for one reader, from what arrived in the phase before."""
        match phase:
            case "open":
                members = [self.member(name) for name in self.names]
                return pb.Open(session=self.id, round=self.round, members=members, log_head=self.log_head)
            case "share":
                return pb.Share(session=self.id, adverts=self._in_order("open"))
            case "mask":
                return pb.Mask(session=self.id, sets=[self.relayed(item, reader) for item in self._in_order("share")])
            case "confirm":
                survivors = sorted(map(self.uri, self.answers["mask"]))
                return pb.Confirm(session=self.id, survivors=survivors, seals=self.seals_for(reader))
            case _:
                return pb.Reveal(session=self.id, confirmations=self._in_order("confirm"))

    def member(self, name: str, **instead: Any) -> pb.Member:
        fields = {
            "uri": self.uri(name),
            "public_key": self.hospitals.identities[name].public_key_der,
            "weight": self.plan.session_weights(self.uri(name))[self.staleness],
            "base_digest": self.base,
        }
        return pb.Member(**{**fields, **instead})

    def relayed(self, message: pb.ShareSet, reader: str) -> pb.ShareSet:
        """What one reader is sent of a set: its own box and every digest; in a sparse session perhaps the summary alone."""
        key = message.party, message.signature
        if key not in self._full:
            self._full[key] = wire.from_share_set(message).with_digests()
        return wire.to_share_set(self._full[key].for_receiver(self.uri(reader)))

    def seals_for(self, reader: str) -> list[pb.Seal]:
        """In a sparse session, of the uploads of those who drew the reader."""
        place = self.names.index(reader) if reader else -1
        drew = [name for name in sorted(self.answers["mask"]) if place in self.answers["open"][name].neighbours]
        return [self.seal(name) for name in drew]

    def seal(self, name: str) -> pb.Seal:
        upload = self.answers["mask"][name]
        return pb.Seal(party=self.uri(name), digest=upload.digest, signature=upload.signature)

    def result(self, **instead: Any) -> pb.RoundResult:
        survivors = sorted(map(self.uri, self.answers["mask"]))
        fields = {"round": self.round, "session": self.id, "survivors": survivors, "opened": True, "sum_digest": bytes(32)}
        return pb.RoundResult(**{**fields, **instead})

    def _in_order(self, phase: str) -> list[Any]:
        return [self.answers[phase][name] for name in sorted(self.answers[phase])]

    # ---- asking ----

    def until(self, phase: str) -> Session:
        """Everything before `phase`, honestly and with everybody."""
        for earlier in PHASES[: PHASES.index(phase)]:
            self.step(earlier)
        return self

    def step(self, phase: str, *names: str, **instead: Any) -> dict[str, Any]:
        """One phase with these members, or all; `instead` gives members another order than the honest one."""
        asked = names or (self.names if phase == "open" else tuple(self.answers[PHASES[PHASES.index(phase) - 1]]))
        return self.ask(phase, {name: instead.get(name) or self.honest(phase, name) for name in asked})

    def ask(self, phase: str, orders: Mapping[str, Any]) -> dict[str, Any]:
        """Give each its order; the answers by name, a Refusal where there was none. First answers are kept for later phases."""
        coordinator = self.hospitals.coordinator
        count = len(coordinator.received)
        for name in orders:
            if name in self.real:
                coordinator.give(self.uri(name), **{phase: orders[name]})
        answers: dict[str, Any] = {name: self._play(name, phase, orders[name]) for name in orders if name in self.played}
        real = [name for name in orders if name in self.real]

        def of(name: str) -> list[Received]:
            return [one for one in coordinator.after(count, self.uri(name)) if one.session == orders[name].session]

        coordinator.wait(lambda: all(of(name) for name in real), f"{real} answer {phase}")
        answers |= {name: self._read(name, phase, of(name)[0]) for name in real}
        for name, answer in answers.items():
            if not isinstance(answer, Refusal):
                self.answers[phase].setdefault(name, answer)
        return answers

    def refused(self, phase: str, name: str, order: Any) -> Refusal:
        """Ask something that must be refused."""
        answer = self.ask(phase, {name: order})[name]
        assert isinstance(answer, Refusal), f"{name} answered a lie ({phase}): {answer}"
        return answer

    def tell_result(self, name: str, order: pb.RoundResult) -> None:
        """Results are not answered: return when the node has dealt with it."""
        coordinator = self.hospitals.coordinator
        number = coordinator.give(self.uri(name), result=order)
        coordinator.wait(lambda: coordinator.did(self.uri(name), number), f"{name} takes the result")

    def _read(self, name: str, phase: str, one: Received) -> Any:
        if one.kind != "refusal":
            assert one.kind == KIND[phase], (one.kind, phase)
            return one.content
        said = one.content
        self.refusals.append(Refusal(name, phase, said.code, said.culprit, said.detail))
        return self.refusals[-1]

    # ---- members that are played ----

    def _member(self, name: str) -> MaskingSession:
        identity = self.hospitals.identities[name]
        policy = Policy(self.hospitals.pinned, 2, 0, 0.0)
        return MaskingSession(Member(self.uri(name), identity.key, policy, os.urandom), self.params)

    def _play(self, name: str, phase: str, order: Any) -> Any:
        member = self.played[name]
        match phase:
            case "open":
                return wire.to_advert(member.advertise(frozenset(), self.base))
            case "share":
                return wire.to_share_set(member.share([wire.from_advert(item) for item in order.adverts]))
            case "mask":
                member.check([wire.from_share_set(item) for item in order.sets])
                return self._packed(member.mask(self.hospitals.update(name), Charged(self.id, b"")))
            case "confirm":
                return wire.to_confirmation(member.confirm(order.survivors, wire.from_seals(order.seals)))
            case _:
                return wire.to_revealed(member.reveal([wire.from_confirmation(item) for item in order.confirmations]))

    def _packed(self, upload: Any) -> Upload:
        words, seal = b"".join(bytes(part) for part in upload.pieces()), upload.finish()
        return Upload(self.id, b"", words, seal.digest, seal.signature)

    def state(self, name: str) -> Any:
        """The secrets of a member that is played."""
        return self.played[name]._state

    # ---- what the colluder's key makes possible ----

    def signed_advert(self, **changed: bytes) -> pb.Advert:
        """Another advert of the colluder, validly signed. Call it before the colluder has shared."""
        advert = replace(self.state(COLLUDER).advert, **changed)
        statement = advert_statement(advert.party, *advert.values, advert.neighbours)
        signature = self.state(COLLUDER).seat.sign(Purpose.ADVERT, statement)
        return wire.to_advert(replace(advert, signature=signature))

    def signed_set(self, **sealed: bytes) -> pb.ShareSet:
        """The colluder's share set with other boxes for these readers, validly signed."""
        own: ShareSet = wire.from_share_set(self.answers["share"][COLLUDER])
        boxes = tuple(Box(box.receiver, sealed.get(box.receiver.rpartition("/")[2], box.sealed)) for box in own.boxes)
        bare = replace(own, boxes=boxes, digests=NO_DIGESTS).with_digests()
        state = self.state(COLLUDER)
        signature = state.seat.sign(Purpose.SHARES, share_set_statement(self.params, state.seen, bare))
        return wire.to_share_set(replace(bare, digests=NO_DIGESTS, signature=signature))

    def signed_list(self, *survivors: str) -> pb.Confirmation:
        """The colluder's signature over any list."""
        adverts = {advert.party: wire.from_advert(advert) for advert in self._in_order("open")}
        statement = list_statement(adverts_digest(adverts), map(self.uri, self.answers["share"]), map(self.uri, survivors))
        key = self.hospitals.identities[COLLUDER].key
        signature = identity.sign(key, Purpose.CONFIRM, self.params.context(), statement)
        return pb.Confirmation(party=self.uri(COLLUDER), signature=signature)

    # ---- what came of it ----

    def mean(self) -> np.ndarray:
        """What an honest coordinator opens from the answers."""
        view = SessionView(self.params)
        for message in self._in_order("open"):
            view.add_advert(wire.from_advert(message))
        for message in self._in_order("share"):
            view.add_share_set(wire.from_share_set(message).with_digests())
        total = np.zeros(self.params.words, np.uint64)
        for name, upload in self.answers["mask"].items():
            view.add_seal(self.uri(name), hashlib.sha256(upload.words).digest(), UploadSeal(upload.digest, upload.signature))
            add_upload(total, upload.words)
        view.close(tuple(map(self.uri, self.answers["mask"])))
        for message in self._in_order("confirm"):
            view.add_confirmation(wire.from_confirmation(message))
        for name, message in self.answers["reveal"].items():
            view.add_revealed(self.uri(name), wire.from_revealed(message))
        return open_sum(view, total).mean

    def sent(self, name: str, since: int = 0) -> list[str]:
        """Kinds of all that a node sent in this session, or after the first `since` things that anybody sent."""
        coordinator = self.hospitals.coordinator
        return [one.kind for one in coordinator.after(max(self.first, since), self.uri(name)) if one.session == self.id]

    def check_nothing_helps(self) -> None:
        """Of everything that left in this session, whatever was asked: (1) one content for each phase; (2) nothing after the
        end; (3) uploads are charged; (4) one kind of share of each peer in one answer; (5) never enough of both kinds."""
        arrived = [one for one in self.hospitals.coordinator.received[self.first :] if one.session == self.id]
        for name in self.real:
            mine = [one for one in arrived if one.uri == self.uri(name)]
            for kind in KIND.values():
                contents = {_bytes_of(one) for one in mine if one.kind == kind}
                assert len(contents) <= 1, f"{name} sent {len(contents)} different answers of kind {kind}"  # (1)
            self._check_silence_after_the_end(name, mine)  # (2)
            if any(one.kind == "upload" for one in mine):
                assert self.hospitals.charged(name, self.id), f"{name} sent an upload that its ledger does not know"  # (3)
        self._check_shares([one for one in arrived if one.kind == "revealed"])

    def _check_silence_after_the_end(self, name: str, mine: list[Received]) -> None:
        codes = [one.content.code if one.kind == "refusal" else one.kind for one in mine]
        if "session-ended" in codes:
            left = codes[codes.index("session-ended") :]
            assert set(left) <= {"session-ended", "malformed"}, f"{name} goes on after the end: {left}"

    def _check_shares(self, answers: list[Received]) -> None:
        held: dict[str, Counter[str]] = defaultdict(Counter)
        for peer in self.names:
            if COLLUDER in self.played:
                held[self.uri(peer)].update(("self_mask_seed", "mask_key"))  # the colluder knows a share of both
        for answer in {one.uri: one for one in answers}.values():
            peers = [share.peer for share in answer.content.shares]
            assert len(set(peers)) == len(peers), "two shares of one peer in one answer"  # (4)
            for share in answer.content.shares:
                held[share.peer][share.WhichOneof("share")] += 1
        for peer, kinds in held.items():
            enough = [kind for kind, count in kinds.items() if count >= self.params.share_threshold]
            assert len(enough) < 2, f"the liar opens both secrets of {peer}"  # (5)


def _bytes_of(one: Received) -> bytes:
    content = one.content
    return content.words + content.digest if one.kind == "upload" else content.SerializeToString(deterministic=True)
