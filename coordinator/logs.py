"""The coordinator's log: one line for each thing that happens, on standard error, through an allow-list of fields.

A field that is not listed here cannot reach the log, whoever asks for it: no vector, no share, no key, no score.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

ALLOWED = frozenset(
    {
        "address", "door", "event", "kind", "level", "party", "phase", "reason", "round", "seconds", "session", "threads",
        "timestamp", "where",
    }
)  # fmt: skip


def configure(*, as_json: bool = False) -> None:
    """Send log lines to standard error: for people, or one JSON object a line for programs."""
    form: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0, pad_level=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True) if as_json else _wall_clock(),
            only_allowed,
            structlog.processors.JSONRenderer() if as_json else form,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_stderr_logger,
    )


def only_allowed(_: object, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove every field that is not on the list."""
    for name in [name for name in fields if name not in ALLOWED]:
        del fields[name]
    return fields


def _wall_clock() -> structlog.processors.TimeStamper:
    return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)


def _stderr_logger(*_: object) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)  # looked up for every line: stderr may be replaced while a program runs
