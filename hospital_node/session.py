"""One masking session of this node: from what it is asked to what it answers, or a refusal. No disk, no clock, no connection.

Rules (protocol.md; the numbers label the code):
1. each phase is answered once: an identical question gets the identical answer again, another one ends the session;
2. a question in the wrong place changes nothing and is refused;
3. whatever the protocol refuses ends the session and names the party; what cannot be attributed is blamed on "unknown";
4. masked words exist only for an update whose charge the ledger has committed for this very session: `mask` takes the
   proof, and there is no other way to an upload;
5. everything is in memory only: after a restart there is nothing to reveal.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from proto.layout import Vector
from proto.plan import DECLINE_CODES
from secagg import REFUSAL_CODES, Door, Policy, RoundParams
from secagg.errors import UNKNOWN, LocalError, RemoteError, TooFewSurvivors
from secagg.messages import Advert, Confirmation, Revealed, ShareSet, UploadSeal
from secagg.node import (
    NO_SEALS,
    Advertised,
    Confirmed,
    Finished,
    Masked,
    MaskReady,
    Shared,
    advertise,
    confirm,
    mask,
    ready_to_mask,
    reveal,
    share,
    verify_result,
)
from secagg.params import Integers
from secagg.upload import PackedUpload

Rand = Callable[[int], bytes]
State = Advertised | Shared | MaskReady | Masked | Confirmed | Finished
Answer = TypeVar("Answer")
Needed = TypeVar("Needed", Advertised, Shared, MaskReady, Masked, Confirmed, Finished)
Message = TypeVar("Message", Advert, ShareSet, Confirmation)


class Phase(StrEnum):
    """What can be asked, in its order."""

    ADVERTISE = "advertise"
    SHARE = "share"
    CHECK = "check"  # of the boxes: the first half of what the wire calls mask
    MASK = "mask"
    CONFIRM = "confirm"
    REVEAL = "reveal"


SESSION_CODES = {  # refusals of the node around the protocol; the protocol's own are secagg.REFUSAL_CODES
    "no-update": "this node holds no unreleased update for this session",
    "wrong-roster": "the session's members or weights are not those of the plan",
    "wrong-model": "the session names another model than this node trained on",
    "stale-update": "this node's update is older than the plan allows, and was let go",
    "unknown-session": "this node was restarted since, or never joined this session",
    "session-ended": "this session has ended here",
    "out-of-place": "the request comes out of its place in the session",
    "too-few": "fewer members are left than threshold and policy need",
    "not-charged": "the ledger has not charged this session",
    "unusable": "the update cannot be sent",
}


class SessionRefused(Exception):
    """The node does not go on. `code` for programs, `detail` for people, `culprit` a party's URI or "unknown".

    The code is one of SESSION_CODES, of the protocol (secagg.REFUSAL_CODES) or of the ledger (proto.plan.DECLINE_CODES).
    """

    def __init__(self, code: str, detail: str, culprit: str = UNKNOWN) -> None:
        assert code in SESSION_CODES or code in REFUSAL_CODES or code in DECLINE_CODES, code
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.culprit = culprit


@dataclass(frozen=True, slots=True)
class Member:
    """Who this node is in every session, and what it demands of each."""

    uri: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    policy: Policy
    rand: Rand = field(repr=False)
    door: Door = Door.GCM  # how this machine makes masks fastest; it changes no byte


@dataclass(frozen=True, slots=True)
class Charged:
    """Proof that the ledger committed the release of one update in one session; made by hospital_node.release alone."""

    session: bytes
    receipt: bytes  # HMAC of the ledger's head


class MaskingSession:
    """The node's side of one session. One owner, one thread. Every method raises SessionRefused."""

    def __init__(self, member: Member, params: RoundParams) -> None:
        self.params = params
        self.ended: SessionRefused | None = None
        self.charged: Charged | None = None
        self._member = member
        self._state: State | None = None
        self._answered: dict[Phase, tuple[Hashable, Any]] = {}

    @property
    def id(self) -> bytes:
        """The session id."""
        return self.params.session

    def advertise(self, seen: Container[bytes], base_digest: bytes) -> Advert:
        """Check the session against this node's policy, the ids seen before and the model trained on; draw keys."""
        member = self._member

        def first() -> tuple[Advertised, Advert]:
            return advertise(
                self.params, member.uri, member.key, member.policy, member.rand, seen=seen, base_digest=base_digest
            )

        return self._once(Phase.ADVERTISE, base_digest, first)

    def share(self, adverts: Sequence[Advert]) -> ShareSet:
        """Check every advert; seal shares of both secrets."""
        return self._once(Phase.SHARE, _by_party(adverts), lambda: share(self._now(Advertised), adverts, self._member.rand))

    def check(self, sets: Sequence[ShareSet]) -> None:
        """Open and check every box. After this only the ledger stands between the update and the network."""
        self._once(Phase.CHECK, _by_party(sets), lambda: (ready_to_mask(self._now(Shared), sets), None))

    def mask(self, update: Vector | Integers, charged: Charged, extras: Sequence[float] = ()) -> PackedUpload:
        """The masked words of `update` and of the session's extra coordinates, whose release is charged."""
        if charged.session != self.id:  # 4
            raise SessionRefused("not-charged", "the ledger's receipt is for another session: nothing leaves")
        question = (id(update), *extras)
        upload = self._once(Phase.MASK, question, lambda: mask(self._now(MaskReady), update, self._member.door, extras))
        self.charged = charged
        return upload

    @property
    def upload(self) -> PackedUpload | None:
        """The upload, for sending it again; None before `mask` and after the end."""
        _, upload = self._answered.get(Phase.MASK, (None, None))
        assert upload is None or isinstance(upload, PackedUpload)
        return upload

    def confirm(self, survivors: Sequence[str], seals: Mapping[str, UploadSeal] = NO_SEALS) -> Confirmation:
        """Check the survivor list; sign it."""
        return self._once(Phase.CONFIRM, tuple(sorted(survivors)), lambda: confirm(self._now(Masked), survivors, seals))

    def reveal(self, confirmations: Sequence[Confirmation]) -> Revealed:
        """Check the signatures; reveal one kind of share for each peer."""
        return self._once(Phase.REVEAL, _by_party(confirmations), lambda: reveal(self._now(Confirmed), confirmations))

    @property
    def signed(self) -> bool:
        """Whether this node has signed the session's survivor list."""
        return Phase.CONFIRM in self._answered

    def verify_result(self, survivors: Sequence[str]) -> None:
        """Return where the published result is about the list that this node signed."""
        self._refuse_ended()
        state = self._state
        if not isinstance(state, Finished):
            raise OutOfPlace("out-of-place", "the result comes before this node has revealed its shares")
        with_errors(lambda: verify_result(state, survivors))

    def end(self, reason: SessionRefused) -> None:
        """Answer nothing any more, and forget every secret and the update (5)."""
        self.ended = self.ended or reason
        self._state = None
        self._answered.clear()

    def _now(self, needed: type[Needed]) -> Needed:
        if not isinstance(self._state, needed):  # 2
            raise OutOfPlace("out-of-place", "the request comes out of its place in the session")
        return self._state

    def _refuse_ended(self) -> None:
        if self.ended is not None:
            raise SessionRefused("session-ended", f"the session ended here: {self.ended.detail}", self.ended.culprit)

    def _once(self, phase: Phase, question: Hashable, make: Callable[[], tuple[State, Answer]]) -> Answer:
        self._refuse_ended()
        try:
            if phase not in self._answered:
                self._state, made = with_errors(make)
                self._answered[phase] = (question, made)
            answer: Answer = self._again(phase, question)
        except OutOfPlace:
            raise
        except SessionRefused as refusal:
            self.end(refusal)
            raise
        return answer

    def _again(self, phase: Phase, question: Hashable) -> Any:  # of the type that `make` gave for this phase
        asked, answer = self._answered[phase]
        if asked != question:  # 1
            raise SessionRefused("second-question", f"the {phase} phase was answered and is asked again with other content")
        return answer


class OutOfPlace(SessionRefused):
    """A request that does not fit the state, which stays as it was."""


def with_errors(make: Callable[[], Answer]) -> Answer:
    """Run one transition; whatever the protocol raises becomes a refusal with code and culprit (3)."""
    try:
        return make()
    except RemoteError as error:
        raise SessionRefused(error.code, error.text, error.party) from error
    except TooFewSurvivors as error:
        raise SessionRefused("too-few", error.text) from error
    except LocalError as error:
        raise SessionRefused("unusable", str(error)) from error


def _by_party(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(sorted(messages, key=lambda message: message.party))
