"""The one trained update of this node, and the only road on which it can leave.

The order that holds (numbers label the code):
1. an update enters a session only if it was trained on the model that the session names for this node;
2. a session id is on disk before the first answer of that session leaves, and is never answered after a restart;
3. every check of the session passes before the ledger is asked;
4. the update is taken out of the desk, then the ledger commits, durably, then masked words exist;
5. from (4) on the update belongs to that session alone; when the session ends, however it ends, the update is gone.
An update that was not committed may enter another session of the same round, under a buffered plan also one of a later round,
as late as the plan allows; it is charged in the round in which it leaves. Nothing here is ever written to disk but the session
id, the ledger's entry and, where the plan has control variates, the one that follows from the committed update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import TypeVar, cast

import numpy as np

from hospital_node.attendance import Attendance, AttendanceBook
from hospital_node.ledger import Authorization, Ledger, LedgerError
from hospital_node.ledger_chain import Chain
from hospital_node.logs import logger
from hospital_node.session import Charged, MaskingSession, Member, SessionRefused
from hospital_node.state import StateFolder
from hospital_node.variates import Variates
from proto import federation_pb2 as pb
from proto import scaffold, wire
from proto.layout import Layout, Vector, all_finite
from proto.plan import DECLINE_CODES, Plan
from secagg import RoundParams
from secagg.coding import as_sent
from secagg.errors import RemoteError
from secagg.params import Integers
from secagg.upload import PackedUpload

UPDATE_ID_BYTES = 32

Value = TypeVar("Value")


class UpdateUnusable(RuntimeError):
    """A trained update that must not be released; it is dropped."""


@dataclass(frozen=True, slots=True)
class HeldUpdate:
    """A trained update that was not released. It exists in memory only."""

    id: bytes
    round: int
    base_digest: bytes
    vector: Vector | Integers = field(repr=False)
    authorization: Authorization = field(repr=False)
    sums: tuple[float, ...] = field(repr=False)  # noised, over validation patients; they leave with the update or never
    drift: Vector | None = field(repr=False)  # of SCAFFOLD, with which it was trained


class Outcome(Enum):
    """What a round's result means for this node."""

    COUNTED = "this hospital's update is in the sum"
    LOST = "this hospital's update was charged and is not in a sum"
    NOT_HERE = "this hospital took no part"


