"""What this node last took part in: written before the answers that it is about leave, so that a restart does not forget it.

One small file, replaced whole. It holds names, digests and counts that all members of the session know; nothing of a patient.
The log of rounds is checked against it (roundlog.py); a receipt that a crash prevented is made up from it (receipt_book.py).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from hospital_node.durable import write_whole
from hospital_node.ledger_schema import HEX_32_BYTES
from proto.plan import Frozen

ATTENDANCE_FILE = "attendance.json"


class Attendance(Frozen):
    """One masking session. `signed`: the survivor list under which this node put its name; None before."""

    plan: str = Field(pattern=HEX_32_BYTES)
    round: int = Field(ge=1)
    session: str = Field(pattern=r"^[0-9a-f]{32}$")
    base: str = Field(pattern=HEX_32_BYTES)
    lanes: int = Field(ge=1)
    roster: tuple[str, ...]
    signed: tuple[str, ...] | None = None


class AttendanceBook:
    """The file of one state folder. Writing raises OSError: then the answer must not leave."""

    def __init__(self, state: Path) -> None:
        self._path = state / ATTENDANCE_FILE
        self.latest = read_attendance(self._path)

    def enter(self, attendance: Attendance) -> None:
        """A session was entered."""
        write_whole(self._path, attendance.model_dump_json().encode())
        self.latest = attendance

    def sign(self, session: bytes, survivors: tuple[str, ...]) -> None:
        """Its survivor list is about to be signed."""
        latest = self.latest
        if latest is not None and latest.session == session.hex() and latest.signed != survivors:
            self.enter(latest.model_copy(update={"signed": survivors}))


def read_attendance(path: Path) -> Attendance | None:
    """The latest session; None where there was none, or another version wrote it."""
    try:
        return Attendance.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
