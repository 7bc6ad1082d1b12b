"""What `secagg-node budget` prints: state first, then what was spent and by which reading, what comes next, and who agreed.

This file decides nothing and computes no epsilon of its own: figures are BudgetView's and the statement's, rounded against us.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from rich.console import Group
from rich.table import Table

from hospital_node import ledger_rules as rules
from hospital_node.budget import BudgetView, History, history
from hospital_node.cap import ReadingKind, plain, rounded_up
from hospital_node.crosscheck import agree, prv_epsilon
from hospital_node.ledger_chain import Event
from hospital_node.ledger_schema import (
    Approved,
    CapLowered,
    CapRaised,
    ClockConfirmed,
    Hold,
    PatientWithdrawn,
    Resume,
    Withdrawn,
)
from hospital_node.offer import figure
from hospital_node.releases import counted
from hospital_node.statement import Statement

CHARGED = "charged\n(UTC)"
SHOWN_AHEAD = 4  # rounds of the forecast, besides the last one that fits and the first that does not
DECISIONS = 5  # the newest
MECHANISM = "releases are all of one kind or all of one plan, so only their number was chosen"
READINGS: Final[Mapping[ReadingKind, str]] = MappingProxyType({"pld": "PLD", "orders": "whole orders", "renyi": "the filter"})
SAID: Final[Mapping[type, str]] = MappingProxyType(
    {Hold: "paused the node", Resume: "let the node go on", ClockConfirmed: "confirmed the clock"}
)
FILTER = "releases differ in kind and plan, so their settings may follow results"


def budget_screen(view: BudgetView, made: Statement, events: Sequence[Event]) -> Group:
    """Everything that an officer wants to see at once."""
    rows = {"what happens next": view.sentence, **_spent(view, made, events), **_ahead(view)}
    rows["ledger"] = f"{view.entries} {'entry' if view.entries == 1 else 'entries'}, verified, head {view.head[:12]}"
    study = f"study '{view.study}'" if view.study else "no study"
    parts = [two_columns(f"{rules.hospital_of(events)}, {study}: {view.state}", rows)]
    releases = history(events)
    if releases:
        parts.append(_history(releases))
    decided = list(_decisions(events))
    if decided:
        title = _title("Decisions", DECISIONS, len(decided))
        parts.append(_lines(title, ("when", "who", "what", "why"), decided[-DECISIONS:]))
    return Group(*parts)


def two_columns(title: str, rows: Mapping[str, str]) -> Table:
    """A name and a text in each row."""
    table = Table(show_header=False, title=title, title_justify="left")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _spent(view: BudgetView, made: Statement, events: Sequence[Event]) -> dict[str, str]:
    if math.isinf(view.spent):
        return {"spent": "no guarantee: a release left without noise"}
    of = "" if view.cap is None else f" of {view.cap:g} ({math.floor(100 * view.left_share)} % left)"
    rows = {"spent": f"{figure(view.spent)}{of} at delta {plain(view.delta)}"}
    if not rules.charges(events):
        return rows
    pld = view.non_adaptive
    prv = prv_epsilon(counted(rules.releases(events)), view.delta)
    missing = "not computed at this size" if view.relies is None else "PRV not defined for shared noise"
    second = missing if prv is None else f"{figure(prv)} by PRV (Opacus), its error of 0.01 included"
    if not agree(pld, prv):
        second += ": THE TWO ACCOUNTANTS DISAGREE; pause this node and report it as a fault of the software"
    by = "PLD" if view.relies is None else "whole orders"
    fixed = "" if view.read_by != "renyi" else " (as if fixed in advance)"
    if fixed:
        rows["read by"] = f"a Rényi filter at one order: {FILTER}; only the cap is a guarantee"
        rows["as if fixed in advance"] = f"{figure(pld)} by {by}, {second}"
    elif view.read_by == "orders":
        rows["read by"] = f"Rényi divergences at whole orders, which hold for shares of discrete noise: {MECHANISM}"
    else:
        rows["read by"] = f"PLD (dp-accounting): {MECHANISM}"
        rows["second opinion"] = second
    if view.relies is not None:
        rows["against outsiders"] = f"{figure(view.relies.outsider)}. {view.relies.sentence}"
    rows["at other deltas"] = ", ".join(f"{plain(delta)}: {rounded_up(reached)}" for delta, reached in made.profile) + fixed
    recognised = math.ceil(100 * view.recognised - 1e-9)
    rows["attacker"] = f"at 1 false alarm in 100, at most {recognised} of 100 patients recognised{fixed}"
    if view.hospitals_per_patient > 1:
        rows[f"a patient of {view.hospitals_per_patient} hospitals"] = (
            f"{figure(view.across_hospitals)}, composed, if each hospital released the same; the cap counts this one alone"
        )
    return rows


def _ahead(view: BudgetView) -> dict[str, str]:
    if not view.rounds_planned:
        return {}
    fit = "fit" if view.state in {"within budget", "near the cap", "spent", "no guarantee"} else "would fit"
    rows = {"rounds": f"{view.rounds_done} done of {view.rounds_planned}, {view.rounds_left} more {fit}"}
    if not view.forecast or math.isinf(view.forecast[0][1]):
        return rows
    last = view.next_round - 1 + view.rounds_left
    fits = [point for point in view.forecast if point[0] <= last]
    beyond = next((point for point in view.forecast if point[0] > last), None)
    shown = fits if len(fits) <= SHOWN_AHEAD + 1 else [*fits[:SHOWN_AHEAD], fits[-1]]
    words = [f"round {number}: {rounded_up(reached)}" for number, reached in shown]
    if beyond is not None:
        words.append(f"round {beyond[0]} would reach {rounded_up(beyond[1])} and does not run")
    rows["forecast"] = ", ".join(words)
    return rows


def _history(releases: Sequence[History]) -> Table:
    both = len({one.read_by for one in releases}) > 1
    rows = [
        (
            str(one.place),
            f"{one.at:%Y-%m-%d}\n{one.at:%H:%M}",
            one.study,
            str(one.round),
            f"{one.noise_multiplier:g}",
            f"1/{round(1 / one.sampling_rate)}",
            f"{one.steps} and scores" if one.scores else str(one.steps),
            rounded_up(one.epsilon) + (f" by {READINGS[one.read_by]}" if both else ""),
            "came" if one.result_came else "none yet",
        )
        for one in releases
    ]
    names = ("", CHARGED, "study", "round", "noise", "rate", "steps", "epsilon after it", "result")
    return _lines(_title("Releases", len(releases), releases[-1].place), names, rows)


def _title(what: str, shown: int, of: int) -> str:
    return what if of <= shown else f"{what}: the newest {shown} of {of}"


def _decisions(events: Sequence[Event]) -> Iterator[tuple[str, str, str, str]]:
    studies = {event.entry.plan: event.entry.study for event in events if isinstance(event.entry, Approved)}
    for event in events:
        entry, when = event.entry, f"{event.at:%Y-%m-%d}"
        if isinstance(entry, Approved):
            cap = "without a guarantee" if entry.no_guarantee else f"cap {entry.cap}"
            who = f"{entry.by} and {entry.confirmed_by}" if entry.confirmed_by else entry.by
            yield when, who, f"approved {entry.max_rounds} rounds of '{entry.study}', {cap}", entry.reason
        elif isinstance(entry, CapRaised):
            yield when, f"{entry.by} and {entry.confirmed_by}", f"raised the cap to {entry.cap}", entry.reason
        elif isinstance(entry, CapLowered):
            yield when, entry.by, f"lowered the cap to {entry.cap}", entry.reason
        elif isinstance(entry, Withdrawn):
            yield when, entry.by, f"withdrew the approval of '{studies.get(entry.plan, entry.plan[:12])}'", entry.reason
        elif isinstance(entry, PatientWithdrawn):
            yield when, entry.by, f"recorded that a patient withdrew, code {entry.code[:12]}", entry.reason
        elif isinstance(entry, Hold | Resume | ClockConfirmed):
            yield when, entry.by, SAID[type(entry)], entry.reason


def _lines(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:  # on a narrow screen words may break, but no date
        table.add_column(name, overflow="fold", no_wrap=name == CHARGED)
    for row in rows:
        table.add_row(*row)
    return table
