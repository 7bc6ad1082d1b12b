"""`secagg-coordinator`: run a study, look at it, check a plan. Only this file prints or exits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from certs.audit import AuditError
from certs.audit_file import AuditLog, report
from certs.party import CertificateError
from certs.words import words_of
from coordinator import logs
from coordinator.config import ConfigError, CoordinatorConfig, load_config
from coordinator.expiry import certificates_of, read_ends
from coordinator.status import heartbeat_of, status_of
from coordinator.store import RoundRow, StoreError, StoreReader, open_store
from proto.buffering import FACTOR_ONE
from proto.control import Abort, ControlError, Pause, Resume, decision
from proto.control_socket import ask, listening
from proto.plan import Evaluation, Plan, PlanError, load_toml, short_name
from proto.shared_noise import fewest_survivors

if TYPE_CHECKING:
    from coordinator.run import Run
    from coordinator.serving import Desk

EXIT_USER = 2  # something that a person has to mend
EXIT_DIFFERS = 1  # an exported run is not what it claims
WORD_BITS = 64
app = typer.Typer(
    name="secagg-coordinator",
    help="Coordinator of one study: offers rounds, relays masked updates, opens only their sum.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ConfigPath = Annotated[Path, typer.Option("--config", help="The coordinator's TOML file.")]
PlanName = Annotated[str, typer.Option("--plan", help="Which plan, where there are several: the first digits of its digest.")]


@app.command()
def run(
    config: ConfigPath,
    until_finished: Annotated[
        bool, typer.Option("--until-finished", help="Exit once the run is over and every party knows it.")
    ] = False,
) -> None:
    """Serve the study until SIGINT or SIGTERM. A restart goes on after the last finished round."""
    settings = _settings(config)
    logs.configure(as_json=settings.json_logs)
    try:
        asyncio.run(_run(settings, until_finished=until_finished))
    except (ConfigError, PlanError, StoreError, CertificateError) as error:
        _fail(error)


@app.command()
def status(
    config: ConfigPath,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    plan: PlanName = "",
) -> None:
    """Show rounds, members and what the run waits for; reads the store only."""
    settings = _chosen(_settings(config), plan)
    try:
        with open_store(settings.database) as store:
            now = datetime.now(UTC)
            certificates = certificates_of(read_ends(settings.state) | _own_end(settings, now), now)
            if as_json:
                facts = status_of(store, now) | {"certificates": certificates}
                typer.echo(json.dumps(facts, default=_plain, indent=2))
            else:
                _show(store)
                for row in certificates:
                    if row["warning"]:
                        typer.echo(f"{row['name']}: {row['warning']}")
    except StoreError as error:
        _fail(error)


@app.command()
def export(
    config: ConfigPath, folder: Annotated[Path, typer.Argument(help="A new folder for the run.")], plan: PlanName = ""
) -> None:
    """Write the run up to its last finished round as one folder: plan, models, means, rounds, public records."""
    from coordinator.export import ExportError, export_run

    settings = _chosen(_settings(config), plan)
    try:
        with open_store(settings.database) as store:
            rounds = export_run(store, settings.state / "models", folder.absolute(), datetime.now(UTC))
    except (StoreError, ExportError) as error:
        _fail(error)
    typer.echo(f"{rounds} rounds are in {folder}; secagg-coordinator replay {folder} computes them again")


@app.command()
def replay(folder: Annotated[Path, typer.Argument(help="What `export` wrote.")]) -> None:
    """Verify the log of an exported run and compute every model again; exit 1 names the first round that differs."""
    from coordinator.export import ExportError
    from coordinator.replay import log_of
    from coordinator.replay import replay as rounds_of

    count = 0
    try:
        log = log_of(folder)
        for one in rounds_of(folder):
            count += 1
            typer.echo(f"Round {one.round}: {one.model[:12]}, as recorded")
    except ExportError as error:
        typer.echo(f"secagg-coordinator: {error}", err=True)
        raise typer.Exit(EXIT_DIFFERS) from error
    typer.echo(f"{count} opened rounds, every model bit for bit")
    if log is None:
        typer.echo("no log of rounds: an older release wrote this export")
    elif log:
        typer.echo(f"{len(log)} entries of the log in an unbroken chain, head {words_of(log[-1].head)}")


@app.command("log-head")
def log_head(config: ConfigPath) -> None:
    """Show how long the log of rounds is, and the words of its head, to compare with a hospital's `secagg-node log head`."""
    try:
        with open_store(_settings(config).database) as store:
            entries, head = store.log_state()
    except StoreError as error:
        _fail(error)
    typer.echo(f"{entries} entries, head {words_of(head)} ({head.hex()})")


