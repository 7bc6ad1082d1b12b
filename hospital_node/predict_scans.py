"""Many scans through one released model: where labels go, what is skipped, how well they fit where a truth is given.

A scan that cannot be read is left out, named by its place in the list and counted; the others are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from hospital_node.cohort import UnreadableStudy
from hospital_node.device import DeviceMissingError
from hospital_node.device import chosen as device_named
from hospital_node.durable import write_whole
from hospital_node.label_files import LabelFileError, output_path, write_labels
from hospital_node.network import NetworkError
from hospital_node.officer import read_plan_file
from hospital_node.predict import Segmenter, segment
from hospital_node.reading import read_label, read_oriented, to_lps
from hospital_node.scoring import LabelScore, score, table
from hospital_node.sliding import Windows
from hospital_node.terminal import counted
from proto.modelfile import ModelFileError, read_model
from proto.plan import Plan

SCORES = "scores.csv"
WORST = 5  # rows shown of the table

Row = tuple[str, LabelScore]  # name of the scan


@dataclass(frozen=True, slots=True)
class Work:
    """Which scans, and where their labels go."""

    scans: tuple[Path, ...]
    out: Path
    ending: str = ".nii.gz"
    truth: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Manner:
    """How the network runs over a scan."""

    precision: str = "fp32"
    overlap: float = 0.25
    flips: bool = False
    threads: int = 1
    device: str = "cpu"


def run(work: Work, plan: Path, model: Path, manner: Manner) -> int:
    """Segment every scan and return how many were left out. Raises ModelFileError, PlanError and LabelFileError."""
    chosen = read_plan_file(plan)
    targets = _targets(work)
    windows = Windows(chosen.preparation.patch_zyx, manner.overlap, flips=manner.flips)
    try:
        device = device_named(manner.device)
        whole = Segmenter.of(chosen, read_model(model), windows, manner.threads, device)
        segmenter = whole.in_precision(manner.precision)
    except DeviceMissingError as error:
        raise LabelFileError(f"--device {manner.device}: {error}") from error
    except NetworkError as error:
        raise ModelFileError(f"{model} does not fit the plan {plan}: {error}") from error
    work.out.mkdir(parents=True, exist_ok=True)
    left_out, rows = 0, list[Row]()
    for number, (scan, target) in enumerate(zip(work.scans, targets, strict=True), start=1):
        try:
            rows += _one(segmenter, scan, target, _truth_of(scan, work.truth), f"scan {number} of {len(targets)}")
        except UnreadableStudy as refusal:
            left_out += 1
            typer.echo(f"scan {number} is left out ({refusal.code}): {refusal}", err=True)
    typer.echo(f"{len(targets) - left_out} of {len(targets)} scans segmented into {work.out}.")
    if rows:
        write_whole(work.out / SCORES, table(rows).encode())
        Console().print(_worst(rows, chosen))
    return left_out


def _targets(work: Work) -> list[Path]:
    targets = [output_path(scan, work.out, work.ending) for scan in work.scans]
    twice = {target for target in targets if targets.count(target) > 1}
    if twice:
        raise LabelFileError(f"two scans would be written to {min(twice).name}: segment them into two folders")
    if not work.overwrite and any(target.exists() for target in targets):
        there = sum(target.exists() for target in targets)
        raise LabelFileError(f"{there} of {len(targets)} label volumes exist in {work.out}: use --overwrite, or another folder")
    return targets


def _truth_of(scan: Path, truth: Path | None) -> Path | None:
    return truth / scan.name if truth is not None and truth.is_dir() and not scan.is_dir() else truth


def _one(segmenter: Segmenter, scan: Path, target: Path, truth: Path | None, title: str) -> list[Row]:
    with counted(title) as count:
        found = segment(segmenter, scan, count)
    write_labels(found, target)
    if truth is None:
        return []
    labels = segmenter.plan.network.labels
    wanted = read_label(truth, read_oriented(scan), len(labels))
    return [(scan.name, one) for one in score(to_lps(found), wanted, labels)]


def _worst(rows: Sequence[Row], plan: Plan) -> Table:
    shown = Table(title=f"Worst {WORST} of {len(rows)}; all are in {SCORES}" if len(rows) > WORST else None, box=None)
    for heading in ("scan", "label", "Dice", "mean surface distance", "95 %"):
        shown.add_column(heading, justify="left" if heading in {"scan", "label"} else "right")
    for scan, one in sorted(rows, key=lambda row: row[1].dice)[:WORST]:
        distances = ("not found" if value is None else f"{value:.2f} mm" for value in (one.surface_mm, one.surface95_mm))
        shown.add_row(scan, one.label, f"{one.dice:.3f}", *distances)
    for label in plan.network.labels:
        scores = [one.dice for _, one in rows if one.label == label]
        if len(scores) > 1:
            shown.add_row(f"mean of {len(scores)}", label, f"{sum(scores) / len(scores):.3f}", "", "")
    return shown
