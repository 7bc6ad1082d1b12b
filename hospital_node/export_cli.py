"""`secagg-node export-model`: a released model for use elsewhere, with its plan and its privacy beside it. Nothing is sent."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hospital_node.durable import write_whole
from hospital_node.officer import read_plan_file
from proto.modelfile import Model, ModelFileError, encode_model, kernel_axes, read_model
from proto.plan import Plan

app = typer.Typer()


class Values(StrEnum):
    """How a model file keeps its values: proto/packed.py."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


@app.command("export-model")
def export_model(
    plan: Annotated[Path, typer.Option("--plan", help="The plan of the study that the model comes from.")],
    model: Annotated[Path, typer.Option("--model", help="The released model, a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write (.safetensors), or with --bundle a new folder.")],
    *,
    values: Annotated[
        Values, typer.Option(help="bf16: half the size. int8: about a quarter, a scale for each output channel.")
    ] = Values.FP32,
    bundle: Annotated[bool, typer.Option("--bundle", help="A MONAI bundle, which MONAI runs by itself.")] = False,
) -> None:
    """Write a released model with its plan, provenance and epsilon; smaller, or as a MONAI bundle."""
    chosen, found = read_plan_file(plan), read_model(model)
    if bundle and values is not Values.FP32:
        raise ModelFileError("a bundle holds float32, which MONAI reads: leave --values out, or --bundle")
    if out.resolve() == model.resolve():
        raise ModelFileError(f"{out} is the released model itself: name another file with --out")
    from hospital_node.network import NetworkError

    try:
        _write(chosen, found, out, values, bundle=bundle)
    except NetworkError as error:
        raise ModelFileError(f"{model} cannot be exported with the plan {plan}: {error}") from error


def _write(plan: Plan, model: Model, out: Path, values: Values, *, bundle: bool) -> None:
    from hospital_node.bundle import write_bundle
    from hospital_node.model_card import card_of
    from hospital_node.network import build, load_vector, transposed_kernels

    module = build(plan.network)
    load_vector(module, model.layout, model.vector)
    card = card_of(plan, model)
    size = ""
    if bundle:
        write_bundle(out, card, model)
    else:
        whole = Model(model.layout, model.vector, {**model.provenance, **card.metadata()})
        write_whole(out, encode_model(whole, values.value, kernel_axes(model.layout, transposed_kernels(module))))
        size = f", {out.stat().st_size:,} bytes"
    typer.echo(f"{out}: model {card.digest[:12]} of study {plan.study}{size}")
    typer.echo(card.sentence)
