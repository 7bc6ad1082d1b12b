"""The audit log as a file: lines are appended under a lock and synced, never replaced; only its owner can read it.

Several processes may write (a node and a command line); readers need no lock. What is recorded is certs/audit.py's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from certs import files
from certs.audit import (
    Action,
    AuditDamaged,
    AuditError,
    Record,
    check_continues,
    in_words,
    line_of,
    next_record,
    records_of,
)

AUDIT_FILE: Final = "audit.log"
REMEDY = "keep the file for whoever looks into it, move it away, and bring back the newest export"


@dataclass(frozen=True, slots=True)
class AuditLog:
    """One log. Construct cheaply; the file is made with its first record."""

    path: Path

    @classmethod
    def within(cls, state: Path) -> AuditLog:
        """The log of the node or coordinator whose state folder this is."""
        return cls(state / AUDIT_FILE)

    def append(self, action: Action, at: datetime) -> Record:
        """Record an action durably, after verifying everything before it. Raises AuditError, AuditDamaged."""
        with self._locked() as descriptor:
            data = _all_of(descriptor)
            records = self._verified(data)
            record = next_record(records[-1] if records else None, at, action)
            confirmed = sum(len(line_of(one)) for one in records)
            line_break = b"\n" if len(data) < confirmed else b""
            self._write(descriptor, min(len(data), confirmed), line_break + line_of(record))
        return record

    def read(self) -> tuple[Record, ...]:
        """Every record, verified; none where nothing was recorded. Raises AuditDamaged, AuditError."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise AuditError(f"cannot read the audit log {self.path}: {error.strerror}") from error
        return self._verified(data)

    def _verified(self, data: bytes) -> tuple[Record, ...]:
        try:
            return records_of(data)
        except AuditDamaged as error:
            raise AuditDamaged(f"{self.path}: {error}; {REMEDY}") from error

    def _write(self, descriptor: int, offset: int, line: bytes) -> None:
        """Write at `offset`, where what was never confirmed begins. What a full disk took in part goes, too."""
        try:
            os.ftruncate(descriptor, offset)
            written = os.pwrite(descriptor, line, offset)
            if written != len(line):
                os.ftruncate(descriptor, offset)
                raise AuditError(f"cannot write the audit log {self.path}: the disk is full; make room and ask again")
            os.fsync(descriptor)
        except OSError as error:
            raise AuditError(f"cannot write the audit log {self.path}: {error.strerror}; mend that and ask again") from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            fresh = not self.path.exists()
            descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, files.PRIVATE)
        except OSError as error:
            raise AuditError(f"cannot open the audit log {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if fresh:
                files.sync_folder(self.path.parent)
            yield descriptor
        finally:
            os.close(descriptor)


def read_export(path: Path) -> tuple[Record, ...]:
    """The records of an export, verified. Raises AuditDamaged, AuditError."""
    if not path.exists():
        raise AuditError(f"{path} does not exist: name a file that `audit-log --export` wrote")
    return AuditLog(path).read()


def report(log: AuditLog, *, verify: bool, export: Path | None, continues: Path | None) -> Iterator[str]:
    """What `audit-log` prints at either end: the records, or what verifying and exporting them came to.

    Raises AuditDamaged, AuditError; CertificateError where the export cannot be written.
    """
    records = log.read()
    if continues is not None:
        check_continues(read_export(continues), records)
    if not verify and export is None and continues is None:
        yield from map(in_words, records)
    head = f", head {records[-1].digest.hex()}" if records else ""
    yield f"{len(records)} records in an unbroken chain{head}" if records else f"{log.path}: nothing was recorded yet"
    if continues is not None:
        yield f"It goes on from {continues}: nothing was changed or cut off since."
    if export is not None:
        files.replace(export, b"".join(map(line_of, records)), files.PRIVATE)
        yield f"{export}: written; it verifies by itself and with --continues"


def _all_of(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0)
