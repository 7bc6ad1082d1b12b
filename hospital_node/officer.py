"""Commands of the people at the hospital: read, approve, watch the budget, lower or raise the cap, pause and resume.

Every decision is one entry of the ledger with a name and a reason, made by the same functions as those of the app
(`people.py`). The node need not be stopped: it asks the ledger before every round and before every release.
"""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hospital_node import people
from hospital_node.budget import budget_view
from hospital_node.budget_screen import budget_screen, two_columns
from hospital_node.config import ConfigError, NodeConfig, load_config
from hospital_node.ledger import Cap, Ledger
from hospital_node.offer import terms
from hospital_node.people import new_cap
from hospital_node.state import StateFolder, ledger_to_read
from hospital_node.statement import statement
from proto.control import Approve, ControlError, Decline, Leave, Pause, Resume, decision
from proto.control_socket import ask
from proto.plan import Plan, PlanError, from_canonical, load_toml

app = typer.Typer(add_completion=False)
cap_app = typer.Typer(help="Lower the cap (one person) or raise it (two people).", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="The node's configuration, node.toml.")]
By = Annotated[str, typer.Option("--by", help="Name of the person who decides; it is recorded.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in a few words; it is recorded.")]
Epsilon = Annotated[float, typer.Option("--epsilon", min=0.0, help="The cap on epsilon, over the ledger's whole life.")]
Delta = Annotated[float | None, typer.Option("--delta", help="The cap's delta; that of the present cap where left out.")]


@app.command()
def approve(
    config: ConfigFile,
    by: By,
    reason: Reason,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="The plan, .toml or .json; the one offered last if left out."),
    ] = None,
    epsilon_cap: Annotated[
        float | None, typer.Option("--epsilon", help="Cap on epsilon; the configuration's own if left out.")
    ] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="Delta of the cap; the plan's if left out.")] = None,
    confirmed_by: Annotated[str, typer.Option("--confirmed-by", help="A second person, where this raises the cap.")] = "",
    *,
    accept_no_guarantee: Annotated[
        bool, typer.Option("--accept-no-guarantee", help="Say aloud that a plan without noise protects no patient.")
    ] = False,
    data_is_public: Annotated[
        bool, typer.Option("--data-is-public", help="Declare that this node's data is public or synthetic.")
    ] = False,
) -> None:
    """Record that this hospital agrees to exactly this plan under a cap. Without it the node does not train."""
    node = load_config(config)
    chosen = read_plan(node, plan)
    request = decision(
        Approve,
        by=by,
        reason=reason,
        plan=chosen.digest().hex(),
        epsilon=epsilon_cap,
        delta=delta,
        confirmed_by=confirmed_by,
        accept_no_guarantee=accept_no_guarantee,
        data_is_public=data_is_public,
    )
    cap, now = people.cap_for(chosen, node.cap, epsilon_cap, delta), datetime.now(UTC)
    console, ledger = Console(), people.ledger_of(node, now)
    console.print(_summary(chosen, ledger.hospital))
    console.print(people.carry_out(node, request, chosen, now, "command line"))
    view = ledger.budget(chosen)
    if view.reading != view.read_by:  # this plan's noise or rate changes how everything before it is read
        console.print(view.sentence)
    if view.stops_after_round is not None:  # of the rounds still to come: an approval may be renewed in the middle of a study
        console.print(_stops_early(chosen, cap, view.rounds_left), style="bold")


@app.command()
def budget(
    config: ConfigFile, *, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False
) -> None:
    """Show what was spent, what is left and what comes next, from this hospital's own ledger."""
    node = load_config(config)
    events = Ledger.open_readonly(ledger_to_read(node.state, node.ledger), witness=node.ledger_counter).events()
    plan = StateFolder(node.state).read_plan()
    view = budget_view(events, plan)
    if as_json:
        figures = {**dataclasses.asdict(view), "profile": statement(events, plan).profile}
        typer.echo(json.dumps(_finite(figures), indent=1, sort_keys=True))
    else:
        Console().print(budget_screen(view, statement(events, plan), events))


@app.command()
def decline(
    config: ConfigFile,
    by: By,
    reason: Reason,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="The plan, .toml or .json; the one offered last if left out.")
    ] = None,
) -> None:
    """Say no to a plan, or take an approval of it back, at once. What was spent stays spent."""
    node = load_config(config)
    chosen = read_plan(node, plan)
    request = decision(Decline, by=by, reason=reason, plan=chosen.digest().hex())
    typer.echo(people.carry_out(node, request, chosen, datetime.now(UTC), "command line"))


