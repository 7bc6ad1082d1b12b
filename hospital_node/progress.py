"""What the hospital's own app may see while its node runs: live progress, and the bytes that left, by item.

Rule: nothing here is sent anywhere. Progress holds steps and a sentence, never a loss, a count of drawn patients or a name
of a file. Both files are replaced as a whole (temporary file, rename), so a reader finds the old one, the new one or none, and
never half of one. What left is synced, because it adds up; progress is a view, which a node that starts writes anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import AwareDatetime, Field, ValidationError

from hospital_node.durable import write_view, write_whole
from proto.plan import Frozen

PROGRESS_FILE: Final = "progress.json"
LEAVES_FILE: Final = "leaves.json"

NodePhase: TypeAlias = Literal[
    "connecting",
    "waiting",
    "preparing",
    "training",
    "ready",
    "masking",
    "evaluating",
    "declined",
    "paused",
    "failed",
    "finished",
    "left",
]
# Phases of the connection, as the coordinator's traffic table names them; "upload" is part of "mask".
Item: TypeAlias = Literal[
    "join", "poll", "broadcast", "train", "advertise", "share", "mask", "confirm", "reveal", "result", "evaluate"
]
ITEMS: Final[tuple[Item, ...]] = get_args(Item)

FileModel = TypeVar("FileModel", bound=Frozen)


class LocalProgress(Frozen):
    """One glance at a node. `steps` = 0 where the phase has no known length."""

    study: str
    round: int = Field(ge=0)
    rounds: int = Field(ge=0)
    phase: NodePhase
    step: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    since: AwareDatetime  # start of this phase
    sentence: str
    updated_at: AwareDatetime


class ItemBytes(Frozen):
    """Bytes of one item on the connection, framing included."""

    item: Item
    sent_bytes: int = Field(ge=0)


class Leaves(Frozen):
    """What left this hospital: in the round of the last figures, and since the state folder was made."""

    study: str
    round: int = Field(default=0, ge=0)
    last_round: tuple[ItemBytes, ...] = ()
    totals: tuple[ItemBytes, ...] = ()
    updated_at: AwareDatetime

    def sent(self, round_number: int, amounts: Mapping[Item, int], at: AwareDatetime) -> Self:
        """These figures plus `amounts` bytes sent in `round_number`; a new round starts its own column at zero."""
        last = self.last_round if round_number == self.round else ()
        return self.model_copy(
            update={
                "round": round_number,
                "last_round": _added(last, amounts),
                "totals": _added(self.totals, amounts),
                "updated_at": at,
            }
        )

    def bytes_of(self, *items: Item) -> int:
        """Bytes of these items together in the last round."""
        return sum(entry.sent_bytes for entry in self.last_round if entry.item in items)


def write_progress(path: Path, progress: LocalProgress) -> None:
    """Replace `path` by this progress."""
    write_view(path, progress.model_dump_json().encode())


def read_progress(path: Path) -> LocalProgress | None:
    """The progress in `path`, or None where there is none or it was written by another software version."""
    return _read_whole(path, LocalProgress)


def write_leaves(path: Path, leaves: Leaves) -> None:
    """Replace `path` by these figures."""
    write_whole(path, leaves.model_dump_json().encode())


def read_leaves(path: Path) -> Leaves | None:
    """The figures in `path`, or None where there are none or they were written by another software version."""
    return _read_whole(path, Leaves)


def _added(entries: tuple[ItemBytes, ...], amounts: Mapping[Item, int]) -> tuple[ItemBytes, ...]:
    sums = {entry.item: entry.sent_bytes for entry in entries}
    for item, amount in amounts.items():
        sums[item] = sums.get(item, 0) + amount
    return tuple(ItemBytes(item=item, sent_bytes=sums[item]) for item in ITEMS if item in sums)


def _read_whole(path: Path, model: type[FileModel]) -> FileModel | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
