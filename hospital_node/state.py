"""The state folder of a node: where each file lies, and the only places that write the small ones.

Every file is replaced whole or appended and synced, so that a power cut leaves the old content or the new, never half.
Nothing here survives that a private gradient passed through uncharged: updates and masking keys are held in memory only, and
control variates follow from updates that the ledger has charged (variates.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hospital_node.durable import sync_folder, write_whole
from hospital_node.ledger import Ledger, LedgerMissing
from hospital_node.ledger_stamp import Unwritten
from proto.plan import Frozen, Plan, PlanError, from_canonical, short_name

SESSION_BYTES = 16
_SESSIONS: Unwritten[frozenset[bytes]] = Unwritten()


class StateError(RuntimeError):
    """A state folder that cannot be used; the text says what to do."""


class NodeFile(Frozen):
    """node.json: whose folder this is, for the app."""

    uri: str
    study: str
    name: str
    certificate_until: str = ""  # ISO 8601; the app says it from 30 days before on


def ledger_to_read(state: Path, shared: Path | None) -> Path:
    """The ledger of a node: the one that its studies share, also before this study's folder is linked to it."""
    return shared or StateFolder(state).ledger


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths and small files of one node. Construct cheaply; call `create` before writing."""

    path: Path
    witness: Path | None = None  # the ledger's second counter

    @property
    def ledger(self) -> Path:
        """The hospital's privacy ledger (see LEDGER.md), or a link to it where several studies share it."""
        return self.path / "ledger.db"

    @property
    def cache(self) -> Path:
        """Prepared studies; may be deleted at any time while the node is stopped."""
        return self.path / "cache"

    @property
    def patient_secret(self) -> Path:
        """Behind the patients' opaque keys, and so behind who is measured and who is trained on: it outlives the cache."""
        return self.path / "patients.secret"

    @property
    def fingerprint(self) -> Path:
        """What the studies of this node are like, as `data check` found them last; never sent."""
        return self.path / "fingerprint.json"

    @property
    def plan(self) -> Path:
        """The plan as the coordinator offered it last, canonical JSON."""
        return self.path / "plan.json"

    @property
    def progress(self) -> Path:
        """Live progress for the hospital's own app."""
        return self.path / "progress.json"

    @property
    def leaves(self) -> Path:
        """Bytes that left in the last round, by item."""
        return self.path / "leaves.json"

    @property
    def node(self) -> Path:
        """Whose folder this is."""
        return self.path / "node.json"

    @property
    def successions(self) -> Path:
        """What peers' old keys said of their new ones (certs/succession.py), one statement a line."""
        return self.path / "successions.jsonl"

    @property
    def own_successions(self) -> Path:
        """What this node's own old keys said of its new ones: with it receipts verify across a renewal."""
        return self.path / "own-successions.jsonl"

    @property
    def sessions(self) -> Path:
        """Every masking session that this node ever answered, one hexadecimal id a line."""
        return self.path / "sessions.log"

    @property
    def variate(self) -> Path:
        """The control variate of this hospital, where the plan has them: what released updates say of its mean gradient."""
        return self.path / "variate.safetensors"

    @property
    def proposed_variate(self) -> Path:
        """The one that takes its place if the round counts."""
        return self.path / "variate-proposed.safetensors"

    @property
    def prediction(self) -> Path:
        """The evaluator's last prediction of one public case."""
        return self.path / "prediction.npz"

    def create(self) -> None:
        """Make the folder, readable by its owner only."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot make the state folder {self.path}: {error.strerror}") from error

    def share_ledger(self, shared: Path | None) -> None:
        """Let `shared` be this folder's ledger from now on; None changes nothing. StateError where there is another one."""
        if shared is None or self.ledger.resolve() == shared.resolve():
            return
        if self.ledger.is_symlink() or self.ledger.exists():
            raise StateError(
                f"{self.ledger} is another ledger than {shared}, which key 'ledger' names: a hospital has one, and what was "
                "spent in both counts together; ask before either is put aside"
            )
        if not shared.parent.is_dir():
            raise StateError(
                f"the folder {shared.parent} of key 'ledger' does not exist: create it, readable by its owner only"
            )
        self.ledger.symlink_to(shared.resolve())
        sync_folder(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; StateError while another holds it."""
        with (self.path / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateError(f"another node process uses the state folder {self.path}: stop it first") from error
            yield

    def write_node(self, uri: str, study: str, certificate_until: str = "") -> None:
        """Record whose folder this is."""
        content = NodeFile(uri=uri, study=study, name=short_name(uri), certificate_until=certificate_until)
        self._write(self.node, content.model_dump_json().encode())

    def write_plan(self, plan: Plan) -> None:
        """Keep the plan offered last, for the officer and the app."""
        self._write(self.plan, plan.canonical())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_whole(path, data)
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}: free some space, then start the node again") from error

    def read_plan(self) -> Plan | None:
        """The plan offered last, or None. PlanError where the file was edited."""
        try:
            data = self.plan.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return from_canonical(data)
        except PlanError as error:
            raise PlanError(
                f"{self.plan} was changed or made by another version: delete it and start the node again"
            ) from error

    def open_ledger(self, hospital_uri: str, at: datetime) -> Ledger:
        """The hospital's ledger, verified; a new one where there never was any. Raises LedgerError, StateError."""
        try:
            ledger = Ledger.open(self.ledger, witness=self.witness)
        except LedgerMissing:
            return Ledger.create(self.ledger, hospital_uri, at, witness=self.witness)
        if ledger.hospital != short_name(hospital_uri):
            raise StateError(
                f"{self.ledger} belongs to {ledger.hospital}, this node is {short_name(hospital_uri)}: correct key 'state'"
            )
        return ledger

    def seen_sessions(self) -> frozenset[bytes]:
        """Ids of all sessions ever answered. A line that a power cut left short was never answered."""
        return frozenset(self._each_session())

    def has_answered(self, session: bytes) -> bool:
        """Whether this session was ever answered; True also where none is written down at all.

        Asked of each entry of a long log, it reads a list that nobody writes to once and not as often as the log has entries.
        """
        known = _SESSIONS.of(self.sessions, self.seen_sessions)
        return not known or session in known

    def _each_session(self) -> Iterator[bytes]:
        try:
            with self.sessions.open(encoding="ascii") as lines:
                for line in lines:
                    if len(line.rstrip()) >= 2 * SESSION_BYTES:
                        yield bytes.fromhex(line)
        except FileNotFoundError:
            return
        except ValueError as error:  # also what is no ASCII
            raise StateError(f"{self.sessions} is damaged: restore it, or take part under a new identity") from error

    def remember_session(self, session: bytes) -> None:
        """Append one id and sync it; to be called before the first answer of that session leaves. Raises OSError."""
        descriptor = os.open(self.sessions, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, _line_break_if_unfinished(descriptor) + session.hex().encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self.path)


def _line_break_if_unfinished(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    return b"\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b""