@app.command()
def tensorboard(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="A folder without events; TensorBoard's --logdir, or a folder in it.")],
) -> None:
    """Export the run's public figures (Dice on public data, cohorts, bytes, seconds) as TensorBoard events."""
    from coordinator.export import ExportError
    from coordinator.scalars import write_events

    try:
        with open_store(_settings(config).database) as store:
            count = write_events(store, out)
    except (StoreError, ExportError) as error:
        _fail(error)
    typer.echo(f"{count} figures in {out}: tensorboard --logdir {out}")


@app.command("check-plan")
def check_plan(plan: Annotated[Path, typer.Argument(help="The study plan, TOML.")]) -> None:
    """Check a plan and say what its masking sessions withstand."""
    from coordinator.state import fits, smallest_cohort
    from proto.wire import mean_error

    try:
        study = load_toml(plan)
        smallest, error_share = smallest_cohort(study), mean_error(study)
    except PlanError as error:
        _fail(error)
    asked = "" if study.participants is None else f", {study.participants} of them in each"
    rounds = f"{len(study.hospitals)} hospitals, {study.rounds} rounds{asked}"
    typer.echo(f"Study '{study.study}': {rounds}, digest {study.digest().hex()}")
    bits = WORD_BITS / study.masking.lanes * study.masking.keep
    typer.echo(
        f"A hospital sends {bits:.3g} bits for a parameter (float32: 32); rounding moves the mean by at most {error_share:.2g} "
        "of the clip (root mean square)"
    )
    for line in (*_local_work(study), *_buffer_in_words(study)):
        typer.echo(line)
    if study.evaluation is not None:
        typer.echo(_evaluation_in_words(study, study.evaluation))
    for size in range(smallest, study.largest_cohort + 1):
        threshold = study.threshold_of(size)
        least = max(threshold, smallest if study.buffer is None else study.masking.minimum_cohort)
        least = max(least, fewest_survivors(study, size))
        if fits(study, size):
            typer.echo(f"{size} hospitals: any {threshold} open the sum, {size - least} may drop out")
        else:
            typer.echo(f"{size} hospitals: no session opens, {threshold} do not fit {study.masking.max_colluders} colluders")


By = Annotated[str, typer.Option("--by", help="Name of the person who decides; it is recorded.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in a few words; it is recorded.")]


@app.command()
def pause(config: ConfigPath, by: By, reason: Reason, plan: PlanName = "") -> None:
    """Let the running coordinator open no further round; the round under way goes on. A restart stays paused."""
    _ask(config, plan, Pause, by=by, reason=reason)


@app.command()
def resume(config: ConfigPath, by: By, reason: Reason, plan: PlanName = "") -> None:
    """Let the running coordinator open rounds again."""
    _ask(config, plan, Resume, by=by, reason=reason)


@app.command("abort-round")
def abort_round(
    config: ConfigPath,
    number: Annotated[int, typer.Option("--round", help="The round under way, so that no later one is ended by mistake.")],
    by: By,
    reason: Reason,
    plan: PlanName = "",
) -> None:
    """End the round under way without a sum; the model stays, and what hospitals had released is spent."""
    _ask(config, plan, Abort, round=number, by=by, reason=reason)


