"""Following the coordinator's log: read what is new, keep what fits, and refuse everything else (the rules are in roundlog.py).

Looked at with every connection, at every round's end and before every training; a session is entered only under the head that
its order binds. While a fork stands nothing is trained, answered or released. A head commits to every entry before it: where an
order brings the head that was kept, or the one entry that follows, nothing is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from hospital_node.attendance import AttendanceBook
from hospital_node.link import Link
from hospital_node.logs import logger
from hospital_node.roundlog import KeptLog, LogDamaged, LogForked, Own, described, write_down
from hospital_node.work import WorkFailed
from proto import federation_pb2 as pb
from proto import wire
from proto.plan import Plan
from proto.roundlog import Entry


class LogWatch:
    """One plan's log at one node. One owner, one thread."""

    def __init__(
        self,
        state: Path,
        plan: Plan,
        me: str,
        book: AttendanceBook,
        answered: Callable[[bytes], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._state, self._plan, self._me = state, plan, me
        self._book, self._answered, self._now = book, answered, now
        self._served = False  # the coordinator keeps a log
        self._told: pb.RoundResult | None = None
        self.due = False
        self.stopped: WorkFailed | None = None
        self.kept: KeptLog | None = None
        try:
            self.kept = KeptLog(state, plan)
        except LogDamaged as error:
            self._stop(error)

    @property
    def rounds(self) -> int:
        """Rounds of which it is kept how they ended."""
        return 0 if self.kept is None else self.kept.count

    def ended(self, claimed: int) -> int:
        """Rounds that ended, of `claimed` ones: those of the log wherever there is one. Without any, the coordinator's word."""
        return min(claimed, self.rounds) if self._served or self.rounds else claimed

    def joined(self, reply: pb.JoinReply) -> None:
        """A connection stands: what it shows is to be looked at before anything else."""
        self._served, self.due = reply.HasField("log"), True

    def refuse_if_stopped(self) -> None:
        """Raise what stands against taking part."""
        if self.stopped is not None:
            raise self.stopped

    def follow(self, link: Link) -> None:
        """Read on, if the coordinator keeps a log. Raises LogForked, LogDamaged, and what a link raises."""
        kept = self.kept
        if kept is None:
            self.refuse_if_stopped()
            return
        self._unless_forked(lambda: self._read_and_compare(link, kept))
        if self.stopped is not None:
            logger().info("the kept history of rounds is shown again", entries=kept.count)
        self.stopped, self.due = None, False

    def before_training(self, link: Link, order: pb.Train) -> None:
        """The round and the model that it starts from follow from the log. Raises as `follow`."""
        kept = self.kept
        if self._needs_reading or kept is None or (order.log.entries, order.log.head) != (kept.count, kept.head):
            self.follow(link)
        if kept is None or not self._served:
            return
        base = kept.model_after(order.round - 1)
        if kept.count < order.round - 1:
            self._fork(f"it offers round {order.round} and shows how {kept.count} rounds ended")
        if base is not None and base != order.base_digest:
            self._fork(f"it offers round {order.round} on another model than its log says was published")

    def before_session(self, link: Link, order: pb.Open) -> None:
        """No session under a standing fork, nor under another head than was kept. Raises as `follow`."""
        self.refuse_if_stopped()
        if self._served and self.rounds < order.round - 1:
            self.follow(link)
        bound = self._plan.masking.bind_log and bool(order.log_head)  # no head claims no history: it is malformed, not a fork
        if bound and (self.kept is None or order.log_head != self.kept.head_after(order.round - 1)):
            self._fork(f"it opens a session of round {order.round} under another head than this node has kept")

    def result(self, link: Link, order: pb.RoundResult) -> None:
        """The log has to say of a round what its result said. Raises as `follow`."""
        kept, asks = self.kept, self._needs_reading
        self._told, self.due = order, True
        if kept is None or asks or not order.entry.index == order.log.entries == kept.count + 1:
            self.follow(link)
            return
        self._unless_forked(lambda: self._keep_next(kept, order))
        self.due = False

    def entry(self, round_number: int) -> Entry | None:
        """How a round ended, where the log says so."""
        return None if self.kept is None else self.kept.between(round_number, round_number).get(round_number)

    def head(self) -> bytes | None:
        """Of the kept copy; None where the coordinator keeps no log."""
        return None if self.kept is None or not (self._served or self.kept.count) else self.kept.head

    @property
    def _needs_reading(self) -> bool:
        """What an order brings does not do: nothing was read on this connection, or a fork stands that has to be shown gone."""
        return self.due or self.stopped is not None or not self._served

    def _unless_forked(self, take: Callable[[], None]) -> None:
        try:
            take()
        except (LogForked, LogDamaged) as error:
            self._stop(error)
            raise

    def _keep_next(self, kept: KeptLog, order: pb.RoundResult) -> None:
        self._keep(kept, [_entry(order.entry)])
        if kept.head != order.log.head:
            raise LogForked("the head that it names is not that of its last entry")
        self._check_told()

    def _read_and_compare(self, link: Link, kept: KeptLog) -> None:
        if self._served:
            self._read_on(link, kept)
            self._check_told()
        elif kept.count:
            raise LogForked(f"it shows none any more, and {kept.count} entries were kept")

    def _read_on(self, link: Link, kept: KeptLog) -> None:
        state, shown = _page(link, max(0, kept.count - 1))
        if kept.last is not None and (not shown or shown[0] != kept.last):
            differs = described(kept.read(), _from_the_first(link, kept.count))
            raise LogForked(differs, shown[0] if shown else None)
        self._keep(kept, shown if kept.last is None else shown[1:])
        while kept.count < state.entries:
            before = kept.count
            state, shown = _page(link, before)
            self._keep(kept, shown)
            if kept.count == before:
                raise LogForked(f"it says that it has {state.entries} entries and shows {before}")
        if kept.count == state.entries and kept.head != state.head:
            raise LogForked("the head that it names is not that of its last entry")

    def _keep(self, kept: KeptLog, entries: Sequence[Entry]) -> None:
        own, last = self._own(), kept.last
        for entry in entries:
            kept.check(entry, last, own)
            if self._told is not None and entry.round == self._told.round:
                _compare(entry, self._told)
            last = entry
        kept.append(entries)

    def _check_told(self) -> None:
        told = self._told
        entry = None if told is None else self.entry(told.round)
        if told is not None and entry is not None:
            _compare(entry, told)
        elif told is not None:
            raise LogForked(f"it told how round {told.round} ended and its log does not have it")

    def _own(self) -> Own:
        latest = self._book.latest
        if latest is None or latest.plan != self._plan.digest().hex():
            return Own(self._me, self._answered)
        return Own(self._me, self._answered, bytes.fromhex(latest.session), latest.signed)

    def _fork(self, what: str) -> None:
        error = LogForked(what)
        self._stop(error)
        raise error

    def _stop(self, error: LogForked | LogDamaged) -> None:
        if self.stopped is None or str(self.stopped) != str(error):
            logger().warning("this node takes part in nothing", code=error.code, reason=str(error))
        self.stopped = error
        if isinstance(error, LogForked) and self.kept is not None:
            write_down(self._state, self.kept, error, self._now())


def _page(link: Link, after: int) -> tuple[pb.LogState, list[Entry]]:
    page = link.read_log(after)
    return page.state, [_entry(one) for one in page.entries]


def _entry(message: pb.LogEntry) -> Entry:
    try:
        return wire.from_entry(message)
    except wire.WireError as error:
        raise LogForked(f"entry {message.index} cannot be read: {error}") from error


def _from_the_first(link: Link, most: int) -> list[Entry]:
    """What is shown now of the entries that were kept before: to name the first that differs."""
    found: list[Entry] = []
    while len(found) < most:
        _, shown = _page(link, len(found))
        if not shown:
            break
        found += shown
    return found[:most]


def _compare(entry: Entry, told: pb.RoundResult) -> None:
    logged = (entry.session, entry.survivors, entry.state == "opened", entry.sum_digest, entry.model)
    said = (told.session, tuple(sorted(told.survivors)), told.opened, told.sum_digest, told.model_digest)
    if logged != said:
        names = ("session", "survivors", "opened", "sum_digest", "model_digest")
        differing = ", ".join(name for name, one, other in zip(names, logged, said, strict=True) if one != other)
        raise LogForked(
            f"entry {entry.index} says of round {told.round} something else than its result did, in {differing}", entry
        )
