"""A hospital's budget in the forms that a page needs. The rule: every epsilon comes from the ledger's own reading
(hospital_node.ledger.BudgetView); this file only arranges, compares with the cap and words it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from hospital_node.ledger import Approved, BudgetView, CapLowered, CapRaised, Charge, Event
from hospital_node.progress import Leaves
from hospital_node.reports import Statement, what_leaves
from proto.plan import Plan
from ui.figures import Figure, Headline, Tone
from ui.sources import Hospital
from ui.words import NO_GUARANTEE, counted, epsilon, listing, moment, percent, plain, size

TONES: dict[str, Tone] = {
    "within budget": "good",
    "near the cap": "watch",
    "spent": "stop",
    "paused": "watch",
    "not approved": "watch",
    "no guarantee": "watch",
    "ledger damaged": "stop",
}
DAMAGED = "ledger damaged"
BUSY = "cannot be read at this moment"
WITHOUT_SHARE = frozenset({NO_GUARANTEE, DAMAGED, BUSY})  # said in place of a share of the cap
HEADINGS: dict[str, str] = {
    "within budget": "Within budget",
    "near the cap": "Near the cap",
    "spent": "Stopped itself: the budget is spent",
    "paused": "Paused",
    "not approved": "Not approved yet",
    "no guarantee": "No guarantee",
    "ledger damaged": "Ledger damaged: this hospital does not train",
}
DAYS_SHOWN = 5
ASSUMPTION_STATES = {"holds": "hold", "unverified": "unverified", "does not hold": "broken"}


@dataclass(frozen=True, slots=True)
class Curve:
    """What the budget chart shows. Points are (round, epsilon after it)."""

    spent: tuple[tuple[int, float], ...]
    forecast: tuple[tuple[int, float], ...]
    cap: float
    cap_note: str
    now: int
    stop: tuple[int, str] | None  # the last round that fits, and its label
    last_round: int  # right end of the axis: the plan's last round


@dataclass(frozen=True, slots=True)
class Share:
    """One hospital on the bar of all: share of its own cap, and what it means."""

    name: str
    share: float
    text: str


def finite(view: BudgetView) -> bool:
    """Whether an epsilon can be stated at all."""
    return math.isfinite(view.spent) and view.state not in {"no guarantee", "ledger damaged"}


def headline(found: Hospital) -> Headline:
    """State before numbers; of a hospital that has a ledger."""
    if found.busy:
        return Headline("watch", "The ledger cannot be read at this moment", found.problem)
    if found.problem or found.budget is None:
        return Headline("stop", HEADINGS["ledger damaged"], found.problem)
    detail = f"{found.budget.sentence}{_without_it(found.budget)}"
    return Headline(TONES[found.budget.state], HEADINGS[found.budget.state], detail)


def _without_it(view: BudgetView) -> str:
    """Which rounds go on without a hospital that stopped itself."""
    if view.state != "spent" or view.next_round > view.rounds_planned:
        return ""
    return f" Nothing leaves in {_rounds_of(range(view.next_round, view.rounds_planned + 1))} of this plan."


def figures(view: BudgetView) -> tuple[Figure, Figure, Figure, Figure]:
    """Spent, left, rounds left, plain reading; in words where there is no guarantee."""
    return _spent(view), _left(view), _rounds(view), _reading(view)


def _spent(view: BudgetView) -> Figure:
    explained = (
        "Epsilon bounds what anyone can learn about one patient from everything this hospital has sent in its whole life. "
        "Smaller is stronger; it never goes down. Rounded up."
    )
    if not finite(view):
        return Figure("Spent", NO_GUARANTEE, "no epsilon can be stated", explained)
    of = "" if view.cap is None else f" of {plain(view.cap)}"
    return Figure("Spent", f"ε {epsilon(view.spent)}{of}", f"δ {plain(view.delta)} · unit: one patient", explained)


def _left(view: BudgetView) -> Figure:
    explained = "Share of the agreed epsilon that is still unspent. Rounds left is the better guide: later rounds cost less."
    if not finite(view):
        return Figure("Left", NO_GUARANTEE, "a cap has nothing to protect", explained)
    if view.cap is None:
        return Figure("Left", "no cap yet", "an officer has to approve a plan", explained)
    return Figure("Left", f"{math.floor(100 * view.left_share)} %", f"ε {_floor(view.left)} below the cap", explained)


def _floor(value: float) -> str:
    """What is left is rounded down."""
    return f"{math.floor(value * 100 + 1e-9) / 100:.2f}"


def _rounds(view: BudgetView) -> Figure:
    explained = "How many more rounds the cap and the plan both allow, by the accountant, at the plan's settings."
    done = f"{view.rounds_done} of {view.rounds_planned} rounds charged"
    if view.state == "ledger damaged":
        return Figure("Rounds left", "none", "until the ledger is restored", explained)
    if view.stops_after_round is not None and view.rounds_left == 0:
        return Figure("Rounds left", "none", f"stopped itself · {done}", explained)
    if view.stops_after_round is not None:
        return Figure("Rounds left", str(view.rounds_left), f"stops itself after round {view.stops_after_round}", explained)
    return Figure("Rounds left", str(view.rounds_left), done, explained)


def _reading(view: BudgetView) -> Figure:
    explained = (
        "The most that the best conceivable attacker, who knows everything but whether one patient took part, recognises "
        "when it may wrongly accuse 1 in 100: the minimum over ε of e^ε · 0.01 + δ(ε)."
    )
    if not finite(view):
        return Figure("Attacker recognises", "anyone", "nothing limits an attacker", explained)
    return Figure("Attacker recognises", f"≤ {hundred(view)} in 100", "at 1 false alarm in 100", explained)


def hundred(view: BudgetView) -> int:
    """Patients of 100 that an attacker recognises, rounded up."""
    return math.ceil(view.recognised * 100 - 1e-9)


def curve(view: BudgetView, events: Sequence[Event]) -> Curve | None:
    """The chart's figures; None where no epsilon or no cap can be drawn."""
    if not finite(view) or view.cap is None or not (view.by_round or view.forecast):
        return None
    spent = (*_start(view, events), *view.by_round)
    ahead = _to_the_cap(view.forecast, view.cap)
    stop = None
    if view.stops_after_round is not None:
        after = view.stops_after_round
        stop = (after, "stopped itself here" if view.state == "spent" else f"stops itself after round {after}")
    now = view.by_round[-1][0] if view.by_round else 0
    return Curve(spent, (*spent[-1:], *ahead), view.cap, cap_note(events), now, stop, max(view.rounds_planned, now, 1))