def _ask(config: Path, plan: str, kind: type[Pause | Resume | Abort], **fields: object) -> None:
    settings = _chosen(_settings(config), plan)
    try:
        said = ask(settings.state, decision(kind, **fields), "the coordinator")
    except ControlError as error:
        _fail(error)
    if not said.done:
        _fail(ControlError(said.sentence))
    typer.echo(said.sentence)


@app.command("audit-log")
def audit_log(
    config: ConfigPath,
    export: Annotated[Path | None, typer.Option("--export", help="Write the verified records into this file.")] = None,
    continues: Annotated[
        Path | None, typer.Option("--continues", help="An older export, which the log must go on from.")
    ] = None,
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Say only whether the chain is unbroken, and its head.")] = False,
    plan: PlanName = "",
) -> None:
    """Show who did what at this coordinator, when and why, from its own chain."""
    log = AuditLog.within(_chosen(_settings(config), plan).state)
    try:
        for line in report(log, verify=verify, export=export, continues=continues):
            typer.echo(line)
    except (AuditError, CertificateError) as error:
        _fail(error)


def _local_work(plan: Plan) -> Iterator[str]:
    """What a round asks of the hospitals, and what their patients pay for."""
    work = {one.uri: plan.local_steps(one.uri) * plan.expected_batch(one.uri) for one in plan.hospitals}
    least, most = (choose(work, key=work.__getitem__) for choose in (min, max))
    for uri in dict.fromkeys((least, most)):
        steps = f"{plan.local_steps(uri)} steps of {plan.expected_batch(uri):.3g} patients"
        which = "" if least == most else f", the {'least' if uri == least else 'most'}, at {short_name(uri)}"
        yield f"A round's local work: {steps}{which}"
    shared = "shared " if plan.privacy.is_shared else ""
    noise = f"{shared}noise multiplier {plan.privacy.noise_multiplier:g}, rate 1/{plan.privacy.inverse_sampling_rate}"
    yield f"A patient pays for at most {plan.most_steps} steps ({noise})"


def _buffer_in_words(study: Plan) -> Iterator[str]:
    """What buffered rounds wait for, and what an update's age does to it."""
    buffer = study.buffer
    if buffer is None:
        return
    groups = len(study.hospitals) // buffer.updates
    apart = f"can go on in {groups} groups that wait for nobody else" if groups > 1 else "are too few for two such groups"
    ready = f"a sum opens as soon as {buffer.updates} updates of one model are ready"
    yield f"Buffered: {ready}; the {len(study.hospitals)} hospitals {apart}"
    parts = ", ".join(f"{factor / FACTOR_ONE:.2g}" for factor in buffer.factors[:6])
    more = ", ..." if len(buffer.factors) > 6 else ""
    yield (
        f"An update counts {parts}{more} where so many rounds from none on ended since it began; after more than "
        f"{buffer.max_staleness} it is let go, and nothing of it leaves or is charged"
    )


def _evaluation_in_words(study: Plan, evaluation: Evaluation) -> str:
    """What a patient pays besides, and how certain the means will be."""
    largest = sorted((hospital.declared_patients for hospital in study.hospitals), reverse=True)[: study.largest_cohort]
    error = evaluation.expected_error(len(study.network.labels), len(largest), sum(largest))
    return (
        f"and for {evaluation.times(study.rounds)} evaluations (noise multiplier {evaluation.noise_multiplier:g}, rate 1), on "
        f"{evaluation.share:.0%} of the patients, who are not trained on: the noise alone makes a mean of 0.8 uncertain by "
        f"about {error:.2g}"
    )


def main() -> None:
    """Entry point of the console script."""
    app()