class ReleaseDesk:
    """Answers the orders of masking sessions for one plan. Every answer raises SessionRefused."""

    def __init__(
        self,
        member: Member,
        plan: Plan,
        layout: Layout,
        folder: StateFolder,
        ledger: Callable[[], Ledger],
        clock: Callable[[], float],
        variates: Variates | None = None,
        attended: AttendanceBook | None = None,
    ) -> None:
        self._member = member
        self._plan = plan
        self._layout = layout
        self._folder = folder
        self._ledger = ledger
        self._clock = clock
        self._variates = variates
        self._attended = attended
        self._recorded: Chain | None = None
        self._seen = set(folder.seen_sessions())
        self._held: HeldUpdate | None = None
        self._session: MaskingSession | None = None

    def holds(self, round_number: int, base_digest: bytes) -> bool:
        """Whether an unreleased update of this round and base is here."""
        held = self._held
        return held is not None and (held.round, held.base_digest) == (round_number, base_digest)

    def kept_for(self, round_number: int) -> HeldUpdate | None:
        """The unreleased update that may leave in a round of this number; None where there is none or it is too old."""
        held = self._held
        return held if held is not None and self._staleness(held, round_number) is not None else None

    def hold(
        self,
        vector: Vector | Integers,
        base_digest: bytes,
        authorization: Authorization,
        sums: tuple[float, ...] = (),
        drift: Vector | None = None,
    ) -> None:
        """Take a freshly trained update, the sums that ride with it and the drift that it was trained with."""
        kind = np.int64 if self._plan.privacy.is_shared else np.float32
        if vector.shape != (self._layout.length,) or vector.dtype != kind or not all_finite(vector):
            raise UpdateUnusable("training gave a vector of a wrong length, a wrong type or with values that are not finite")
        number = authorization.round
        if len(sums) != len(wire.extra_clips_of(self._plan, number)) or not np.isfinite(sums).all():
            raise UpdateUnusable("evaluation gave a wrong number of sums, or sums that are not finite")
        self._held = HeldUpdate(self._member.rand(UPDATE_ID_BYTES), number, base_digest, vector, authorization, sums, drift)

    @property
    def in_session(self) -> bool:
        """Whether a masking session is open here: its leaf and signing key stay until it ends."""
        return self._session is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a round is here: no unreleased update and no session."""
        return self._held is None and self._session is None

    def use(self, member: Member) -> None:
        """Take part in later sessions as `member` (another key, other pins); an open one keeps what it began with."""
        self._member = member

    def discard(self) -> None:
        """Drop update and session."""
        self._held = None
        self._end_session("the node went on to something else")

    def open(self, order: pb.Open) -> pb.PhaseAnswer:
        """Join a session with the update held, or refuse."""
        current = self._session
        if current is not None and current.id == order.session:
            return self._advertise_again(current, order)
        held = self._held
        if held is None or held.round > order.round or (held.round < order.round and self._plan.buffer is None):
            raise SessionRefused("no-update", f"this node holds no unreleased update of round {order.round}")
        params = self._params(order, held)  # 1
        self._ask_ledger(order.round, held)
        session = MaskingSession(self._member, params)
        advert = session.advertise(self._seen, held.base_digest)
        self._end_session("the coordinator opened another session")
        self._remember(session.id, params, held)  # 2
        self._seen.add(session.id)
        self._session = session
        return pb.PhaseAnswer(session=session.id, advert=wire.to_advert(advert))

    def share(self, order: pb.Share) -> pb.PhaseAnswer:
        """Answer with sealed shares."""
        session = self._of(order.session)
        adverts = _parsed(lambda: [wire.from_advert(item) for item in order.adverts])
        return pb.PhaseAnswer(session=session.id, shares=wire.to_share_set(session.share(adverts)))

    def mask(self, order: pb.Mask) -> tuple[Charged, PackedUpload]:
        """Check everything, commit the charge, and give the masked words; the same ones where asked again."""
        session = self._of(order.session)
        sets = _parsed(lambda: [wire.from_share_set(item) for item in order.sets])
        session.check(sets)  # 3
        if session.charged is not None and session.upload is not None:
            return session.charged, session.upload
        held, self._held = self._held, None  # 4
        if held is None:
            raise SessionRefused("no-update", "the update of this session is gone: nothing leaves")
        charged = self._commit(session, held)
        self._propose_variate(session, held)
        return charged, session.mask(held.vector, charged, held.sums)

    def confirm(self, order: pb.Confirm) -> pb.PhaseAnswer:
        """Answer with a signature over the survivor list."""
        session = self._of(order.session)
        survivors = _parsed(lambda: wire.from_uris(order.survivors))
        seals = _parsed(lambda: wire.from_seals(order.seals))
        confirmation = session.confirm(survivors, seals)
        if self._attended is not None:
            _kept(partial(self._attended.sign, session.id, tuple(sorted(survivors))))
        return pb.PhaseAnswer(session=session.id, confirmation=wire.to_confirmation(confirmation))

    def reveal(self, order: pb.Reveal) -> pb.PhaseAnswer:
        """Answer with one kind of share for each peer."""
        session = self._of(order.session)
        confirmations = _parsed(lambda: [wire.from_confirmation(item) for item in order.confirmations])
        return pb.PhaseAnswer(session=session.id, revealed=wire.to_revealed(session.reveal(confirmations)))

    def result(self, order: pb.RoundResult) -> Outcome:
        """Close the round: record a verified result, forget everything (5). Raises LedgerError where that is not recorded."""
        self._recorded = None
        outcome = self._outcome(order)
        if self._variates is not None:
            here = outcome is Outcome.NOT_HERE and order.opened and self._member.uri in order.survivors  # before a restart
            self._variates.settle(order.session, counted=here or outcome is Outcome.COUNTED)
        if outcome is Outcome.COUNTED:
            self._recorded = self._ledger().record_verified(self._plan, order.round, self._now())
        return outcome

    def take_recorded(self) -> Chain | None:
        """The ledger's entries as the last result left them, once; None where it was not recorded."""
        recorded, self._recorded = self._recorded, None
        return recorded

    def _outcome(self, order: pb.RoundResult) -> Outcome:
        session = self._session
        mine = session is not None and session.id == order.session and session.charged is not None
        if self._held is not None and self._held.round <= order.round and self._plan.buffer is None:
            self._held = None
        if session is None or not mine:
            return Outcome.NOT_HERE
        try:
            left_out = self._member.uri not in order.survivors and not session.signed  # it was away when the list was made
            if not order.opened or left_out:
                return Outcome.LOST
            _verify(session, order)
        except SessionRefused as refusal:  # nothing is answered to a result: people find the reason in the log
            logger().warning("refused", phase="result", code=refusal.code, culprit=refusal.culprit, detail=refusal.detail)
            return Outcome.LOST
        finally:
            self._end_session("the round is over")
        return Outcome.COUNTED

    def _params(self, order: pb.Open, held: HeldUpdate) -> RoundParams:
        params: RoundParams = _parsed(lambda: wire.open_params(self._plan, order, self._layout))
        if not params.is_member(self._member.uri):
            raise SessionRefused("wrong-roster", f"the session does not list {self._member.uri}")
        if self._plan.buffer is not None:
            self._check_own_row(params, held)
        elif any(digest != held.base_digest for digest in params.base_digests):
            text = "the session mixes updates of different models, or names another model than this node trained on"
            raise SessionRefused("wrong-model", text)
        return params

    def _staleness(self, held: HeldUpdate, round_number: int) -> int | None:
        """Rounds that ended since the update's training began; None where the plan lets it leave in no such round."""
        age = round_number - held.round
        most = 0 if self._plan.buffer is None else self._plan.buffer.max_staleness
        return age if 0 <= age <= most else None

    def _check_own_row(self, params: RoundParams, held: HeldUpdate) -> None:
        """Of a buffered session. The others' models are the policy's business: those with my own must suffice alone."""
        me, staleness = self._member.uri, self._staleness(held, params.round)
        if staleness is None:
            self._held = None
            text = f"this node's update is {params.round - held.round} rounds old, more than the plan allows: it was let go"
            raise SessionRefused("stale-update", text)
        if params.base_digests[params.place(me)] != held.base_digest:
            raise SessionRefused("wrong-model", "the session names another model than this node trained on")
        if params.weight(me) != self._plan.session_weights(me)[staleness]:
            text = f"the session does not weigh this node's update as one of {staleness} rounds ago"
            raise SessionRefused("wrong-roster", text)

    def _advertise_again(self, current: MaskingSession, order: pb.Open) -> pb.PhaseAnswer:
        params = _parsed(lambda: wire.open_params(self._plan, order, self._layout))
        if params != current.params:
            refusal = SessionRefused("second-question", "a session that was opened is opened again with other content")
            current.end(refusal)
            raise refusal
        base = params.base_digests[params.place(self._member.uri)]
        return pb.PhaseAnswer(session=current.id, advert=wire.to_advert(current.advertise(self._seen, base)))

    def _remember(self, session: bytes, params: RoundParams, held: HeldUpdate) -> None:
        _kept(partial(self._folder.remember_session, session))
        if self._attended is not None:
            attendance = Attendance(
                plan=self._plan.digest().hex(),
                round=params.round,
                session=session.hex(),
                base=held.base_digest.hex(),
                lanes=params.quantizer.lanes,
                roster=params.participants,
            )
            _kept(partial(self._attended.enter, attendance))

    def _ask_ledger(self, round_number: int, held: HeldUpdate) -> None:
        try:
            now = self._ledger().authorize(self._plan, round_number)
        except LedgerError as error:
            self._held = None
            raise refused_by_ledger(error) from error
        if now.withdrawn != held.authorization.withdrawn:  # said as of any round without an update, and trained anew
            self._held = None
            raise SessionRefused("no-update", f"this node holds no unreleased update of round {round_number}")

    def _commit(self, session: MaskingSession, held: HeldUpdate) -> Charged:
        leave, number = held.authorization, session.params.round
        if number != held.round:  # the round in which it leaves is the one that is charged
            leave = replace(leave, round=number)
        try:
            receipt = self._ledger().commit(leave, held.id, session.id, self._now())
        except LedgerError as error:
            refusal = refused_by_ledger(error)
            session.end(refusal)
            raise refusal from error
        return Charged(session.id, receipt.hmac)

    def _propose_variate(self, session: MaskingSession, held: HeldUpdate) -> None:
        """Durable before masked words exist; from the values that the sum will hold, so that both sides move by the same."""
        if self._variates is not None and held.drift is not None:
            own = scaffold.own_after(self._plan, held.round, held.drift, as_sent(session.params, cast("Vector", held.vector)))
            self._variates.propose(session.id, own)

    def _of(self, session_id: bytes) -> MaskingSession:
        if self._session is None or self._session.id != session_id:
            raise SessionRefused(
                "unknown-session", "this node knows nothing of this session: it was restarted, or never joined it"
            )
        return self._session

    def _end_session(self, reason: str) -> None:
        if self._session is not None:
            self._session.end(SessionRefused("session-ended", reason))
            self._session = None

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _verify(session: MaskingSession, order: pb.RoundResult) -> None:
    if order.round != session.params.round:
        raise SessionRefused("result-altered", "the published result is of another round than the session was")
    session.verify_result(_parsed(lambda: wire.from_uris(order.survivors)))


