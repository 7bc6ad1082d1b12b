"""The figures of the officer's page: one frozen value computed from verified entries, state before numbers.

Rule: no figure is stored. Every epsilon here is the filter's own reading, so what is shown is what will decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from hospital_node import ledger_rules as rules
from hospital_node.accounting import Mechanism, attacker_recognised, outsider_epsilon
from hospital_node.cap import UNIFORM_SHARE, Cap, CapFilter, ReadingKind, rounded_up, stated
from hospital_node.forecast import curve, rounds_left, thinned
from hospital_node.ledger_chain import Event
from hospital_node.ledger_errors import Paused
from hospital_node.ledger_schema import Approved, Charge, Verified
from hospital_node.releases import Program, Release, counted
from proto.plan import Plan

BudgetState: TypeAlias = Literal[
    "within budget", "near the cap", "spent", "not approved", "paused", "no guarantee", "ledger damaged"
]

NEAR_ROUNDS: Final = 3  # so few more rounds: people should know before the node stops itself
DEFAULT_DELTA: Final = 1e-5  # for figures of a ledger without a cap


@dataclass(frozen=True, slots=True)
class Reliance:
    """What epsilon rests on where noise is shared. `outsider`: epsilon so far against whoever knows no hospital's share."""

    outsider: float
    colluders: int  # the fewest that any of these rounds withstands
    members: int  # the most on the roster of any of these rounds

    @property
    def honest(self) -> int:
        """Of so many members, how many must keep their noise to themselves; enough for every one of these rounds."""
        return self.members - self.colluders

    @property
    def sentence(self) -> str:
        """For the officer, beside both figures."""
        parties = f"{self.colluders} hospital{'s' * (self.colluders > 1)}"
        return (
            f"Epsilon is charged against the coordinator together with {parties}. With shared noise it relies on masking and "
            f"on all but {self.colluders} of the hospitals in every sum keeping their noise to themselves ({self.honest} of "
            f"{self.members}). Against whoever knows no hospital's noise it reads {rounded_up(self.outsider)}."
        )


@dataclass(frozen=True, slots=True)
class BudgetView:
    """One ledger as of its head, seen for one study. Epsilons are of the ledger's whole life and infinite without noise."""

    state: BudgetState
    sentence: str  # what happens next
    spent: float
    cap: float | None
    delta: float
    left: float  # 0 where nothing finite is left
    reading: ReadingKind  # that decides about the next round
    study: str
    rounds_done: int  # releases charged for this study's plan
    rounds_planned: int
    rounds_left: int  # that the cap and the plan both allow
    next_round: int
    next_epsilon: float | None  # after the next round; None where the plan has no further round
    by_round: tuple[tuple[int, float], ...] = ()  # (round of this plan, epsilon after it)
    forecast: tuple[tuple[int, float], ...] = ()  # (round of this plan, epsilon after it), to the end of the plan
    stops_after_round: int | None = None  # where the cap ends before the plan does
    hospitals_per_patient: int = 1  # the most that any study of this ledger allows, and the one asked about
    across_hospitals: float = 0.0  # epsilon of a patient who attends as many hospitals as each study allows
    read_by: ReadingKind = "pld"  # how `spent` was read: by what decided about the releases so far
    non_adaptive: float = 0.0  # the reading by PLD or whole orders, also where the Renyi filter decides
    recognised: float = 0.01  # of 100 patients, by the best attacker with 1 false alarm in 100
    head: str = ""
    entries: int = 0
    relies: Reliance | None = None  # where the noise of a release so far is shared: a plan alone changes no figure

    @property
    def left_share(self) -> float:
        """Left over cap; 0 without a cap."""
        return self.left / self.cap if self.cap else 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """The plan whose next round is asked about: from its approval, or from the plan itself where there is none."""

    plan: str
    study: str
    program: Program
    rounds: int
    hospitals_per_patient: int
    no_guarantee: bool


@dataclass(frozen=True, slots=True)
class _Outlook:
    """What was spent and what further rounds would cost."""

    asked: _Asked
    past: tuple[Release, ...]
    own: tuple[tuple[int, int], ...]  # (place among all charges of the ledger's life, round) of this plan
    next_round: int
    further: int  # rounds that the plan still has
    fits: int  # of them, how many the cap admits
    cap: Cap | None
    judge: CapFilter
    kind: ReadingKind
    spent: float
    ahead: tuple[tuple[int, float], ...]

    @property
    def last_round(self) -> int:
        """The last round that may run."""
        return self.next_round - 1 + self.fits


