"""The log of rounds as parties read it: its length and head, and a page of entries. It decides how much a page holds."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.store_interface import RunStore
from proto import federation_pb2 as pb
from proto import wire
from secagg.coordinate import SessionView

PAGE_ENTRIES = 256
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


def bound_head(views: Mapping[bytes, SessionView], session: bytes) -> bytes:
    """The head that a session binds; empty where its plan binds none, and of a session that is over."""
    view = views.get(session)
    return b"" if view is None else view.params.log_head
