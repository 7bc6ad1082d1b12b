"""The log of rounds as parties read it: its length and head, and a page of entries. It decides how much a page holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from coordinator.store_interface import RunStore
from proto import federation_pb2 as pb
from proto import wire
from secagg.coordinate import SessionView

PAGE_ENTRIES = 256
KEPT_PAGES = 2  # the newest entry, and what follows it: nothing
PAGE_BYTES = 1 << 20  # an entry of a thousand survivors takes about 60 kB


def log_state(store: RunStore) -> pb.LogState:
    """For the first reply of a connection."""
    entries, head = store.log_state()
    return pb.LogState(entries=entries, head=head)


def log_page(store: RunStore, after: int) -> pb.LogPage:
    """The entries after number `after`: at least one where there is any."""
    page = pb.LogPage(state=log_state(store))
    size = 0
    for entry in store.log_entries(min(after, page.state.entries), PAGE_ENTRIES):
        message = wire.to_entry(entry)
        size += message.ByteSize()
        if page.entries and size > PAGE_BYTES:
            break
        page.entries.append(message)
    return page


class Pages:
    """Pages of one run's log, kept until a round ends: every hospital is given the newest one twice a round.

    `ended` gives another value once a round has ended, in the step that appends to the log.
    """

    def __init__(self, store: RunStore, ended: Callable[[], Hashable]) -> None:
        self._store, self._ended = store, ended
        self._as_of: Hashable = None
        self._kept: dict[int, pb.LogPage] = {}
        self._log: pb.LogState | None = None

    def after(self, number: int) -> pb.LogPage:
        """As `log_page`; not to be changed."""
        self._as_of_now()
        if len(self._kept) >= KEPT_PAGES and number not in self._kept:
            self._kept.clear()
        if number not in self._kept:
            self._kept[number] = log_page(self._store, number)
        return self._kept[number]

    def show(self, instruction: pb.Instruction) -> None:
        """Put into an order what its reader compares with the log, so that it need not ask for it."""
        match instruction.WhichOneof("order"):
            case "train":
                instruction.train.log.CopyFrom(self._state())
            case "result" if self._state().entries == instruction.result.round:  # an older one serves nobody
                page = self.after(instruction.result.round - 1)
                instruction.result.entry.CopyFrom(page.entries[0])
                instruction.result.log.CopyFrom(page.state)

    def _state(self) -> pb.LogState:
        self._as_of_now()
        if self._log is None:
            self._log = log_state(self._store)
        return self._log

    def _as_of_now(self) -> None:
        if self._as_of != self._ended():
            self._kept.clear()
            self._log, self._as_of = None, self._ended()


def bound_head(views: Mapping[bytes, SessionView], session: bytes) -> bytes:
    """The head that a session binds; empty where its plan binds none, and of a session that is over."""
    view = views.get(session)
    return b"" if view is None else view.params.log_head