@dataclass(frozen=True, slots=True)
class History:
    """One release of the ledger's life, and the ledger's epsilon after it."""

    place: int  # among all releases, from 1
    at: datetime
    study: str
    round: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    scores: bool  # noised sums over validation patients left with the update
    epsilon: float
    read_by: ReadingKind
    result_came: bool  # verified; where not, the budget was spent for nothing


def history(events: Sequence[Event], newest: int = 10) -> tuple[History, ...]:
    """The newest releases of all studies, in order, each as the filter reads the ledger after it."""
    cap = rules.current_cap(events)
    judge = rules.filter_of(events, cap or Cap(epsilon=1.0, delta=DEFAULT_DELTA))
    charged = [(event.at, event.entry) for event in events if isinstance(event.entry, Charge)]
    past = rules.releases(events)
    came = {(event.entry.plan, event.entry.round) for event in events if isinstance(event.entry, Verified)}
    return tuple(
        History(
            place,
            at,
            charge.study,
            charge.round,
            charge.noise_multiplier,
            charge.sampling_rate,
            charge.steps,
            charge.evaluation is not None,
            judge.spent(past[:place]),
            judge.kind(past[:place]),
            (charge.plan, charge.round) in came,
        )
        for place, (at, charge) in list(enumerate(charged, 1))[-newest:]
    )


def unreadable_view(sentence: str) -> BudgetView:
    """What can be said where the ledger does not verify: nothing but the reason."""
    return BudgetView(
        state="ledger damaged",
        sentence=sentence,
        spent=math.inf,
        cap=None,
        delta=DEFAULT_DELTA,
        left=0.0,
        reading="pld",
        study="",
        rounds_done=0,
        rounds_planned=0,
        rounds_left=0,
        next_round=0,
        next_epsilon=None,
    )


def budget_view(events: Sequence[Event], plan: Plan | None) -> BudgetView:
    """The figures for `plan`, or for the plan approved last."""
    outlook = _outlook(events, _asked(events, plan))
    asked, past, cap, judge = outlook.asked, outlook.past, outlook.cap, outlook.judge
    mechanisms = counted(past)
    state, sentence = _standing(events, outlook)
    own = [outlook.own[k - 1] for k in thinned(len(outlook.own))]
    return BudgetView(
        state=state,
        sentence=sentence,
        spent=outlook.spent,
        cap=cap.epsilon if cap else None,
        delta=judge.delta,
        left=max(0.0, cap.epsilon - outlook.spent) if cap else 0.0,
        reading=outlook.kind,
        study=asked.study,
        rounds_done=len(outlook.own),
        rounds_planned=asked.rounds,
        rounds_left=outlook.fits,
        next_round=outlook.next_round,
        next_epsilon=outlook.ahead[0][1] if outlook.ahead else None,
        by_round=tuple((number, judge.spent(past[:place], judge.kind(past))) for place, number in own),
        forecast=outlook.ahead,
        stops_after_round=outlook.last_round if outlook.fits < outlook.further else None,
        hospitals_per_patient=_most_hospitals(events, asked),
        across_hospitals=stated(rules.across_hospitals(events), judge.delta),
        read_by=judge.kind(past),
        non_adaptive=stated(mechanisms, judge.delta),
        recognised=attacker_recognised(mechanisms),
        head=events[-1].digest.hex(),
        entries=len(events),
        relies=_reliance(past, judge.delta),
    )


def _reliance(past: Sequence[Release], delta: float) -> Reliance | None:
    shared = [one.shares for one in dict.fromkeys(release.training for release in past) if one.shares is not None]
    if not shared:
        return None
    reached = outsider_epsilon(counted(past), UNIFORM_SHARE * delta)
    return Reliance(reached, min(one.may_collude for one in shared), max(one.members for one in shared))


def _asked(events: Sequence[Event], plan: Plan | None) -> _Asked:
    if plan is not None:
        shared, unguarded = plan.privacy.hospitals_per_patient, plan.privacy.no_guarantee
        program = rules.program_of(plan, rules.hospital_of(events))
        return _Asked(plan.digest().hex(), plan.study, program, plan.rounds, shared, unguarded)
    approved = [event.entry for event in events if isinstance(event.entry, Approved)]
    if not approved:
        return _Asked("", "", Program(Mechanism(1.0, 1.0, 0)), 0, 1, no_guarantee=False)
    last = approved[-1]
    return _Asked(last.plan, last.study, last.program, last.max_rounds, last.hospitals_per_patient, last.no_guarantee)


