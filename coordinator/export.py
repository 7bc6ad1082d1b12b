"""A run as one folder that anybody can read and check without its store.

    run.json                     format, study, digests of plan and start, software version, when it was written
    plan.json, layout.json       as every party has them
    rounds.json                  every finished round: cohort, survivors, who dropped out when, digests of sum, mean and model
    log.json                     the log of rounds (proto/roundlog.py), entry by entry
    events.json, members.json, scores.json, validations.json, traffic.json
    models/<digest>.f32          the start and what each round published
    means/<digest>.f32           what each round opened
    SHA256SUMS                   of all these; `sha256sum -c` reads it

All of it is public among the participants. A run under way is written up to its last finished round, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from coordinator.models import ModelFolder, sync, sync_folder
from coordinator.store import RoundRow, StoreReader
from proto.roundlog import exported

FORMAT = 1
SUMS_FILE = "SHA256SUMS"
LOG_FILE = "log.json"


class ExportError(RuntimeError):
    """A run that cannot be written out, or an export that cannot be read; one sentence that names it and the remedy."""


def export_run(store: StoreReader, models: Path, folder: Path, now: datetime) -> int:
    """Write the run of `store`, whose models lie in `models`, as the new `folder`; how many rounds. Raises ExportError."""
    if folder.exists():
        raise ExportError(f"{folder} exists already: name a new folder")
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        rounds = _write(store, ModelFolder(models, store.layout(), tidy=False), part, now)
        part.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        where = error.filename or folder
        raise ExportError(f"the run cannot be written to {folder}: {where}: {error.strerror}") from error
    return rounds


def _write(store: StoreReader, models: ModelFolder, folder: Path, now: datetime) -> int:
    rounds = list(_finished(store.rounds()))
    last = rounds[-1].number if rounds else 0
    plan, means, sums = store.plan(), store.means(), store.sum_digests()
    published = {row.round: row.digest for row in store.models() if row.round <= last}
    about = {"format": FORMAT, "study": plan.study, "plan_digest": plan.digest().hex(), "start_digest": published[0]}
    _put(folder / "run.json", {**about, "rounds": last, "written_at": now, "software": version("hospital-secagg")})
    _save(folder / "plan.json", plan.canonical())
    _save(folder / "layout.json", store.layout().to_json().encode())
    digests = [{"sum_digest": sums.get(row.number), "mean_digest": means.get(row.number)} for row in rounds]
    _put(folder / "rounds.json", [{**asdict(row), **more} for row, more in zip(rounds, digests, strict=True)])
    log = [entry for entry in store.log_entries() if entry.round <= last]
    _save(folder / LOG_FILE, exported(log))
    _put(folder / "members.json", [asdict(row) for row in store.members()])
    for name, rows in (
        ("events", store.events()),
        ("scores", store.scores()),
        ("validations", store.validations()),
        ("traffic", store.traffic()),
    ):
        _put(folder / f"{name}.json", [asdict(row) for row in rows if row.round <= last])
    _copy((models.path_of(digest) for digest in published.values()), folder / "models")
    _copy((models.mean_path_of(means[row.number]) for row in rounds if row.number in means), folder / "means")
    _save(folder / SUMS_FILE, "".join(_sums(folder)).encode())
    return last


def _finished(rows: Iterable[RoundRow]) -> Iterator[RoundRow]:
    """Rounds up to the first that is not over."""
    for row in rows:
        if row.ended_at is None:
            return
        yield row


def _copy(files: Iterable[Path], folder: Path) -> None:
    """`<digest>.f32` of each file; rounds that opened the same vector share one."""
    folder.mkdir()
    for file in dict.fromkeys(files):
        target = folder / f"{file.name.partition('.')[0]}.f32"
        shutil.copyfile(file, target)
        _sync_file(target)
    sync_folder(folder)


def _put(path: Path, content: object) -> None:
    _save(path, json.dumps(content, default=datetime.isoformat, indent=1, ensure_ascii=False).encode())


def _save(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        sync(file)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sums(folder: Path) -> Iterator[str]:
    """Lines of SHA256SUMS, by name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n"