def _kept(write: Callable[[], None]) -> None:
    """Write what has to be on disk before an answer leaves; SessionRefused where the disk does not take it."""
    try:
        write()
    except OSError as error:
        logger().warning("a session cannot be kept, so it is not answered", reason=error.strerror)
        raise SessionRefused("ledger-unwritable", DECLINE_CODES["ledger-unwritable"]) from error


def refused_by_ledger(error: LedgerError) -> SessionRefused:
    """A refusal that says the code and nothing else: the ledger's sentence holds figures of this hospital."""
    return SessionRefused(error.code, DECLINE_CODES[error.code])


def refusal_answer(session: bytes, refusal: SessionRefused) -> pb.PhaseAnswer:
    """A refusal as it goes on the wire."""
    return pb.PhaseAnswer(
        session=session, refusal=pb.Refusal(code=refusal.code, detail=refusal.detail, culprit=refusal.culprit)
    )


def _parsed(make: Callable[[], Value]) -> Value:
    """Wire to values; what does not parse changes nothing and is the coordinator's fault, or nobody's that can be named."""
    try:
        return make()
    except wire.RosterError as error:
        raise SessionRefused("wrong-roster", str(error)) from error
    except (wire.WireError, RemoteError) as error:
        raise SessionRefused("malformed", str(error)) from error
