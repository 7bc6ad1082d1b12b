"""The gRPC service: who calls, what they may, and the bytes of every call. All decisions are the engine's.

Identity comes from the TLS session alone (certs.tls.party_of) and admission from the key's hash; no message names its
sender. A refused request gets one sentence and a status; anything unforeseen is logged here and told to nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
import structlog

from certs.party import CertificateError
from certs.peers import AllowList
from certs.tls import expiry_of, party_of
from coordinator import events as ev
from coordinator.gate import Gate, TooMuch
from coordinator.log_pages import Pages, bound_head, log_state
from coordinator.membership import Membership, check_version
from coordinator.meter import Direction, Lane
from coordinator.models import pieces
from coordinator.orders import Evaluate, Finished, Mask, Open, Order, RoundResult, Train, Wait
from coordinator.receive import Receiver
from coordinator.run import Run
from coordinator.sessions import Refusal, forget, take
from coordinator.spool import SpoolError, UploadBroken, UploadError
from coordinator.state import MASKING
from coordinator.store import StoreError, StoreLost
from coordinator.wire_orders import Instructions, phase_of
from proto import federation_pb2 as pb
from proto import federation_pb2_grpc as rpc
from proto.bulk import ModelChunk, UploadPart
from proto.plan import DECLINE_CODES, PROTOCOL_VERSION, Plan, role_of
from proto.wire import CHUNK_BYTES, Sized, WireError

log = structlog.get_logger()

LONG_POLL_S = 15.0  # below the idle limits of common proxies and firewalls (60 s and more)
REPORTS = {
    pb.NodeReport.TRAINING: ev.Report.TRAINING,
    pb.NodeReport.READY: ev.Report.READY,
    pb.NodeReport.DECLINED: ev.Report.DECLINED,
    pb.NodeReport.FAILED: ev.Report.FAILED,
    pb.NodeReport.LEFT: ev.Report.LEFT,
}
STATUS = {
    "late": grpc.StatusCode.FAILED_PRECONDITION,
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "denied": grpc.StatusCode.PERMISSION_DENIED,
    "version": grpc.StatusCode.UNIMPLEMENTED,
    "busy": grpc.StatusCode.UNAVAILABLE,
    "flood": grpc.StatusCode.RESOURCE_EXHAUSTED,
}
ANSWER_PHASE = {"advert": "advertise", "shares": "share", "confirmation": "confirm", "revealed": "reveal"}
Reply = TypeVar("Reply")


class CallContext(Protocol):
    """What this file uses of grpc.aio.ServicerContext."""

    def auth_context(self) -> Any:
        """Properties of the TLS session."""

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An admitted party, from the TLS session."""

    uri: str
    role: str
    public_key: bytes


