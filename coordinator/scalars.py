"""The public figures of a run for TensorBoard: what the store holds of each round, as scalars by round, and nothing else.

All of it is in the coordinator's store already: Dice on public data, noised means over hospitals, cohorts, bytes, seconds.
There are no losses, and nothing of a single hospital. `tensorboardX` is an extra, 'hospital-secagg[tensorboard]'; events carry
the rounds' own times, so that two exports of one store hold the same values.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coordinator.export import ExportError
from coordinator.store import StoreReader
from proto.plan import role_of, short_name


@dataclass(frozen=True, slots=True)
class Scalar:
    """One figure of one round. `at`: seconds since 1970 when the round ended; of the start, when the first round began."""

    tag: str
    value: float
    round: int
    at: float


def scalars_of(store: StoreReader) -> list[Scalar]:
    """Every public figure, by tag and round."""
    times = _times(store)
    found = [*_accuracy(store), *_cohorts(store), *_bytes(store)]
    return sorted(
        (Scalar(tag, value, number, times.get(number, max(times.values(), default=0.0))) for tag, value, number in found),
        key=lambda one: (one.tag, one.round),
    )


def write_events(store: StoreReader, folder: Path) -> int:
    """Write all scalars as one event file into `folder` and return how many. Raises ExportError, StoreError.

    A folder with events is refused: TensorBoard would show both exports as one curve.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ExportError("TensorBoard's events need an extra: pip install 'hospital-secagg[tensorboard]'") from error
    if any(folder.glob("events.out.tfevents.*")):
        raise ExportError(f"{folder} holds an export already: delete it, or name another folder")
    scalars = scalars_of(store)
    try:
        with SummaryWriter(logdir=str(folder), write_to_disk=True) as writer:
            for one in scalars:
                writer.add_scalar(one.tag, one.value, one.round, walltime=one.at)
    except OSError as error:
        raise ExportError(f"cannot write into {folder}: {error.strerror}") from error
    return len(scalars)


def _times(store: StoreReader) -> dict[int, float]:
    rounds = store.rounds()
    times = {row.number: (row.ended_at or row.started_at).timestamp() for row in rounds}
    return ({0: rounds[0].started_at.timestamp()} if rounds else {}) | times


def _accuracy(store: StoreReader) -> Iterator[tuple[str, float, int]]:
    """Mean Dice by label on an evaluator's public cases; noised means over the hospitals' own patients, where there are."""
    for row in store.scores():
        if row.per_case:
            yield f"dice/{short_name(row.evaluator)}/{row.label}", math.fsum(row.per_case) / len(row.per_case), row.round
    for own in store.validations():
        if own.mean is not None and own.standard_error is not None:
            yield f"validation/{own.label}/mean", own.mean, own.model_round
            yield f"validation/{own.label}/standard_error", own.standard_error, own.model_round


def _cohorts(store: StoreReader) -> Iterator[tuple[str, float, int]]:
    for row in store.rounds():
        yield "round/opened", float(row.state == "opened"), row.number
        yield "round/survivors", float(len(row.survivors)), row.number
        yield "round/dropped", float(len(row.dropped)), row.number
        for phase, seconds in row.phase_seconds.items():
            yield f"seconds/{phase}", seconds, row.number


def _bytes(store: StoreReader) -> Iterator[tuple[str, float, int]]:
    """Of a mean hospital that sent or received anything in the round."""
    sums: dict[tuple[int, str], int] = defaultdict(int)
    parties: dict[tuple[int, str], set[str]] = defaultdict(set)
    for row in store.traffic():
        if role_of(row.party) == "hospital":
            sums[row.round, row.direction] += row.bytes
            parties[row.round, row.direction].add(row.party)
    for (number, direction), total in sums.items():
        yield f"bytes/{direction}", total / len(parties[number, direction]), number