def _to_the_cap(forecast: Sequence[tuple[int, float]], cap: float) -> tuple[tuple[int, float], ...]:
    """The forecast up to the first point above the cap: what lies beyond will never run."""
    over = next((place for place, (_, reached) in enumerate(forecast) if reached > cap), len(forecast) - 1)
    return tuple(point for point in forecast[: over + 1] if math.isfinite(point[1]))


def _start(view: BudgetView, events: Sequence[Event]) -> tuple[tuple[int, float], ...]:
    """The point before round 1: zero in a new ledger; unknown, so left out, where earlier studies came before."""
    if not view.by_round:
        return ((0, view.spent),)
    studies = {entry.plan for _, entry in charges(events)}
    return ((0, 0.0),) if len(studies) == 1 else ()


def cap_note(events: Iterable[Event]) -> str:
    """Who agreed to the cap, and when."""
    note = "no record"
    for event in events:
        entry = event.entry
        if isinstance(entry, CapLowered | CapRaised) or (isinstance(entry, Approved) and not entry.no_guarantee):
            note = f"agreed {event.at.day} {event.at:%b %Y}, {entry.by}"
    return note


def sentence(view: BudgetView) -> str:
    """What the chart shows, in one sentence."""
    if not finite(view):
        return view.sentence
    after = f"After {counted(view.rounds_done, 'charged round')} epsilon is {epsilon(view.spent)}"
    of = "" if view.cap is None else f" of {plain(view.cap)}"
    return f"{after}{of} at δ {plain(view.delta)}. {view.sentence}"


