"""Many scans through one released model: where labels go, what is skipped, how well they fit where a truth is given.

A scan that cannot be read is left out, named by its place in the list and counted; the others are done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from hospital_node.cohort import Nodule, UnreadableStudy
from hospital_node.device import DeviceMissingError
from hospital_node.device import chosen as device_named
from hospital_node.dicom_seg import NEEDS_SLICES, write_segmentation
from hospital_node.durable import write_whole
from hospital_node.finding_files import (
    FINDINGS,
    FROC,
    LEAST_MM3,
    PROBABLE,
    Found,
    annotated,
    compared,
    findings_table,
    froc_table,
    series_of,
)
from hospital_node.froc import Finding, findings
from hospital_node.label_files import SEGMENTATION, LabelFileError, output_path, write_labels
from hospital_node.network import NetworkError
from hospital_node.officer import read_plan_file
from hospital_node.outlines import picture, write_picture
from hospital_node.predict import Said, Segmenter, ask
from hospital_node.reading import read_label, read_oriented, to_lps
from hospital_node.scoring import LabelScore, score, table
from hospital_node.sliding import Windows
from hospital_node.terminal import counted
from proto.modelfile import ModelFileError, read_model
from proto.plan import Plan

PICTURE = "-outlines.png"
ON_A_DEVICE = 4  # windows at once: a small network leaves most of a GPU idle with one
SCORES = "scores.csv"
WORST = 5  # rows shown of the table

Row = tuple[str, LabelScore]  # name of the scan


@dataclass(frozen=True, slots=True)
class Work:
    """Which scans, where their labels go, and what else is made of them."""

    scans: tuple[Path, ...]
    out: Path
    ending: str = ".nii.gz"
    truth: Path | None = None
    overwrite: bool = False
    pictures: bool = False
    findings: str | None = None  # label whose connected parts are listed
    annotations: Path | None = None  # LUNA16's list, to compare the findings with


@dataclass(frozen=True, slots=True)
class Manner:
    """How the network runs over a scan."""

    precision: str = "fp32"
    overlap: float = 0.25
    flips: bool = False
    threads: int = 1
    device: str = "cpu"


def run(work: Work, plan: Path, model: Path, manner: Manner) -> int:
    """Segment every scan and return how many were left out.

    Raises ModelFileError, PlanError, LabelFileError, and CohortError for a list of annotations that is none.
    """
    chosen = read_plan_file(plan)
    targets = _targets(work)
    value = _value_of(work, chosen)
    nodules = {} if work.annotations is None else annotated(work.annotations)
    segmenter = _segmenter(chosen, plan, model, manner)
    work.out.mkdir(parents=True, exist_ok=True)
    left_out, rows, found = 0, list[Row](), dict[str, Sequence[Finding]]()
    for number, (scan, target) in enumerate(zip(work.scans, targets, strict=True), start=1):
        try:
            said, scores = _one(segmenter, scan, target, work, f"scan {number} of {len(targets)}")
        except UnreadableStudy as refusal:
            left_out += 1
            typer.echo(f"scan {number} is left out ({refusal.code}): {refusal}", err=True)
            continue
        rows += scores
        if value is not None:
            found[series_of(scan)] = findings(said.probability(value), PROBABLE, LEAST_MM3)
    typer.echo(f"{len(targets) - left_out} of {len(targets)} scans segmented into {work.out}.")
    _write_tables(work, chosen, rows, found, nodules)
    return left_out


def _segmenter(chosen: Plan, plan: Path, model: Path, manner: Manner) -> Segmenter:
    at_once = ON_A_DEVICE if manner.device != "cpu" else 1
    windows = Windows(chosen.preparation.patch_zyx, manner.overlap, at_once, flips=manner.flips)
    try:
        device = device_named(manner.device)
        whole = Segmenter.of(chosen, read_model(model), windows, manner.threads, device)
        return whole.in_precision(manner.precision)
    except DeviceMissingError as error:
        raise LabelFileError(f"--device {manner.device}: {error}") from error
    except NetworkError as error:
        raise ModelFileError(f"{model} does not fit the plan {plan}: {error}") from error


def _value_of(work: Work, plan: Plan) -> int | None:
    """Of the label whose parts are listed; None where none is asked for."""
    if work.findings is None:
        if work.annotations is not None:
            raise LabelFileError("--annotations are compared with findings: name the label that they are of with --findings")
        return None
    if work.findings not in plan.network.labels:
        raise LabelFileError(f"the plan has no label '{work.findings}': use one of {', '.join(plan.network.labels)}")
    return plan.network.labels.index(work.findings) + 1


def _write_tables(work: Work, plan: Plan, rows: Sequence[Row], found: Found, nodules: Mapping[str, Sequence[Nodule]]) -> None:
    if rows:
        write_whole(work.out / SCORES, table(rows).encode())
        Console().print(_worst(rows, plan))
    if work.findings is None or not found:
        return
    write_whole(work.out / FINDINGS, findings_table(found).encode())
    typer.echo(f"{sum(map(len, found.values()))} findings of {work.findings} in {len(found)} scans: {work.out / FINDINGS}")
    if work.annotations is not None:
        curve = compared(found, nodules)
        write_whole(work.out / FROC, froc_table(curve).encode())
        typer.echo(f"CPM {curve.cpm:.3f} over {curve.nodules} nodules: {work.out / FROC}")


def _targets(work: Work) -> list[Path]:
    targets = [output_path(scan, work.out, work.ending) for scan in work.scans]
    twice = {target for target in targets if targets.count(target) > 1}
    if twice:
        raise LabelFileError(f"two scans would be written to {min(twice).name}: segment them into two folders")
    if work.ending == SEGMENTATION and not all(scan.is_dir() for scan in work.scans):
        raise LabelFileError(NEEDS_SLICES)
    if not work.overwrite and any(target.exists() for target in targets):
        there = sum(target.exists() for target in targets)
        raise LabelFileError(f"{there} of {len(targets)} label volumes exist in {work.out}: use --overwrite, or another folder")
    return targets


def _truth_of(scan: Path, truth: Path | None) -> Path | None:
    return truth / scan.name if truth is not None and truth.is_dir() and not scan.is_dir() else truth


def _one(segmenter: Segmenter, scan: Path, target: Path, work: Work, title: str) -> tuple[Said, list[Row]]:
    with counted(title) as count:
        said = ask(segmenter, scan, count)
    found = said.on_the_scan()
    labels = segmenter.plan.network.labels
    if work.ending == SEGMENTATION:
        write_segmentation(found, scan, labels, segmenter.plan.study, segmenter.digest, target)
    else:
        write_labels(found, target)
    truth = _truth_of(scan, work.truth)
    if truth is None and not work.pictures:
        return said, []
    upright = read_oriented(scan)
    wanted = None if truth is None else read_label(truth, upright, len(labels))
    if work.pictures:
        write_picture(picture(upright, to_lps(found), wanted), target.parent / f"{series_of(scan)}{PICTURE}")
    return said, [] if wanted is None else [(scan.name, one) for one in score(to_lps(found), wanted, labels)]


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
