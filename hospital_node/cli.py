"""`secagg-node`: the command line of a hospital or an evaluator. Every mistake is one sentence and exit status 2.

Nothing is decided here: each command reads its arguments, calls one function and prints what came of it.
"""

from __future__ import annotations

import concurrent.futures
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from certs.audit import AuditError
from certs.party import CertificateError
from hospital_node import (
    audit_cli,
    data_cli,
    enrol_cli,
    export_cli,
    ledger_cli,
    log_cli,
    officer,
    predict_cli,
    receipts_cli,
    withdraw_cli,
)
from hospital_node.checks import Check, all_checks
from hospital_node.cohort import CohortError
from hospital_node.config import ConfigError, NodeConfig, load_config
from hospital_node.durable import write_whole
from hospital_node.label_files import LabelFileError
from hospital_node.ledger import LedgerError
from hospital_node.ledger_export import ExportError
from hospital_node.link import LinkLost, LinkRefused, dial
from hospital_node.log_cli import LogFileError
from hospital_node.logs import configure
from hospital_node.officer import ConfigFile
from hospital_node.prepared_cache import CacheError
from hospital_node.reach import reason_of_loss
from hospital_node.receipts import ReceiptError
from hospital_node.reporting import cli as report_cli
from hospital_node.reporting.model import ReportError
from hospital_node.scans import ScansError
from hospital_node.state import StateError, StateFolder
from hospital_node.study import plan_offered
from hospital_node.traffic import ByteMeter
from hospital_node.work import WorkFailed
from proto.control import ControlError
from proto.modelfile import Model, ModelFileError, encode_model, read_model
from proto.plan import Plan, PlanError, load_toml

EXIT_USER_ERROR = 2
EXIT_NOT_READY = 1
NODE_PACKAGES = frozenset({"SimpleITK", "dp_accounting", "monai", "opacus", "torch"})  # not part of a bare install
SIGNAL_CHECK_S = 0.5
PROCESSES = "WORLD_SIZE"  # torchrun sets it: how many processes it started
USER_ERRORS = (
    AuditError,
    CacheError,
    CertificateError,
    CohortError,
    ConfigError,
    ControlError,
    ExportError,
    LabelFileError,
    LedgerError,
    LinkLost,
    LinkRefused,
    LogFileError,
    ModelFileError,
    PlanError,
    ReceiptError,
    ReportError,
    ScansError,
    StateError,
    WorkFailed,
)