def share(found: Hospital) -> Share | None:
    """A hospital's bar; None where there is no ledger yet."""
    view = found.budget
    if found.problem:
        return Share(found.name, 0.0, BUSY if found.busy else DAMAGED)
    if view is None:
        return None
    if not finite(view):
        return Share(found.name, 0.0, NO_GUARANTEE)
    if view.cap is None:
        return Share(found.name, 0.0, "not approved yet")
    spent = f"ε {epsilon(view.spent)} of {plain(view.cap)} · δ {plain(view.delta)}"
    return Share(found.name, view.spent / view.cap, f"{spent} · {outlook(view)}")


def outlook(view: BudgetView) -> str:
    """What comes next for one hospital, in three words."""
    if view.state == "spent":
        return "stopped itself"
    if view.state == "paused":
        return "paused"
    if view.state == "not approved":
        return "not approved"
    if view.stops_after_round is not None:
        return f"{counted(view.rounds_left, 'round')} left, then it stops"
    return f"{counted(view.rounds_left, 'round')} left" if view.rounds_left else "plan completed"


def shares(found: Iterable[Hospital]) -> tuple[Share, ...]:
    """All hospitals that have a ledger, the nearest to its end first."""
    rows = [row for row in map(share, found) if row is not None]
    return tuple(sorted(rows, key=lambda row: -row.share))


def drawable(rows: Sequence[Share]) -> bool:
    """Whether a bar of shares says anything: not where no hospital has an epsilon."""
    return any(row.share > 0 or row.text not in WITHOUT_SHARE for row in rows)


def shares_sentence(rows: Sequence[Share]) -> str:
    """What the bar of all hospitals shows, in one sentence."""
    if not rows:
        return "No hospital has a ledger yet."
    stopped = [row.name for row in rows if row.text.endswith("stopped itself")]
    unlimited = [row.name for row in rows if row.text == NO_GUARANTEE]
    if unlimited:
        return f"{listing(unlimited)}: updates leave without noise, so no share can be stated."
    unread = [row.name for row in rows if row.text in {DAMAGED, BUSY}]
    if rows[0].share == 0:
        return "No share can be told." if len(unread) == len(rows) else "No hospital has spent anything of its cap yet."
    alone = f"{rows[0].name} has spent {percent(rows[0].share)} of its own cap"
    first = f"{rows[0].name} has spent the largest share of its own cap, {percent(rows[0].share)}" if len(rows) > 1 else alone
    if stopped == [rows[0].name]:
        return f"{first}, and stopped itself."
    return f"{first}; {listing(stopped)} stopped by themselves." if stopped else f"{first}."


def charges(events: Iterable[Event]) -> tuple[tuple[Event, Charge], ...]:
    """Every charged release with its entry."""
    return tuple((event, event.entry) for event in events if isinstance(event.entry, Charge))


def decisions(events: Iterable[Event], zone: tzinfo) -> tuple[dict[str, str], ...]:
    """When, who, what and why of everything that people decided, newest first."""
    rows = []
    for event in events:
        entry = event.entry
        by = getattr(entry, "by", "")
        if by:
            second = getattr(entry, "confirmed_by", "")
            who = f"{by} and {second}" if second else by
            why = getattr(entry, "reason", "") or getattr(entry, "text", "")
            rows.append({"when": moment(event.at, zone), "who": who, "what": _decided(event), "why": why})
    return tuple(reversed(rows))


