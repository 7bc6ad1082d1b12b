"""The node's own copy of the coordinator's log of rounds, and what it takes for another history.

Rules (what a log is: proto/roundlog.py):
(1) an entry is kept, synced, only after it was checked against the one before it, against the plan, and against what this node
    did: a round that lists this hospital is of a session that it answered, and the list is the one that it signed;
(2) the coordinator has to show the last kept entry again before anything new is believed;
(3) whatever does not fit is a fork: nothing that was kept changes, both sides are written down, and the node takes part in
    nothing (`LogForked`) until the kept history is shown again or people put the copy aside;
(4) a copy that cannot be read stops the node as well: a node that forgets cannot tell a fork.
What it cannot check: that a sum is that of the uploads, and that a model follows from a sum (README, The log of rounds).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from certs.audit import Action, AuditError
from certs.audit_file import AuditLog
from hospital_node.durable import append_lines, sync_folder, write_whole
from hospital_node.work import WorkFailed
from proto import scaffold
from proto.plan import Plan
from proto.roundlog import Entry, RoundLogError, check_next, entry_of, first_difference, first_head, line_of, to_fields

FOLDER = "rounds"  # of a state folder: <plan digest>.log, and what a fork left
REMEDY = (
    "this node takes part in nothing, and nothing more is charged. It is the coordinator's fault, or its store was restored "
    "from an old copy: ask its operator, compare `secagg-node log head` with other hospitals, and read docs/TROUBLESHOOTING.md"
)


class LogForked(WorkFailed):
    """The coordinator shows another history than was kept. The sentence is for people here; the code alone leaves."""

    def __init__(self, what: str, shown: Entry | None = None) -> None:
        super().__init__("log-forked", f"The coordinator shows another history of rounds: {what}; {REMEDY}.")
        self.what = what
        self.shown = shown


class LogDamaged(WorkFailed):
    """The kept copy cannot be used."""

    def __init__(self, what: str) -> None:
        text = f"{what}: restore it from a backup, or put it aside with `secagg-node log set-aside` after comparing heads"
        super().__init__("log-damaged", f"{text}.")


@dataclass(frozen=True, slots=True)
class Own:
    """What this node knows of its own part: which sessions it may have answered, and the last list that it signed."""

    uri: str
    answered: Callable[[bytes], bool]
    session: bytes = b""
    signed: tuple[str, ...] | None = None


def log_file(state: Path, plan: bytes) -> Path:
    """The kept copy of one plan's log."""
    return state / FOLDER / f"{plan.hex()}.log"


