"""The node's log: one line for each phase on standard error, through an allow-list of fields.

A field that is not listed here cannot reach the log, whoever asks for it: no patient, no path, no loss, no vector, no key.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

ALLOWED = frozenset(
    {
        "attempt", "bytes", "cases", "code", "culprit", "detail", "door", "event", "level", "members", "phase", "plan",
        "reason", "round", "seconds", "study", "survivors", "timestamp", "uri", "wait_s",
    }
)  # fmt: skip

Log = structlog.typing.FilteringBoundLogger


def configure(stream: TextIO | None = None) -> None:
    """Send log lines to `stream` (standard error by default)."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            only_allowed,
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=28),
        ],
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger() -> Log:
    """The logger of this process."""
    log: Log = structlog.get_logger()
    return log


def only_allowed(_: object, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove every field that is not on the list."""
    for name in [name for name in fields if name not in ALLOWED]:
        del fields[name]
    return fields
