"""Bytes on the connection, counted by item and direction as the messages pass."""

from __future__ import annotations

import threading
from collections import Counter

from hospital_node.progress import Item
from proto.wire import Sized, framed_bytes


class ByteMeter:
    """Sums of one node. Safe to use from several threads: grpc sends streams from its own."""

    def __init__(self) -> None:
        self._sent: Counter[Item] = Counter()
        self._all_sent: Counter[Item] = Counter()
        self.received: Counter[Item] = Counter()  # since the start; what leaves is what people ask about
        self._lock = threading.Lock()

    def count_sent(self, item: Item, message: Sized) -> None:
        """Count one message that leaves."""
        with self._lock:
            size = framed_bytes(message)
            self._sent[item] += size
            self._all_sent[item] += size

    def count_received(self, item: Item, message: Sized) -> None:
        """Count one message that comes in."""
        with self._lock:
            self.received[item] += framed_bytes(message)

    def totals(self) -> tuple[dict[Item, int], dict[Item, int]]:
        """Bytes sent and received by item since the start."""
        with self._lock:
            return dict(self._all_sent), dict(self.received)

    def take(self) -> dict[Item, int]:
        """Bytes sent by item since the last call."""
        with self._lock:
            sent = dict(self._sent)
            self._sent.clear()
        return sent
