"""`secagg-node log`: this node's copy of the coordinator's log of rounds, its words, and whether another copy is the same."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from certs.audit import Action
from certs.audit_file import AuditLog
from certs.words import words_of
from hospital_node.config import NodeConfig, load_config
from hospital_node.durable import write_whole
from hospital_node.officer import By, ConfigFile, Reason
from hospital_node.roundlog import KeptLog, set_aside
from hospital_node.state import StateError, StateFolder
from proto.plan import Plan
from proto.roundlog import Entry, RoundLogError, check_log, exported, first_difference, read_exported

app = typer.Typer(
    help="The log of rounds: its head in words, to compare with others; export, verify and compare whole logs.",
    no_args_is_help=True,
)

LogFile = Annotated[Path, typer.Argument(help="A log that `secagg-node log export` or `secagg-coordinator export` wrote.")]


class LogFileError(ValueError):
    """A log of another that cannot be read or does not hold."""


@app.command()
def head(config: ConfigFile) -> None:
    """Show how many rounds are in this node's copy, and its head in eight words: two hospitals with the same saw the same."""
    kept = _kept(load_config(config))
    typer.echo(f"{kept.count} rounds, head {words_of(kept.head)}")
    typer.echo(kept.head.hex())


@app.command()
def export(config: ConfigFile, out: Annotated[Path, typer.Option("--out", help="The file to write (JSON).")]) -> None:
    """Write the copy into one file. It names the hospitals of each sum, which all of them know, and nothing of a patient."""
    kept = _kept(load_config(config))
    try:
        write_whole(out, exported(kept.read()))
    except OSError as error:
        raise LogFileError(f"cannot write {out}: {error.strerror}") from error
    typer.echo(f"{out}: {kept.count} entries, head {words_of(kept.head)}")


@app.command()
def verify(log: LogFile) -> None:
    """Verify an exported log, entry by entry, and show its head. Needs no node and no configuration."""
    entries = _read(log)
    if not entries:
        typer.echo("no round has ended yet")
        return
    typer.echo(f"{len(entries)} entries in an unbroken chain, head {words_of(entries[-1].head)}")
    typer.echo(f"plan {entries[-1].plan.hex()}")


@app.command()
def compare(log: LogFile, config: ConfigFile) -> None:
    """Hold another's log against this node's copy; exit status 2 names the first round of which they tell different stories."""
    kept, other = _kept(load_config(config)), _read(log)
    if other and other[0].plan != kept.plan.digest():
        raise LogFileError(f"{log} is of plan {other[0].plan.hex()[:12]}, this node's copy of {kept.plan.digest().hex()[:12]}")
    at = first_difference(kept.read(), other)
    if at is not None:
        raise LogFileError(
            f"entry {at} of {log} is another one than this node has kept: the coordinator has shown two histories. Nobody "
            "should train on until its operator has explained it (docs/TROUBLESHOOTING.md)"
        )
    shorter = min(kept.count, len(other))
    more = "" if kept.count == len(other) else f"; one of them has {abs(kept.count - len(other))} more"
    typer.echo(f"The same {shorter} rounds in both{more}.")


@app.command("set-aside")
def put_aside(config: ConfigFile, by: By, reason: Reason) -> None:
    """Begin another copy with the next connection, after people found out why histories differ. The old one stays beside it."""
    node = load_config(config)
    plan, now = _plan(node), datetime.now(UTC)
    folder = StateFolder(node.state)
    with folder.locked():
        try:
            target = set_aside(node.state, plan.digest(), now)
        except FileNotFoundError as error:
            raise StateError("this node keeps no log of rounds of its plan: there is nothing to put aside") from error
        except OSError as error:
            raise StateError(f"the log of rounds cannot be put aside: {error.strerror}") from error
        AuditLog.within(node.state).append(Action(by, "log-set-aside", reason, {"file": target.name}), now)
    typer.echo(f"Put aside by {by}: {target}")


def _plan(node: NodeConfig) -> Plan:
    plan = StateFolder(node.state).read_plan()
    if plan is None:
        raise StateError("this node was offered no plan yet: run it once, or `secagg-node fetch-plan`")
    return plan


def _kept(node: NodeConfig) -> KeptLog:
    return KeptLog(node.state, _plan(node))


def _read(log: Path) -> tuple[Entry, ...]:
    """An exported log that holds."""
    try:
        entries = read_exported(log.read_bytes())
        if entries:
            check_log(entries, entries[0].plan)
    except OSError as error:
        raise LogFileError(f"cannot read {log}: {error.strerror}") from error
    except RoundLogError as error:
        raise LogFileError(f"{log}: {error}") from error
    except ValueError as error:
        raise LogFileError(f"{log} is no log of rounds: make one with `secagg-node log export`") from error
    return entries