async def _run(settings: CoordinatorConfig, *, until_finished: bool) -> None:
    from coordinator import people
    from coordinator.lock import FolderInUse, held
    from coordinator.metrics import MetricsError
    from coordinator.models import ModelError
    from coordinator.serving import Desk, ListenError, serve

    try:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        with ExitStack() as locks:
            desks = []
            for one in settings.each():
                one.state.mkdir(parents=True, exist_ok=True)
                locks.enter_context(held(one.state))
                log = AuditLog.within(one.state)
                desks.append(desk := Desk(one, partial(_run_of, one, log)))
                locks.enter_context(listening(one.state, people.asked(loop, desk, log)))
            await serve(_apart(desks), settings, stop, until_finished=until_finished)
    except (AuditError, ControlError, ModelError, ListenError, MetricsError, FolderInUse) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        folder = error.filename or settings.state
        raise ConfigError(f"cannot use the state folder {folder}: {error.strerror}") from error


def _run_of(settings: CoordinatorConfig, log: AuditLog) -> Run:
    """One plan's run, held back where people said so and nobody took it back."""
    from coordinator import people
    from coordinator.run import Run

    return Run(settings, os.urandom, held=people.pause_in_force(log.read()))


def _apart(desks: list[Desk]) -> list[Desk]:
    """The plans, or ConfigError where one is named twice."""
    if len({desk.digest for desk in desks}) < len(desks):
        raise ConfigError("the configuration names one plan twice: remove one of the two")
    return desks


def _own_end(settings: CoordinatorConfig, now: datetime) -> dict[str, datetime]:
    """The end of the coordinator's own certificate; nothing where it cannot be read by whoever asks."""
    from certs.identity import load_identity

    try:
        own = load_identity(settings.identity, now)
    except CertificateError:
        return {}
    return {own.uri: own.not_after}


def _settings(path: Path) -> CoordinatorConfig:
    try:
        return load_config(path)
    except ConfigError as error:
        _fail(error)


def _chosen(settings: CoordinatorConfig, digits: str) -> CoordinatorConfig:
    """The configuration of the plan whose digest begins so; the only one needs no name."""
    each = settings.each()
    if len(each) == 1 and not digits:
        return each[0]
    try:
        plans = [load_toml(one.plan) for one in each]
    except PlanError as error:
        _fail(error)
    found = [one for one, plan in zip(each, plans, strict=True) if plan.digest().hex().startswith(digits)]
    if len(found) != 1:
        listed = ", ".join(f"{plan.digest().hex()[:12]} ({plan.study})" for plan in plans)
        _fail(ConfigError(f"name one of these plans with --plan: {listed}"))
    return found[0]


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"secagg-coordinator: {error}", err=True)
    raise typer.Exit(EXIT_USER)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a status")


def _show(store: StoreReader) -> None:
    console = Console()
    rounds = Table("round", "state", "survivors", "dropped", "seconds", "model")
    for row in store.rounds():
        rounds.add_row(*_round_cells(row))
    console.print(rounds)
    members = Table("party", "state", "phase", "last heard of", "why")
    for member in store.members():
        seen = "" if member.last_seen_at is None else member.last_seen_at.astimezone().strftime("%H:%M:%S")
        members.add_row(short_name(member.uri), member.state, member.phase, seen, member.code)
    console.print(members)
    for item in store.awaited():
        without = "the round survives without it" if item["survives_without"] else "the round cannot go on without it"
        since = datetime.fromtimestamp(item["since"], UTC).astimezone().strftime("%H:%M:%S")
        console.print(f"{short_name(item['uri'])}: {item['state']}, {item['phase']} since {since}; {without}")
    console.print(store.finished() or store.waiting() or "working")
    heartbeat = heartbeat_of(store, datetime.now(UTC))
    if heartbeat["stale"]:
        console.print("Stale: the coordinator does not run, or cannot write its store; the lines above are what it said last")


def _round_cells(row: RoundRow) -> tuple[str, ...]:
    dropped = ", ".join(f"{short_name(uri)} ({phase})" for uri, phase in row.dropped.items())
    survivors = f"{len(row.survivors)} of {len(row.cohort)}" if row.cohort else ""
    seconds = f"{sum(row.phase_seconds.values()):.1f}"
    return str(row.number), row.state, survivors, dropped or row.reason, seconds, (row.model_digest or "")[:12]