app = typer.Typer(
    help="One hospital's (or evaluator's) node: it dials out, trains locally, and releases only what its ledger allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_cli.app, name="data")
app.add_typer(enrol_cli.app)
app.add_typer(officer.app)
app.add_typer(audit_cli.app)
app.add_typer(predict_cli.app)
app.add_typer(export_cli.app)
app.add_typer(officer.cap_app, name="cap")
app.add_typer(ledger_cli.app, name="ledger")
app.add_typer(log_cli.app, name="log")
app.add_typer(receipts_cli.app, name="receipts")
app.add_typer(report_cli.app, name="report")
app.add_typer(withdraw_cli.app, name="withdraw")

PlanFile = Annotated[Path, typer.Option("--plan", help="The study plan, .toml or .json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: app(words, standalone_mode=False, prog_name="secagg-node"))


def guarded(command: Callable[[], object]) -> int:
    """Run `command`; what people can mend becomes one line on standard error and exit status 2."""
    try:
        status = command()
    except typer.TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
    except USER_ERRORS as error:
        text = str(error)
    except typer.Abort:
        text = "interrupted"
    except ModuleNotFoundError as error:
        if error.name not in NODE_PACKAGES:
            raise
        text = f"{error.name} is not installed, which a node needs: run pip install '.[node]' in the repository's folder"
    else:
        return status if isinstance(status, int) else 0
    if text:
        typer.echo(f"secagg-node: {' '.join(text.split())}", err=True)
    return EXIT_USER_ERROR


@app.command()
def run(config: ConfigFile) -> None:
    """Run a hospital's node until the study is finished or it is told to stop (Ctrl-C, SIGTERM). Opens no port.

    Under torchrun several processes train together and the first of them is the node.
    """
    node = load_config(config)
    configure()
    if int(os.environ.get(PROCESSES, "1")) > 1:
        from hospital_node import process_group

        _until_signalled(lambda stop: process_group.live(node, stop))
        return
    from hospital_node import runner

    _until_signalled(lambda stop: runner.run(node, stop=stop))


@app.command()
def evaluate(config: ConfigFile) -> None:
    """Run an evaluator's node: measures every published model on public data and reports the numbers in clear."""
    node = load_config(config)
    configure()
    from hospital_node import evaluator

    _until_signalled(lambda stop: evaluator.evaluate(node, stop=stop))


@app.command()
def check(config: ConfigFile, *, as_json: AsJson = False) -> None:
    """Look at everything that must be right before this node can take part; exit status 1 if something is not."""
    lines = all_checks(load_config(config), datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps([{"name": line.name, "ok": line.ok, "sentence": line.sentence} for line in lines], indent=1))
    else:
        Console().print(_check_table(lines))
    if not all(line.ok for line in lines):
        raise typer.Exit(EXIT_NOT_READY)


@app.command("fetch-plan")
def fetch_plan(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option("--out", help="Also write it here (canonical JSON).")] = None,
) -> None:
    """Get the plan that the coordinator offers, to read it before it is approved. Nothing is agreed to."""
    node = load_config(config)
    plan = _fetch_plan(node)
    folder = StateFolder(node.state)
    folder.create()
    folder.write_plan(plan)
    if out is not None:
        write_whole(out, plan.canonical())
    typer.echo(json.dumps(plan.model_dump(mode="json"), indent=1))
    typer.echo(f"digest {plan.digest().hex()}", err=True)


@app.command("init-model")
def init_model(
    plan: PlanFile,
    out: Annotated[Path, typer.Option("--out", help="The model file to write (safetensors).")],
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Public weights: a model file, safetensors, .pt, or a MONAI bundle's folder or zip."),
    ] = None,
    *,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what fits of --from by name and shape; the rest is random.")
    ] = False,
) -> None:
    """Make the start of a study and print its digest, for `start_digest` in the plan. Needs no patient and no connection."""
    from hospital_node.workshop import random_model

    model = random_model(load_toml(plan))
    if start is not None:
        model = _from_public(start, model, partial=partial)
    elif partial:
        raise ModelFileError("--partial says how to take weights: name them with --from")
    write_whole(out, encode_model(model))
    typer.echo(f"{out}: {model.layout.length} values in {len(model.layout.tensors)} tensors")
    typer.echo(f'start_digest = "{model.digest.hex()}"')


def _fetch_plan(node: NodeConfig) -> Plan:
    from certs.identity import load_identity

    me = load_identity(node.identity).uri
    link = dial(node, ByteMeter())
    try:
        return plan_offered(link.join(), me, node.plan)
    except LinkLost as error:
        raise LinkRefused(reason_of_loss(node, str(error))) from error
    finally:
        link.close()


def _from_public(source: Path, fresh: Model, *, partial: bool) -> Model:
    """A model file of this network as it is; anything else tensor by tensor, with a report. Raises ModelFileError."""
    from hospital_node.checkpoint import read_checkpoint, start_from

    with suppress(ModelFileError):
        own = read_model(source)
        if own.layout == fresh.layout:
            return own
    checkpoint = read_checkpoint(source)
    try:
        model, match = start_from(checkpoint, fresh, partial=partial)
    except ModelFileError as error:
        raise ModelFileError(f"{source} ({checkpoint.kind}): {error}") from error
    for line in (f"{source}: {checkpoint.kind}, SHA-256 {checkpoint.sha256}", *match.lines()):
        typer.echo(line)
    return model


def _check_table(lines: Sequence[Check]) -> Table:
    table = Table(show_header=False, box=None)
    for line in lines:
        table.add_row("✓" if line.ok else "✗", line.name, line.sentence)
    return table


def _until_signalled(work: Callable[[threading.Event], None]) -> None:
    """Run `work` in a thread; SIGINT and SIGTERM ask it to stop. The main thread only waits, so handlers run at once."""
    from hospital_node.memory import share_one_heap

    share_one_heap()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="node") as pool:
        future = pool.submit(work, stop)
        while not future.done():
            concurrent.futures.wait([future], timeout=SIGNAL_CHECK_S)
        gc.freeze()  # the process ends: collecting torch's million objects once more would take a second
        future.result()


if __name__ == "__main__":
    sys.exit(main())
