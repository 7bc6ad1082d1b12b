"""The demonstration: a whole federation on one machine, each party a process of its own, watched until it ends.

Rule: nothing is simulated. Coordinator, nodes, evaluator and app are the installed commands, they speak mutual TLS on
loopback, and what is printed comes from the coordinator's store and the hospitals' own ledgers.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from certs.party import CertificateError
from coordinator.store import EventRow, StoreError, StoreReader, open_store
from hospital_node.ledger import LedgerError
from hospital_node.state import StateError, StateFolder
from proto.modelfile import ModelFileError
from proto.plan import DECLINE_CODES, Plan, PlanError, short_name
from study import approvals, picture, presets, sites, start, summary
from study.cast import CastError, choose
from study.deal import DealError
from study.drill import Drill
from study.processes import Child, Family, ProcessFailed
from study.sites import Sites

FAILURES = (
    CastError,
    CertificateError,
    DealError,
    LedgerError,
    ModelFileError,
    PlanError,
    ProcessFailed,
    StateError,
    StoreError,
    OSError,
)

POLL_S = 0.3
DRILL_POLL_S = 0.03  # the drill has to hit a pause of one second
SCANS_DRAWN = 4
ADDRESS_WITHIN_S = 60.0  # the coordinator imports no torch; this is patience on a loaded machine
APP_PORT = 8501
PORTS_TRIED = 20
SHOWN_EVENTS = frozenset(
    {
        "dropped",
        "lost",
        "returned",
        "left",
        "declined",
        "failed",
        "excluded",
        "refused",
        "session-aborted",
        "round-aborted",
        "finished",
    }
)


@dataclass(frozen=True, slots=True)
class Told:
    """How much of the store the console has shown."""

    revision: int = -1
    events: int = 0
    rounds: int = 0
    measured: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller of `make demo` chose."""

    folder: Path
    data: Path | None = None
    private: bool = True
    kill: bool = False
    app: bool = True
    rounds: int | None = None
    threads: int = 1
    port: int = APP_PORT


def run(options: Options, console: Console) -> summary.Summary:
    """Play the whole demonstration. Raises one of FAILURES, one sentence each; every child is stopped on the way out."""
    began_s = time.monotonic()
    with Family(options.threads) as family:
        world = _prepare(family, options, console)
        _start_coordinator(family, world)
        address = _address(family, world)
        if options.app:
            _start_app(family, options, world, console)
        nodes = _start_nodes(family, world, address)
        drill = Drill(world, family, nodes, console) if options.kill else None
        result = _follow(family, options, world, console, drill)
        console.print(summary.table(result))
        _finish(options, world, result, console)
        if options.app:
            _draw(family, world, console)
        console.print(f"The whole took {time.monotonic() - began_s:.0f} s.")
        if options.app:
            _serve(family, console)
    return result


def _prepare(family: Family, options: Options, console: Console) -> Sites:
    """Data, start, certificates, plan, approvals: everything before the first process."""
    folder = options.folder / "sites" / (options.data.resolve().name if options.data else "synthetic")
    with _told(console, "Scans") as told:
        cast = choose(options.data, folder, told)
    console.print(cast.note)
    world = Sites(folder, cast)
    sites.certify(world)
    sites.begin_anew(world)
    console.print("Certificates: one key per party; fresh ledgers, as no real patient is involved or the data are public")
    plan, model = _plan(family, options, world, console)
    sites.write_coordinator(world, plan, model, drill_pause_s=1.0 if options.kill else 0.0)
    approvals.approve_all(world, plan, console)
    return world


def _plan(family: Family, options: Options, world: Sites, console: Console) -> tuple[Plan, Path]:
    cast = world.cast
    preset = presets.load(cast.template if options.private else f"{cast.template}-plain")
    model = start.load_or_make(options.folder / "starts", preset, family, console.print)
    plan = presets.complete(
        preset.fields,
        study=cast.study,
        hospitals=presets.admitted(cast, world.uri),
        evaluators=[world.uri(cast.evaluator)],
        start_digest=start.digest_of(model),
        rounds=options.rounds,
    )
    return plan, model