def _decided(event: Event) -> str:
    entry = event.entry
    if isinstance(entry, Approved):
        cap = "without a guarantee" if entry.no_guarantee else f"cap ε {plain(entry.cap.epsilon)}, δ {plain(entry.cap.delta)}"
        return f"approved study {entry.study}, at most {counted(entry.max_rounds, 'round')}, {cap}"
    if isinstance(entry, CapLowered | CapRaised):
        verb = "lowered" if isinstance(entry, CapLowered) else "raised"
        return f"{verb} the cap to ε {plain(entry.cap.epsilon)}, δ {plain(entry.cap.delta)}"
    return event.kind.replace("_", " ")


def leaving(plan: Plan, leaves: Leaves | None) -> tuple[dict[str, str], ...]:
    """Rows of 'What leaves this hospital', with the bytes measured in the last round."""
    return tuple(
        {
            "what": row.item,
            "how often": row.how_often,
            "size, last round": measured(row.sent_bytes),
            "who can read it": row.readable_by,
            "covered by ε": row.covered,
            "why it is needed": row.why,
            "can it be switched off": row.switch_off,
        }
        for row in what_leaves(plan, leaves)
    )


def measured(sent_bytes: int | None) -> str:
    """A measured size; a dash where the item is not counted by itself."""
    return "–" if sent_bytes is None else size(sent_bytes)


def ledger_rows(events: Iterable[Event], zone: tzinfo) -> tuple[dict[str, object], ...]:
    """One row for each charged release, newest first; `chain` is the digest after the entry."""
    return tuple(
        {
            "entry": event.seq,
            "when": moment(event.at, zone),
            "study": entry.study,
            "round": entry.round,
            "noise multiplier": plain(entry.noise_multiplier) + (" shared" if entry.shared is not None else ""),
            "sampling rate": plain(round(entry.sampling_rate, 6)),
            "steps": entry.steps,
            "clipping norm": plain(entry.clip_norm),
            "evaluation": "" if entry.evaluation is None else f"noise multiplier {plain(entry.evaluation.noise_multiplier)}",
            "chain": event.digest.hex()[:12],
        }
        for event, entry in reversed(charges(events))
    )


def as_of(found: Hospital, zone: tzinfo) -> str:
    """What the figures are of, and that they were verified."""
    entries = counted(len(found.events), "entry", "entries")
    return f"As of {moment(found.events[-1].at, zone)} · ledger {found.head[:12]} · {entries} verified on loading"


def measured_when(found: Hospital) -> str:
    """Of which round the sizes are."""
    if found.leaves is None or not found.leaves.last_round:
        return "No sizes yet: they are measured on the connection in each round."
    return f"Sizes as measured on this hospital's own connection in round {found.leaves.round}."


def left_by_day(events: Sequence[Event], zone: tzinfo, now: datetime) -> str:
    """On which days updates left, the newest days first; and yesterday by itself, which is what an officer is asked about."""
    days: dict[str, list[int]] = {}
    for event, entry in charges(events):
        days.setdefault(_day(event.at.astimezone(zone)), []).append(entry.round)
    if not days:
        return "No update has left."
    shown = [f"{day}: {_rounds_of(rounds)}" for day, rounds in list(days.items())[: -DAYS_SHOWN - 1 : -1]]
    yesterday = _day(now.astimezone(zone) - timedelta(days=1))
    said = _rounds_of(days[yesterday]) if yesterday in days else "no update left"
    return f"Updates that left by day: {'; '.join(shown)}. Yesterday, {yesterday}: {said}."


def _day(local: datetime) -> str:
    return f"{local.day} {local:%b %Y}"


def _rounds_of(rounds: Sequence[int]) -> str:
    """Round 7, rounds 1 to 6 where they follow each other, else how many."""
    first, last = min(rounds), max(rounds)
    if len(rounds) == 1:
        return f"round {first}"
    return f"rounds {first} to {last}" if len(set(rounds)) == last - first + 1 else f"{len(rounds)} releases"


def assumptions_summary(made: Statement) -> str:
    """2 hold, 3 unverified."""
    states = [assumption.state for assumption in made.assumptions]
    return ", ".join(f"{states.count(state)} {words}" for state, words in ASSUMPTION_STATES.items() if state in states)