class Federation(rpc.FederationServicer):
    """One method for each call of federation.proto."""

    def __init__(self, run: Run, allow: AllowList) -> None:
        self._run = run
        self.membership = Membership(run, allow)
        self._receiver = Receiver(run)
        self._pages = Pages(run.store, lambda: (run.state.round, run.state.finished))
        self._instructions = Instructions()
        self._gate = Gate()
        self.serving = True  # the last tick could be stored
        self._closed = ""  # why nobody is served any more
        self._polls: dict[str, object] = {}  # the newest poll of each party; an older one of a dead connection yields

    @property
    def plan(self) -> Plan:
        """The plan that is served."""
        return self._run.plan

    async def Join(self, request: pb.JoinRequest, context: CallContext) -> pb.JoinReply:  # noqa: N802
        """Compare versions, hand out the plan."""
        reply = await self._guarded(context, lambda caller: self._join(caller, request), joining=True)
        self.membership.seen(reply.identity, expiry_of(context))
        return reply

    async def Poll(self, request: pb.PollRequest, context: CallContext) -> pb.Instruction:  # noqa: N802
        """The instruction after `done`, or `wait` after a while."""
        return await self._guarded(context, lambda caller: self._poll(caller, request))

    async def Report(self, request: pb.NodeReport, context: CallContext) -> pb.Ack:  # noqa: N802
        """Training state of a hospital."""
        return await self._guarded(context, lambda caller: self._report(caller, request))

    async def Answer(self, request: pb.PhaseAnswer, context: CallContext) -> pb.Ack:  # noqa: N802
        """One answer to one masking phase."""
        return await self._guarded(context, lambda caller: self._answer(caller, request))

    async def Upload(self, request_iterator: AsyncIterator[UploadPart], context: CallContext) -> pb.Ack:  # noqa: N802
        """One whole masked vector."""
        return await self._guarded(context, lambda caller: self._upload(caller, request_iterator))

    async def Measure(self, request: pb.Measurement, context: CallContext) -> pb.Ack:  # noqa: N802
        """Accuracy on public data."""
        return await self._guarded(context, lambda caller: self._measure(caller, request))

    async def FetchModel(self, request: pb.ModelRequest, context: CallContext) -> AsyncIterator[ModelChunk]:  # noqa: N802
        """A model by digest, in chunks."""
        stream = await self._guarded(context, lambda caller: self._model(caller, request))
        try:
            async for chunk in stream:
                yield chunk
        except (OSError, StoreError) as error:
            log.warning("a model could not be sent", reason=type(error).__name__)
            await context.abort(STATUS["busy"], "the coordinator cannot read this model now: try again")
        except TooMuch as error:
            await context.abort(STATUS["flood"], str(error))

    async def Renew(self, request: pb.RenewRequest, context: CallContext) -> pb.RenewReply:  # noqa: N802
        """A certificate for a new key of the caller."""
        return await self._guarded(context, lambda caller: self._renew(caller, request, context))

    async def ReadLog(self, request: pb.LogRequest, context: CallContext) -> pb.LogPage:  # noqa: N802
        """A page of the log of rounds."""
        return await self._guarded(context, lambda caller: self._read_log(caller, request))

    async def Identify(self, request: pb.IdentifyRequest, context: CallContext) -> pb.IdentifyReply:  # noqa: N802
        """How this side sees the caller: for whoever finds out why it is not served."""
        try:
            party = party_of(context)
            self._gate.ask(party.uri, time.monotonic())
        except CertificateError as error:
            return await context.abort(STATUS["denied"], str(error))
        except TooMuch as error:
            return await context.abort(STATUS["flood"], str(error))
        return self.membership.identify(party, request)

    # ---- the edge: identity, errors ----

    async def admit(self, context: CallContext) -> None:
        """End a call that is no study's business; for services beside this one."""
        await self._guarded(context, _admitted, joining=True)

    async def _guarded(
        self, context: CallContext, handle: Callable[[Caller], Awaitable[Reply]], *, joining: bool = False
    ) -> Reply:
        """Admit the caller, run the handler, turn what it raises into a status."""
        try:
            self._open()
            caller = self._caller(context, joining=joining)
            with self._gate.held(caller.uri):
                return await handle(caller)
        except Refusal as refusal:
            self._run.counts[f"refused {refusal.kind}"] += 1
            code, text = STATUS[refusal.kind], refusal.text
        except TooMuch as error:
            self._run.counts["refused flood"] += 1
            code, text = STATUS["flood"], str(error)
        except StoreLost as error:
            log.warning("a request could not be stored", reason=str(error))
            code, text = STATUS["busy"], "the coordinator's store is out of reach: try again"
        except (StoreError, SpoolError) as error:
            log.warning("a request could not be stored", reason=str(error))
            code, text = STATUS["busy"], "the coordinator cannot write to its disk: its operator has to free space; try again"
        except Exception as error:  # noqa: BLE001  the one at the process edge: logged, and told to nobody
            log.error("a request failed", kind=type(error).__name__, where=_place(error))  # noqa: TRY400
            code, text = grpc.StatusCode.INTERNAL, "the coordinator failed on this request; its log says where"
        return await context.abort(code, text)

    def _caller(self, context: CallContext, *, joining: bool) -> Caller:
        try:
            party = party_of(context)
            self._gate.ask(party.uri, time.monotonic())
            self.membership.check(party)
        except CertificateError as error:
            raise Refusal("denied", str(error)) from error
        if not joining:
            if not self._run.known(party.uri):
                raise Refusal("busy", "the coordinator was restarted: join again")
            self._run.heard(party.uri)
        return Caller(party.uri, role_of(party.uri), party.public_key_der)

    # ---- handlers ----

    async def _join(self, caller: Caller, request: pb.JoinRequest) -> pb.JoinReply:
        check_version(request.protocol_version)
        if caller.role == "hospital":
            self._run.feed(ev.Joined(caller.uri, caller.public_key))
        self._run.heard(caller.uri, joined=True)
        reply = pb.JoinReply(
            protocol_version=PROTOCOL_VERSION,
            software_version=version("hospital-secagg"),
            identity=caller.uri,
            plan=self._run.plan.canonical(),
            rounds_done=self._run.state.round - 1,
            log=log_state(self._run.store),
            polls_say=True,
        )
        self._count(caller, "up", "join", request)
        self._count(caller, "down", "join", reply)
        return reply

    async def _renew(self, caller: Caller, request: pb.RenewRequest, context: CallContext) -> pb.RenewReply:
        reply = self.membership.renew(party_of(context), expiry_of(context), request)
        self._count(caller, "up", "join", request)
        self._count(caller, "down", "join", reply)
        return reply

    async def _read_log(self, caller: Caller, request: pb.LogRequest) -> pb.LogPage:
        reply = self._pages.after(request.after)
        self._count(caller, "up", "result", request)
        self._count(caller, "down", "result", reply)
        return reply

    async def _poll(self, caller: Caller, request: pb.PollRequest) -> pb.Instruction:
        self._take_said(caller, request)
        turn = self._polls[caller.uri] = object()
        try:
            number, order = await self._next_order(caller.uri, request.done, turn)
        finally:
            if self._polls.get(caller.uri) is turn:
                del self._polls[caller.uri]
        self.membership.check_not_revoked(caller.uri)
        reply = self._instructions.instruction(number, order, caller.uri, self._run.published_length)
        if isinstance(order, Open):
            self.membership.add_successions(reply.open)
            reply.open.log_head = bound_head(self._run.views, order.session)
        self._pages.show(reply)
        if isinstance(order, Mask):
            reply.mask.received_bytes = self._run.spool.received_bytes(order.session, caller.uri)
        phase, about = phase_of(order) or self._phase_now(caller), _round_of(order)
        if request.WhichOneof("said") is None:
            self._count(caller, "up", phase, request, about)
        self._count(caller, "down", phase, reply, about)
        if isinstance(order, Finished):
            self._run.told.add(caller.uri)
        return reply

    async def _next_order(self, uri: str, done: int, turn: object) -> tuple[int, Order]:
        loop = asyncio.get_running_loop()
        bell = self._run.bells.setdefault(uri, asyncio.Event())
        until = loop.time() + LONG_POLL_S
        while True:
            item = self._run.mail[uri].after(done)
            if item is not None:
                return item
            bell.clear()
            try:
                await asyncio.wait_for(bell.wait(), until - loop.time())
            except TimeoutError:
                return done, Wait(f"round {self._run.state.round} is in its {self._run.state.phase} phase")
            self._open()
            self.membership.check_not_revoked(uri)
            if self._polls.get(uri) is not turn:
                bell.set()  # for the newer poll
                return done, Wait("another poll of this party is open")

    def _take_said(self, caller: Caller, request: pb.PollRequest) -> None:
        """What comes with a poll, before the poll waits: a repetition changes nothing."""
        match request.WhichOneof("said"):
            case "answer":
                phase, about = self._take_answer(caller, request.answer)
            case "report":
                phase, about = self._take_report(caller, request.report)
            case _:
                return
        self._count(caller, "up", phase, request, about)

    async def _report(self, caller: Caller, request: pb.NodeReport) -> pb.Ack:
        return self._acknowledged(caller, request, *self._take_report(caller, request))

    def _take_report(self, caller: Caller, request: pb.NodeReport) -> tuple[str, int]:
        """Phase and round that its bytes are counted for. Raises Refusal."""
        about = self._run.state.round
        if request.state == pb.NodeReport.MEASURING:
            self._only("evaluator", caller, "measures")
            return "evaluate", about
        self._only("hospital", caller, "reports training")
        report = REPORTS.get(request.state)
        if report is None:
            raise Refusal("invalid", "the report names no training state")
        code = request.code
        if report in {ev.Report.DECLINED, ev.Report.FAILED} and code not in DECLINE_CODES:
            raise Refusal("invalid", f"a report of '{report}' needs one of the codes {', '.join(DECLINE_CODES)}")
        self._run.feed(ev.Reported(caller.uri, request.round, report, request.base_digest, code))
        return "train", about

    async def _answer(self, caller: Caller, request: pb.PhaseAnswer) -> pb.Ack:
        return self._acknowledged(caller, request, *self._take_answer(caller, request))

    def _take_answer(self, caller: Caller, request: pb.PhaseAnswer) -> tuple[str, int]:
        """Phase and round that its bytes are counted for. Raises Refusal."""
        self._only("hospital", caller, "takes part in masking")
        view = self._run.views.get(request.session)
        phase = ANSWER_PHASE.get(request.WhichOneof("answer") or "", self._phase_now(caller))
        about = self._run.state.round
        taken = take(self._run.state, view, caller.uri, request)
        if taken.event is not None:
            try:
                self._run.feed(taken.event)
            except StoreError:
                if view is not None:
                    forget(view, caller.uri, taken.event)
                raise
        return phase, about

    async def _upload(self, caller: Caller, messages: AsyncIterator[UploadPart]) -> pb.Ack:
        self._only("hospital", caller, "uploads")
        about = self._run.state.round

        async def counted() -> AsyncIterator[UploadPart]:
            async for message in messages:
                self._count(caller, "up", "mask", message, about)
                yield message

        try:
            await self._receiver.receive(caller.uri, counted())
        except UploadBroken as error:
            raise Refusal("busy", f"{error}: poll, and go on where the next instruction says") from error
        except (UploadError, WireError) as error:
            raise Refusal("invalid", str(error)) from error
        ack = pb.Ack()
        self._count(caller, "down", "mask", ack, about)
        return ack

    async def _measure(self, caller: Caller, request: pb.Measurement) -> pb.Ack:
        self._only("evaluator", caller, "measures")
        scores = [(score.label, tuple(score.per_case)) for score in request.scores]
        self._receiver.check_measurement(request, scores)
        self._run.measured(caller.uri, request.round, scores)
        return self._acknowledged(caller, request, "evaluate", request.round)

    async def _model(self, caller: Caller, request: pb.ModelRequest) -> AsyncIterator[ModelChunk]:
        number = self._run.round_of_model(request.digest)
        if number is None:
            raise Refusal("invalid", "there is no model of this digest in this study")
        evaluating = caller.role == "evaluator"
        phase, about = ("evaluate", number) if evaluating else ("broadcast", self._run.state.round)
        self._count(caller, "up", phase, request, about)
        return self._chunks(caller, request.digest.hex(), phase, about)

    async def _chunks(self, caller: Caller, digest: str, phase: str, about: int) -> AsyncIterator[ModelChunk]:
        with self._gate.held(caller.uri):
            for chunk in pieces(self._run.models.path_of(digest), CHUNK_BYTES):
                self._count(caller, "down", phase, chunk, about)
                self._run.heard(caller.uri)
                yield chunk

    # ---- small things ----

    def close(self, reason: str) -> None:
        """Refuse every call from now on, those in progress as soon as they are looked at."""
        self._closed, self.serving = reason, False
        self._receiver.stop()
        for bell in self._run.bells.values():
            bell.set()

    def _open(self) -> None:
        if self._closed:
            raise Refusal("busy", self._closed)

    def seen_in_polls(self) -> None:
        """A party whose poll is open is there: a dead connection ends its poll (keepalive)."""
        for uri in tuple(self._polls):
            self._run.heard(uri)

    def _only(self, role: str, caller: Caller, does: str) -> None:
        if caller.role != role:
            raise Refusal("denied", f"{caller.uri} is no {role}: only a {role} {does}")

    def _phase_now(self, caller: Caller) -> str:
        if caller.role == "evaluator":
            return "evaluate"
        phase = self._run.state.phase
        return phase.value if phase in MASKING else "train"

    def _acknowledged(self, caller: Caller, request: Sized, phase: str, about: int) -> pb.Ack:
        ack = pb.Ack()
        self._count(caller, "up", phase, request, about)
        self._count(caller, "down", phase, ack, about)
        return ack

    def _count(self, caller: Caller, direction: Direction, phase: str, message: Sized, about: int | None = None) -> None:
        number = self._run.state.round if about is None else about
        self._run.meter.add(Lane(number, caller.uri, direction, phase), message)


async def _admitted(_: Caller) -> None:
    """Nothing more than to be a party is asked."""


def _round_of(order: Order) -> int | None:
    match order:
        case Train() | RoundResult() | Evaluate():
            return order.round
        case _:
            return None


def _place(error: BaseException) -> str:
    """File and line of an error: no values, which could be anything."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
