"""When the certificates of a study end: kept in the state folder for `status` and the app, and said in the log in time.

The file holds names and dates, nothing else. A certificate's end is a fact of the connection (certs.tls.expiry_of).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import structlog

from certs.renewal import expiry_warning
from coordinator.models import write_atomically
from proto.plan import short_name

FILE = "certificates.json"

log = structlog.get_logger()


class Expiry:
    """What connections have shown since this start, and before."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE
        self._ends = read_ends(state)

    def seen(self, uri: str, not_after: datetime) -> None:
        """A party showed a certificate that ends at `not_after`."""
        if self._ends.get(uri) == not_after:
            return
        self._ends[uri] = not_after
        fields = {party: end.isoformat() for party, end in sorted(self._ends.items())}
        try:
            write_atomically(self._path, json.dumps(fields, indent=1).encode())
        except OSError as error:
            log.warning("the ends of certificates could not be kept", reason=error.strerror)
        warning = expiry_warning(not_after, datetime.now(UTC))
        if warning is not None:
            log.warning("a certificate ends soon", party=short_name(uri), reason=warning)


def read_ends(state: Path) -> dict[str, datetime]:
    """URI -> end of its certificate as it was seen last; empty before the first connection."""
    try:
        fields = json.loads((state / FILE).read_bytes())
        return {str(uri): datetime.fromisoformat(end) for uri, end in fields.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def certificates_of(ends: dict[str, datetime], now: datetime) -> list[dict[str, object]]:
    """One row for each certificate, the first to end first. `warning` is empty where there is time."""
    rows = sorted(ends.items(), key=lambda item: item[1])
    return [
        {
            "party": uri,
            "name": short_name(uri),
            "not_after": end,
            "days_left": max(0, (end - now).days),
            "warning": expiry_warning(end, now) or "",
        }
        for uri, end in rows
    ]