def _most_hospitals(events: Sequence[Event], asked: _Asked) -> int:
    several, charged = rules.hospitals_per_patient(events), {charge.plan for charge in rules.charges(events)}
    return max([asked.hospitals_per_patient, *(several.get(plan, 1) for plan in charged)])


def _outlook(events: Sequence[Event], asked: _Asked) -> _Outlook:
    charged = rules.charges(events)
    past = rules.releases(events)
    own = tuple((place, charge.round) for place, charge in enumerate(charged, 1) if charge.plan == asked.plan)
    next_round = max((number for _, number in own), default=0) + 1
    further = max(0, asked.rounds - next_round + 1)
    cap = rules.current_cap(events)
    judge = rules.filter_of(events, cap or Cap(epsilon=1.0, delta=DEFAULT_DELTA))
    rounds = asked.program.ahead(next_round)
    kind = judge.kind([*past, rounds.times(1)] if further else past)  # a round of another kind would change the reading
    ahead = tuple((next_round - 1 + k, reached) for k, reached in curve(judge, kind, past, rounds, further))
    if asked.no_guarantee:
        fits = further if rules.approval_of(events, asked.plan) else 0
    else:
        fits = rounds_left(judge, cap, past, rounds, further) if cap else 0
    return _Outlook(asked, past, own, next_round, further, fits, cap, judge, kind, judge.spent(past), ahead)


def _standing(events: Sequence[Event], outlook: _Outlook) -> tuple[BudgetState, str]:
    """State and what happens next. A hold comes first, then the approval, then the figures."""
    state, sentence = _unless_held(events, outlook)
    try:
        rules.refuse_if_held(events)
    except Paused as error:
        stays = state in {"spent", "not approved"}  # resuming alone would change nothing, which an officer has to know
        return "paused", f"{error} Even then: {sentence}" if stays else str(error)
    return state, sentence


def _unless_held(events: Sequence[Event], outlook: _Outlook) -> tuple[BudgetState, str]:
    asked = outlook.asked
    if not asked.plan:
        return "not approved", "No plan was approved yet: this hospital takes part in nothing."
    if rules.approval_of(events, asked.plan) is None:
        return "not approved", f"Study '{asked.study}' waits for approval at this hospital (`secagg-node approve`)."
    if asked.no_guarantee:
        return (
            "no guarantee",
            "Updates leave without noise: no patient is protected, so only public or synthetic data may take part.",
        )
    if math.isinf(outlook.spent):
        return (
            "no guarantee",
            "A round was released without noise, so no finite epsilon holds and no round with a guarantee can run.",
        )
    return _within(outlook)


def _within(outlook: _Outlook) -> tuple[BudgetState, str]:
    """State and sentence of an approved study with a guarantee."""
    asked, cap, spent = outlook.asked, outlook.cap, outlook.spent
    if not outlook.further:
        return "within budget", f"Study '{asked.study}' used all its rounds; epsilon stays at {rounded_up(spent)}."
    assert cap is not None  # an approval with a guarantee sets one
    before = outlook.judge.spent(outlook.past, outlook.kind)
    step = f"Round {outlook.next_round} would take epsilon from {rounded_up(before)} to {rounded_up(outlook.ahead[0][1])}"
    note = ""
    if outlook.kind != outlook.judge.kind(outlook.past):
        note = (
            " From here on a Rényi filter decides, because releases will differ in kind and plan; it reads what was "
            f"spent so far as {rounded_up(before)} instead of {rounded_up(spent)}."
        )
    if outlook.fits == 0:
        return "spent", f"{step}, above the cap of {cap.epsilon:g}: this hospital stopped by itself.{note}"
    if outlook.fits == outlook.further:
        end = outlook.ahead[-1][1]
        return (
            "within budget",
            f"{step} of {cap.epsilon:g}; all {outlook.further} rounds left in the plan fit, ending at {rounded_up(end)}.{note}",
        )
    state: BudgetState = "near the cap" if outlook.fits <= NEAR_ROUNDS else "within budget"
    stop = outlook.last_round
    return state, f"{step} of {cap.epsilon:g}; this hospital stops by itself after round {stop} of {asked.rounds}.{note}"
