"""Rounds as people read them: a table, who was lost where, and the phases of one round on a time axis.

Times are the coordinator's (it is the only clock that all hospitals share). The phases of a round follow each other;
training takes minutes and masking milliseconds, so the masking session also has an axis of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from coordinator.store import EventRow, RoundRow
from ui.store_reading import DONE, OUT
from ui.words import PHASES, counted, decline, duration, listing, moment, party, phase

MASKING_PHASES = ("advertise", "share", "mask", "confirm", "reveal")
STATES = {
    "training": "hospitals train",
    "masking": "masking session",
    "opened": "sum opened",
    "aborted": "aborted",
}
CAP_REACHED = decline("budget-exhausted")  # with which the event ends; of its epsilon a hospital says nothing
STOPPED = "stopped itself: its privacy cap would be exceeded"
STOPPED_SHORT = "stopped itself at its cap"  # in a table
NEVER = sys.maxsize


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the rounds table."""

    number: int
    state: str
    returned: str
    lost: str
    took: str
    started_at: datetime
    sat_out: str
    reason: str

    def cells(self, zone: tzinfo) -> dict[str, str | int]:
        """The row as the table shows it."""
        return {
            "round": self.number,
            "state": self.state,
            "in the sum": self.returned,
            "lost": self.lost or "nobody",
            "sat out": self.sat_out.replace(STOPPED, STOPPED_SHORT) or "nobody",
            "took": self.took,
            "started": moment(self.started_at, zone),
            "remark": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Stop:
    """A hospital that stopped itself because of its cap: out of rounds `since` to before `back`."""

    name: str
    since: int
    back: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One hospital in one phase, in seconds since the first phase shown."""

    party: str
    phase: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Loss:
    """Where a hospital was lost: the phase, and its end on the axis."""

    party: str
    phase: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The phases of one round, by hospital."""

    segments: tuple[Segment, ...]
    losses: tuple[Loss, ...]

    @property
    def end_s(self) -> float:
        """Length of the axis."""
        return max((segment.end_s for segment in self.segments), default=0.0)

    def rows(self) -> list[dict[str, object]]:
        """The same for the table."""
        return [
            {"hospital": part.party, "phase": phase(part.phase), "took": duration(part.end_s - part.start_s)}
            for part in self.segments
        ]


def lines(rows: Sequence[RoundRow], out: Sequence[EventRow]) -> list[Line]:
    """Rounds in words, the newest first. `out`: events of hospitals that sat a round out."""
    by_round: dict[int, list[EventRow]] = {}
    for event in out:
        by_round.setdefault(event.round, []).append(event)
    ended = stops(rows, out)
    return [line(row, by_round.get(row.number, ()), ended) for row in reversed(rows)]


def stops(rows: Sequence[RoundRow], out: Sequence[EventRow]) -> tuple[Stop, ...]:
    """Which hospitals stopped themselves because of their cap, from which round on, and until when they stayed away."""
    found: dict[str, Stop] = {}
    for event in out:
        if event.kind != "declined" or not event.text.endswith(CAP_REACHED):
            continue
        before = found.get(event.party)
        if before is None or before.back < event.round:
            back = (row.number for row in rows if row.number > event.round and event.party in row.cohort)
            found[event.party] = Stop(party(event.party), event.round, next(back, NEVER))
    return tuple(found.values())


def line(row: RoundRow, events: Sequence[EventRow], ended: Sequence[Stop] = ()) -> Line:
    """A round in words. `ended`: hospitals that stopped themselves, in this round or before."""
    stopped = {stop.name: stop for stop in ended if stop.since <= row.number < stop.back}
    out = {party(event.party) for event in events if event.round == row.number and event.kind in OUT and event.party}
    sat_out = [*sorted(out - set(stopped)), *(f"{name} ({STOPPED})" for name in sorted(stopped))]
    lost = [f"{party(uri)} ({phase(name)})" for uri, name in sorted(row.dropped.items())]
    done = row.state in DONE
    members = len(set(row.cohort) | set(row.dropped))
    return Line(
        number=row.number,
        state=STATES.get(row.state, row.state),
        returned=f"{len(row.survivors) if row.state == 'opened' else 0} of {members}" if done else "",
        lost=listing(lost),
        took=duration(seconds(row)) if done else "",
        started_at=row.started_at,
        sat_out=listing(sat_out),
        reason=reason(row),
    )


def reason(row: RoundRow) -> str:
    """Why a round was aborted, its phase as people call it."""
    name, separator, rest = row.reason.partition(": ")
    return f"{phase(name)}{separator}{rest}"


def seconds(row: RoundRow) -> float:
    """Wall-clock length of a finished round."""
    return 0.0 if row.ended_at is None else (row.ended_at - row.started_at) / timedelta(seconds=1)


def timeline(row: RoundRow, masking_only: bool = False) -> Timeline:
    """Bars by hospital. A hospital's bars end with the phase in which it was lost."""
    chosen = [name for name in PHASES if name in row.phase_seconds and (not masking_only or name in MASKING_PHASES)]
    ends: dict[str, float] = {}
    at_s = 0.0
    for name in chosen:
        at_s += row.phase_seconds[name]
        ends[name] = at_s
    members = sorted(set(row.cohort) | set(row.dropped))
    segments = (
        Segment(party(uri), name, ends[name] - row.phase_seconds[name], ends[name])
        for uri in members
        for name in chosen
        if _position(name) <= _position(row.dropped.get(uri))
    )
    never_ended = {name: at_s for name in MASKING_PHASES if name not in row.phase_seconds}  # the round broke off in it
    places = ends | never_ended if ends else {}
    losses = (Loss(party(uri), name, places[name]) for uri, name in sorted(row.dropped.items()) if name in places)
    return Timeline(tuple(segments), tuple(losses))


def _position(name: str | None) -> int:
    order = list(PHASES)
    return order.index(name) if name in order else len(order)


def sentence(row: RoundRow, out: Sequence[EventRow] = (), ended: Sequence[Stop] = ()) -> str:
    """What happened in one round. `out`: events of hospitals that sat rounds out; `ended`: those that stopped themselves."""
    sat_out = line(row, out, ended).sat_out
    return f"{_sentence(row)} Sat out: {sat_out}." if sat_out else _sentence(row)


def _sentence(row: RoundRow) -> str:
    if row.state not in DONE:
        return f"Round {row.number} is running: {STATES.get(row.state, row.state)}."
    if row.state == "aborted":
        text = f"Round {row.number} was aborted after {duration(seconds(row))}: {reason(row) or 'no reason was recorded'}."
        gone = line(row, ()).lost
        return f"{text} Lost: {gone}." if gone else text
    members = len(set(row.cohort) | set(row.dropped))
    text = f"Round {row.number} took {duration(seconds(row))}; {len(row.survivors)} of {counted(members, 'hospital')} returned"
    lost = [f"{party(uri)} was lost in the phase '{phase(name)}'" for uri, name in sorted(row.dropped.items())]
    return f"{text}; {listing(lost)}, and the round went on without." if lost else f"{text} and nobody was lost."


def phases_sentence(row: RoundRow, masking_only: bool = False) -> str:
    """How long the phases took."""
    chosen = [name for name in PHASES if name in row.phase_seconds and (not masking_only or name in MASKING_PHASES)]
    return _capital(listing([f"{phase(name)} {duration(row.phase_seconds[name])}" for name in chosen])) + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def latest(rounds: Sequence[RoundRow]) -> RoundRow | None:
    """The newest round, finished or not."""
    return rounds[-1] if rounds else None


def worth_showing(rounds: Sequence[RoundRow]) -> str:
    """Number of the round that the page opens with: the newest finished one, otherwise the newest."""
    done = [row for row in rounds if row.state in DONE]
    return str((done or list(rounds))[-1].number)


def opened(rounds: Sequence[RoundRow]) -> tuple[RoundRow, ...]:
    """Rounds whose sum was opened."""
    return tuple(row for row in rounds if row.state == "opened")
