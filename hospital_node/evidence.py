"""What a node keeps so that others need not be believed: the log of rounds, followed, and a signed receipt for each round.

This file joins the two: when each is asked, in what order, and what of one goes into the other. Refusing is the log's business
alone; a receipt that cannot be written now is logged, and written later from what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from certs.identity import Identity
from hospital_node.attendance import AttendanceBook
from hospital_node.follow_log import LogWatch
from hospital_node.ledger import Charge, Ledger, LedgerError
from hospital_node.ledger_chain import Chain
from hospital_node.link import Link, OrderStale
from hospital_node.logs import logger
from hospital_node.receipt_book import Known, ReceiptBook, Traffic
from hospital_node.receipts import Outcome, ReceiptError
from hospital_node.roundlog import KeptLog, LogDamaged
from hospital_node.session import SessionRefused
from hospital_node.state import StateFolder
from hospital_node.traffic import ByteMeter
from hospital_node.work import WorkFailed
from proto import federation_pb2 as pb
from proto.plan import DECLINE_CODES, Plan, PlanError

MOST_AT_ONCE: Final = 50  # receipts made up in one go: orders wait meanwhile, and the others follow at the next one


class Evidence:
    """One node's. One owner, one thread. What raises WorkFailed is a reason to take part in nothing."""

    def __init__(
        self,
        folder: StateFolder,
        identity: Callable[[], Identity],
        meter: ByteMeter,
        ledger: Callable[[], Ledger],
        now: Callable[[], datetime],
    ) -> None:
        self._folder, self._identity, self._meter, self._ledger, self._now = folder, identity, meter, ledger, now
        self.attended = AttendanceBook(folder.path)
        self._since, self._counted, self._whole = now(), meter.totals(), False
        self._watch: LogWatch | None = None
        self._plan: Plan | None = None
        self._rounds_done = 0  # as the coordinator says
        self._pending: int | None = None  # a round whose session was entered and whose result is awaited
        self._results: dict[int, pb.RoundResult] = {}
        self._declined: dict[int, tuple[Outcome, str]] = {}
        self._receipts: ReceiptBook | None = None
        try:
            self._receipts = ReceiptBook(folder.path)
            self._whole = self._receipts.count == 0
        except ReceiptError as error:
            logger().warning("no receipts are written until their file is restored", reason=str(error))

    @property
    def due(self) -> bool:
        """Whether the log is to be read before anything else."""
        return self._watch is not None and self._watch.due

    def take_plan(self, plan: Plan) -> None:
        """Another plan; rounds of the one before it that were charged get their receipts now, as nothing more will be heard."""
        before = self._plan or self._plan_before()
        if before is not None and before.digest() != plan.digest():
            self._close(before)
        self._plan, self._pending = plan, None
        self._results.clear()
        self._declined.clear()
        answered, uri = self._folder.has_answered, self._identity().uri
        self._watch = LogWatch(self._folder.path, plan, uri, self.attended, answered, self._now)

    def joined(self, reply: pb.JoinReply) -> None:
        """A connection stands."""
        assert self._watch is not None
        self._watch.joined(reply)
        self._rounds_done = reply.rounds_done

    def follow(self, link: Link) -> None:
        """Read the log, and write receipts of rounds that ended meanwhile. Raises WorkFailed and what a link raises."""
        assert self._watch is not None
        self._watch.follow(link)
        self._complete(self._ended(max(self._rounds_done, self._watch.rounds)))

    def before_training(self, link: Link, order: pb.Train) -> None:
        """Raises WorkFailed where the log does not fit the round on offer."""
        assert self._watch is not None
        self._pending = None  # of an earlier round nothing more will be said
        try:
            self._watch.before_training(link, order)  # first: nobody told this node how the rounds ended that the log has
        except WorkFailed:
            self._complete(self._ended(order.round - 1))
            raise
        self._complete(self._ended(order.round - 1))

    def before_answer(self, link: Link, phase: str, order: pb.Open) -> None:
        """Raises SessionRefused where the log does not let this node take part; its code alone leaves."""
        assert self._watch is not None
        try:
            self._watch.refuse_if_stopped()
            if phase == "open":
                self._watch.before_session(link, order)
                self._pending = order.round
        except WorkFailed as error:
            raise SessionRefused(error.code, DECLINE_CODES[error.code]) from error

    def declined(self, round_number: int, outcome: Outcome, code: str) -> None:
        """The round was not trained here."""
        self._declined[round_number] = outcome, code

    def result(self, link: Link, order: pb.RoundResult, recorded: Chain | None = None) -> None:
        """A round is over. A receipt of one that this node entered is written even where the log then refuses. WorkFailed.

        `recorded`: the ledger's entries where its result was just recorded there.
        """
        assert self._watch is not None
        self._pending = None
        self._results = {order.round: order}
        try:
            self._watch.result(link, order)
        except OrderStale as error:
            logger().info("log of rounds not read", reason=str(error))  # it stays due
        finally:
            self._complete(self._ended(order.round), recorded)

    def finished(self) -> None:
        """The study is over: every round is."""
        self._pending = None
        self._complete(self._ended(max(self._rounds_done, 0 if self._watch is None else self._watch.rounds)))

    # ---- receipts ----

    def _ended(self, claimed: int) -> int:
        """Rounds that may have a receipt: the coordinator's word is bounded by its log and by what this node took part in."""
        plan, watch, latest = self._plan, self._watch, self.attended.latest
        if plan is None or watch is None:
            return 0
        attended = latest.round if latest is not None and latest.plan == plan.digest().hex() else 0
        return min(claimed, max(watch.ended(claimed), attended))

    def _complete(self, last: int, events: Chain | None = None) -> None:
        """Receipts of all rounds up to `last` that have none, but for one under way."""
        plan, watch = self._plan, self._watch
        if plan is None or watch is None:
            return
        if self._pending is not None:
            last = min(last, self._pending - 1)
        self._write(plan, min(last, plan.rounds), watch.kept, watch.head(), events)

    def _write(self, plan: Plan, last: int, kept: KeptLog | None, head: bytes | None, events: Chain | None = None) -> None:
        book = self._receipts
        first = 1 if book is None else book.last_round(plan.digest().hex()) + 1
        if book is None or last < first:
            return
        last = min(last, first + MOST_AT_ONCE - 1)
        try:
            entries = {} if kept is None else kept.between(first, last)
            rounds = [
                Known(
                    round=number,
                    entry=entries.get(number),
                    result=self._results.get(number),
                    attendance=self.attended.latest,
                    declined=self._declined.get(number),
                    traffic=self._traffic() if number == last else None,
                    log_head=head,
                    made_up=number not in self._results,
                )
                for number in range(first, last + 1)
            ]
            events = self._ledger().opened_on if events is None else events
            count = book.write(plan, rounds, events, self._identity(), self._now())
        except (OSError, LedgerError, LogDamaged) as error:
            logger().warning("a receipt could not be written; it is made up later", reason=str(error))
            return
        self._since, self._counted, self._whole = self._now(), self._meter.totals(), True
        self._declined = {number: why for number, why in self._declined.items() if number > last}
        logger().info("receipt written", round=last, count=count)

    def _traffic(self) -> Traffic:
        sent, received = self._meter.totals()
        was_sent, was_received = self._counted
        return Traffic(
            {item: count - was_sent.get(item, 0) for item, count in sorted(sent.items())},
            {item: count - was_received.get(item, 0) for item, count in sorted(received.items())},
            self._since,
            self._whole,
        )

    def _plan_before(self) -> Plan | None:
        try:
            return self._folder.read_plan()
        except PlanError:
            return None

    def _close(self, plan: Plan) -> None:
        """Receipts of a plan that this node left."""
        try:
            kept = KeptLog(self._folder.path, plan)
            digest = plan.digest().hex()
            entries = (event.entry for event in self._ledger().opened_on)
            charged = [entry.round for entry in entries if isinstance(entry, Charge) and entry.plan == digest]
        except (LogDamaged, LedgerError) as error:
            logger().warning("a receipt could not be written; it is made up later", reason=str(error))
            return
        last = max([kept.count, *charged])
        for _ in range(0, last, MOST_AT_ONCE):
            self._write(plan, last, kept, kept.head if kept.count else None)