@app.command()
def pause(config: ConfigFile, by: By, reason: Reason) -> None:
    """Hold the node: it trains and releases nothing until `resume`. A release under way cannot be called back."""
    _carry_out(config, decision(Pause, by=by, reason=reason))


@app.command()
def resume(config: ConfigFile, by: By, reason: Reason) -> None:
    """Let the node go on, after a pause or after releases that came to nothing."""
    _carry_out(config, decision(Resume, by=by, reason=reason))


@app.command()
def leave(config: ConfigFile, by: By, reason: Reason) -> None:
    """Let the running node end the round that it is in, say goodbye and stop. It comes back when it is started again."""
    said = ask(load_config(config).state, decision(Leave, by=by, reason=reason), "the node")
    if not said.done:
        raise ControlError(said.sentence)
    typer.echo(said.sentence)


@cap_app.command("lower")
def lower_cap(config: ConfigFile, by: By, reason: Reason, epsilon_cap: Epsilon, delta: Delta = None) -> None:
    """Lower the cap, at once. One person suffices."""
    node, at = load_config(config), datetime.now(UTC)
    ledger = people.ledger_of(node, at)
    cap = _new_cap(ledger, epsilon_cap, delta)
    ledger.lower_cap(cap, by, reason, at)
    people.record(node, ledger, at, "cap-lowered", by, reason)
    typer.echo(f"Lowered by {by}: the cap is {cap} now.")


@cap_app.command("raise")
def raise_cap(
    config: ConfigFile,
    by: By,
    confirmed_by: Annotated[str, typer.Option("--confirmed-by", help="The second person who agrees.")],
    reason: Reason,
    confirmed_reason: Annotated[str, typer.Option("--confirmed-reason", help="The second person's own reason; recorded.")],
    epsilon_cap: Epsilon,
    delta: Delta = None,
) -> None:
    """Raise the cap. Two different people have to agree, each with a reason."""
    node, at = load_config(config), datetime.now(UTC)
    ledger = people.ledger_of(node, at)
    cap = _new_cap(ledger, epsilon_cap, delta)
    ledger.raise_cap(cap, by, confirmed_by, reason, at, confirmed_reason=confirmed_reason)
    people.record(node, ledger, at, "cap-raised", by, reason, confirmed_by=confirmed_by, confirmed_reason=confirmed_reason)
    typer.echo(f"Raised by {by} and {confirmed_by}: the cap is {cap} now.")


def read_plan(node: NodeConfig, path: Path | None) -> Plan:
    """The plan in a file, or the one that the coordinator offered last. Raises PlanError."""
    if path is None:
        offered = StateFolder(node.state).read_plan()
        if offered is None:
            raise PlanError("no plan was received yet: name one with --plan, or get it with `secagg-node fetch-plan`")
        return offered
    return read_plan_file(path)


def read_plan_file(path: Path) -> Plan:
    """A plan as people write it (.toml) or as it travels (canonical JSON). Raises PlanError."""
    if path.suffix == ".toml":
        return load_toml(path)
    try:
        return from_canonical(path.read_bytes())
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error


def _summary(plan: Plan, hospital: str) -> Table:
    return two_columns(f"Study '{plan.study}'", terms(plan, hospital))


def _stops_early(plan: Plan, cap: Cap, fits: int) -> str:
    remedy = "ask for a plan with more noise or fewer steps, or raise the cap with a second person"
    if fits == 0:
        return f"The cap {cap} is too small for even one more round of this plan, so this node will train none: {remedy}."
    return (
        f"Under the cap {cap} {fits} more of {plan.rounds} rounds fit and this node then stops by itself; to go on, {remedy}."
    )


def _finite(value: object) -> object:
    """Infinity is not JSON: null stands for "no guarantee", never 0."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _new_cap(ledger: Ledger, epsilon_cap: float, delta: float | None) -> Cap:
    present = ledger.cap
    if present is None:
        raise ConfigError("this ledger has no cap yet: the first approval sets it")
    return new_cap(epsilon_cap, present.delta if delta is None else delta)


def _carry_out(config: Path, request: Pause | Resume) -> None:
    typer.echo(people.carry_out(load_config(config), request, None, datetime.now(UTC), "command line"))