@contextmanager
def _told(console: Console, what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of a first run: a line that is rewritten on a terminal, one line per party otherwise."""

    def say(name: str, done: int, of: int) -> None:
        if console.is_terminal:
            console.print(f"{what}: {name} {done} of {of}", end="\r")
        elif done == of:
            console.print(f"{what}: {name} {of}")

    yield say
    if console.is_terminal:
        console.print(" " * 60, end="\r")


def _start_coordinator(family: Family, world: Sites) -> None:
    command = [_script("secagg-coordinator"), "run", "--until-finished", "--config", str(world.coordinator_config)]
    family.start("the coordinator", command, world.coordinator / "coordinator.log")


def _address(family: Family, world: Sites) -> str:
    """host:port as the running coordinator wrote it. Raises ProcessFailed."""
    path = world.coordinator / "state" / "address"
    deadline_s = time.monotonic() + ADDRESS_WITHIN_S
    while time.monotonic() < deadline_s:
        family.raise_if_any_failed()
        if path.is_file() and (text := path.read_text(encoding="utf-8").strip()):
            return text
        time.sleep(0.05)
    raise ProcessFailed(f"the coordinator named no address within {ADDRESS_WITHIN_S:.0f} s: see {world.coordinator}")


def _start_nodes(family: Family, world: Sites, address: str) -> dict[str, Child]:
    nodes = {}
    for role in world.roles:
        sites.write_node(world, role, address)
        verb = "evaluate" if role == world.cast.evaluator else "run"
        command = [_script("secagg-node"), verb, "--config", str(world.config(role))]
        nodes[role.name] = family.start(role.name, command, world.home(role) / "node.log")
    return nodes


def _start_app(family: Family, options: Options, world: Sites, console: Console) -> None:
    port = _free_port(options.port)
    command = [_script("secagg-ui"), "--coordinator", str(world.coordinator / "state"), "--port", str(port)]
    for role in world.cast.hospitals:
        command += ["--hospital", str(world.state(role))]
    family.start("the app", command, options.folder / "app.log")
    console.print(f"[bold]The app: http://127.0.0.1:{port}[/bold]  (it fills while the hospitals train)")


def _free_port(first: int) -> int:
    for port in range(first, first + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise ProcessFailed(f"ports {first} to {first + PORTS_TRIED - 1} are all in use: choose another with PORT=")


def _follow(family: Family, options: Options, world: Sites, console: Console, drill: Drill | None) -> summary.Summary:
    """Print what happens until the run is over and its last model is measured; summary.json is written on every change."""
    ledgers = {world.uri(role): StateFolder(world.state(role)).ledger for role in world.cast.hospitals}
    told = Told()
    with open_store(world.store) as reader:
        while True:
            over = not family.is_running("the coordinator")  # asked first: what it wrote last is read below
            family.raise_if_any_failed()
            if over or reader.revision() != told.revision:
                told = _tell(reader, told, console, drill)
                result = summary.summarise(world.store, ledgers)
                told = _tell_rounds(result, told, console)
                summary.write(result, options.folder / "summary.json")
                _raise_if_stuck(reader, world)
            if over:
                return result
            if drill:
                drill.tick()
            time.sleep(DRILL_POLL_S if drill else POLL_S)


def _raise_if_stuck(reader: StoreReader, world: Sites) -> None:
    """ProcessFailed where so many hospitals declined that no cohort can form; the coordinator itself would wait for people."""
    out = {row.uri: row.code for row in reader.members() if row.state in {"declined", "failed"}}
    if reader.finished() or len(world.cast.hospitals) - len(out) >= reader.plan().masking.minimum_cohort:
        return
    reasons = "; ".join(f"{short_name(uri)}: {DECLINE_CODES.get(code, code)}" for uri, code in sorted(out.items()))
    raise ProcessFailed(f"too few hospitals are left for a cohort ({reasons}): see node.log in each folder of {world.folder}")


def _tell(reader: StoreReader, told: Told, console: Console, drill: Drill | None) -> Told:
    revision, seen = reader.revision(), told.events
    for event in reader.events(told.events):
        seen = event.seq
        _say(event, console)
        if drill:
            drill.watch(event)
    return replace(told, revision=revision, events=seen)


def _tell_rounds(result: summary.Summary, told: Told, console: Console) -> Told:
    """Each round once when it ended, each Dice once when it was measured."""
    for one in result.rounds[told.rounds :]:
        number, survivors, _, worst, upload, smaller = summary.cells(one)
        line = f"Round {number} of {result.plan.rounds} · {survivors} · worst epsilon {worst} · {upload} up"
        console.print(f"{line}, {smaller} times smaller than float32" if smaller else line, highlight=False)
    measured = result.dice_by_round
    for place in sorted(measured.keys() - told.measured):
        what = f"Round {place}" if place else "The start"
        console.print(f"{what} · Dice {summary.dice_words(measured[place])} on the evaluator's cases", highlight=False)
    return replace(told, rounds=len(result.rounds), measured=told.measured | measured.keys())


def _say(event: EventRow, console: Console) -> None:
    if event.kind in SHOWN_EVENTS or (not console.is_terminal and event.kind in {"round", "phase", "cohort"}):
        console.print(f"  {event.text}", highlight=False)


def _finish(options: Options, world: Sites, result: summary.Summary, console: Console) -> None:
    console.print(f"Summary: {options.folder / 'summary.json'}")
    prediction = StateFolder(world.state(world.cast.evaluator)).prediction
    if prediction.is_file():
        target = options.folder / "prediction.png"
        with np.load(prediction, allow_pickle=False) as arrays:
            image, truth, predicted = (arrays[name][np.newaxis] for name in ("image", "truth", "prediction"))
            title = f"{result.plan.study}: one public case after round {int(arrays['round'])}"
        picture.render_prediction(target, image, truth, predicted, title)
        console.print(f"Picture: {target}")


def _draw(family: Family, world: Sites, console: Console) -> None:
    """Let the last model draw on a few scans of the first hospital: what its own app shows on the page Scans."""
    role = world.cast.hospitals[0]
    command = [_script("secagg-node"), "data", "draw", "--config", str(world.config(role)), "--model", str(world.latest_model)]
    child = family.start("drawing on scans", [*command, "--most", str(SCANS_DRAWN)], world.home(role) / "draw.log")
    child.process.wait()
    console.print(f"Page Scans of {role.name}: {child.last_lines(1)}")


def _serve(family: Family, console: Console) -> None:
    """Keep the app up until Ctrl-C."""
    console.print("The app stays up until Ctrl-C.")
    app = next(child for child in family.children if child.name == "the app")
    while app.running:
        time.sleep(POLL_S)
    raise ProcessFailed(f"the app ended by itself: {app.last_lines()}")


def _script(name: str) -> str:
    """The installed command beside this interpreter."""
    return str(Path(sys.executable).parent / name)
