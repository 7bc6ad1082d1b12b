"""`secagg-node predict`: a released model on scans of this hospital. Nothing is sent and nothing charged."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hospital_node.label_files import ENDINGS

EXIT_SOME_SKIPPED = 1

app = typer.Typer()


class Device(StrEnum):
    """Where the network runs."""

    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Inside the network."""

    FP32 = "fp32"
    BF16 = "bf16"


@app.command()
def predict(
    scans: Annotated[list[Path], typer.Argument(help="Volumes (.mhd, .mha, .nii, .nii.gz, .nrrd) or folders of DICOM slices.")],
    plan: Annotated[Path, typer.Option("--plan", help="The plan of the study that the model comes from.")],
    model: Annotated[Path, typer.Option("--model", help="The released model, a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the label volumes; made if it is missing.")],
    *,
    ending: Annotated[str, typer.Option("--format", help=f"One of {', '.join(ENDINGS)}.")] = ".nii.gz",
    truth: Annotated[
        Path | None, typer.Option("--truth", help="Label volume of the scan, or a folder with one of the same name for each.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="bf16 is faster where the processor computes in it.")] = Precision.FP32,
    overlap: Annotated[float, typer.Option(min=0.0, max=0.9, help="Of neighbouring windows, as a share of their side.")] = 0.25,
    flips: Annotated[bool, typer.Option("--flips", help="Mean over all mirrorings: eight times the work.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[Device, typer.Option(help="cuda needs a CUDA device and a torch built for it.")] = Device.CPU,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="A PNG for each scan: its fullest slice with outlines; the truth's are white.")
    ] = False,
    findings: Annotated[
        str | None, typer.Option("--findings", help="List the connected parts of this label, with LUNA16's columns.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="LUNA16's annotations.csv: sensitivity of the findings, FROC and CPM.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace label volumes that are there.")] = False,
) -> None:
    """Segment scans with a released model; labels come in each scan's own geometry. Nothing leaves this computer."""
    from hospital_node import predict_scans

    work = predict_scans.Work(tuple(scans), out, ending, truth, overwrite, pictures, findings, annotations)
    if predict_scans.run(work, plan, model, predict_scans.Manner(precision.value, overlap, flips, threads, device.value)):
        raise typer.Exit(EXIT_SOME_SKIPPED)