class KeptLog:
    """The copy of one plan's log. One writer. Construction raises LogDamaged."""

    def __init__(self, state: Path, plan: Plan) -> None:
        self.path = log_file(state, plan.digest())
        self.plan, self._digest = plan, plan.digest()
        named = None if scaffold.is_used(plan) else plan.start_digest  # of x alone, and a round publishes x and c as one vector
        self._start = None if named is None else bytes.fromhex(named)
        self.last: Entry | None = None
        self._before: Entry | None = None  # the one before the last
        self._first_base: bytes | None = None
        for entry in read_kept(self.path):
            try:
                check_next(self.last, entry, self._digest, self._start)
            except RoundLogError as error:
                raise LogDamaged(f"{self.path}: {error}") from error
            self._remember(entry)

    @property
    def count(self) -> int:
        """Entries kept."""
        return 0 if self.last is None else self.last.index

    @property
    def head(self) -> bytes:
        """Head of the last one."""
        return first_head(self._digest) if self.last is None else self.last.head

    def head_after(self, rounds: int) -> bytes | None:
        """The head once so many rounds had ended; None where fewer were shown. Raises LogDamaged."""
        if rounds == 0:
            return first_head(self._digest)
        entry = self._entry(rounds)
        return None if entry is None else entry.head

    def model_after(self, rounds: int) -> bytes | None:
        """The model published by then; None where nothing says so. Raises LogDamaged."""
        if rounds == 0:
            return self._start or self._first_base
        entry = self._entry(rounds)
        return None if entry is None else entry.model

    def _entry(self, index: int) -> Entry | None:
        """One entry. Only the newest two are at hand: a log has thousands, and no round asks for another."""
        if not 1 <= index <= self.count:  # a coordinator says which, and 0 is not beyond it
            return None
        near = next((one for one in (self.last, self._before) if one is not None and one.index == index), None)
        entry = near or next((one for one in read_kept(self.path) if one.index == index), None)
        if entry is None:
            raise LogDamaged(f"{self.path} was cut back: entry {index} of {self.count} is gone")
        return entry

    def read(self) -> tuple[Entry, ...]:
        """Every entry."""
        return tuple(read_kept(self.path))

    def between(self, first: int, last: int) -> dict[int, Entry]:
        """Entries of these rounds that are kept, by round. Reads the file only for older ones than the newest."""
        if self.last is None or self.last.round < first:
            return {}
        if self.last.round == first:
            return {first: self.last}
        return {entry.round: entry for entry in self.read() if first <= entry.round <= last}

    def check(self, entry: Entry, last: Entry | None, own: Own) -> None:
        """Raise LogForked unless `entry` may follow `last`, the last kept one or one that was checked after it (1)."""
        if entry.index > self.plan.rounds:
            raise LogForked(f"it has more entries than the plan has rounds, {self.plan.rounds}", entry)
        try:
            check_next(last, entry, self._digest, self._start)
        except RoundLogError as error:
            raise LogForked(str(error), entry) from error
        if entry.state != "opened":
            return
        if own.signed is not None and entry.session == own.session and entry.survivors != tuple(sorted(own.signed)):
            raise LogForked(f"entry {entry.index} lists other survivors than this node signed", entry)
        if own.uri in entry.survivors and not own.answered(entry.session):
            raise LogForked(f"entry {entry.index} lists this hospital in a session that it never answered", entry)

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep checked entries, synced. Raises LogDamaged where the disk does not take them."""
        if not entries:
            return
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            append_lines(self.path, b"".join(line_of(entry) for entry in entries))
        except OSError as error:
            raise LogDamaged(f"{self.path} cannot be written ({error.strerror}): free some space") from error
        for entry in entries:
            self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        self.last, self._before = entry, self.last
        if entry.index == 1:
            self._first_base = entry.base


def read_kept(path: Path) -> Iterator[Entry]:
    """Entries of a kept copy in order, unchecked but for their form. A last line that a power cut left short was never kept.

    Raises LogDamaged naming the first line that cannot be read.
    """
    try:
        with path.open("rb") as file:
            for index, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield entry_of(line, index)
    except FileNotFoundError:
        return
    except RoundLogError as error:
        raise LogDamaged(f"{path}: {error}") from error
    except OSError as error:
        raise LogDamaged(f"{path} cannot be read ({error.strerror})") from error


def described(kept: Iterable[Entry], shown: Sequence[Entry]) -> str:
    """How a shown history differs from the kept one, in the first entry that does."""
    mine = tuple(kept)
    at = first_difference(mine, shown)
    if at is None:
        return f"it has {len(shown)} entries and this node has kept {len(mine)}: it was cut back"
    one, other = mine[at - 1], shown[at - 1]
    names = [name for name in to_fields(one) if getattr(one, name) != getattr(other, name)]
    return f"entry {at} is another one than was kept, in {', '.join(names)}"


def write_down(state: Path, kept: KeptLog, fork: LogForked, at: datetime) -> None:
    """Keep what was shown beside what is kept, and an entry in the audit log; once for each fork, and never an error."""
    shown = None if fork.shown is None else to_fields(fork.shown)
    mine = [to_fields(entry) for entry in kept.read() if fork.shown is not None and entry.index == fork.shown.index]
    about = {"what": fork.what, "kept": mine, "kept_entries": kept.count, "kept_head": kept.head.hex(), "shown": shown}
    path = kept.path.with_suffix(".fork.json")
    try:
        if path.exists() and json.loads(path.read_bytes()).get("about") == about:
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, json.dumps({"at": at.isoformat(), "about": about}, indent=1).encode() + b"\n")
        action = Action("secagg-node", "log-forked", fields={"what": fork.what, "kept": kept.head.hex()})
        AuditLog.within(state).append(action, at)
    except (OSError, ValueError, AuditError):
        return  # the refusal stands without its record


def set_aside(state: Path, plan: bytes, at: datetime) -> Path:
    """Rename the kept copy, so that the next connection begins another. Raises FileNotFoundError, OSError."""
    path = log_file(state, plan)
    target = path.with_name(f"{path.stem}.{at:%Y%m%dT%H%M%S}.aside")
    path.rename(target)
    sync_folder(path.parent)
    return target
