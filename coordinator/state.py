"""The round engine's state: frozen values, and the questions that can be asked of them.

Nothing here changes anything; transitions live in coordinator/rounds.py and coordinator/masking.py. Times are seconds of
one monotonic clock that the caller reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from coordinator.orders import Seat
from proto.plan import Plan, PlanError, short_name
from proto.shared_noise import fewest_survivors
from secagg.messages import Advert, Confirmation, ShareSet, UploadSeal

# A decline that people at the hospital cannot lift while the run lasts: the run ends when too few others remain.
DEFINITIVE_DECLINES = frozenset({"budget-exhausted"})


class Phase(StrEnum):
    """Where a round stands. The five masking phases have the names of protocol.md."""

    START = "start"
    TRAIN = "train"
    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    CONFIRM = "confirm"
    REVEAL = "reveal"
    OPENING = "opening"
    HELD = "held"  # between rounds: the coordinator's people let no further one begin
    FINISHED = "finished"


MASKING = (Phase.ADVERTISE, Phase.SHARE, Phase.MASK, Phase.CONFIRM, Phase.REVEAL)
UNCOMMITTED = (Phase.ADVERTISE, Phase.SHARE)  # no update has been released yet: they may join another session


class Standing(StrEnum):
    """What a hospital does in the present round."""

    ABSENT = "absent"  # has not joined since this coordinator started
    IDLE = "idle"  # was offered the round, or has no part in it
    TRAINING = "training"
    READY = "ready"
    DECLINED = "declined"
    FAILED = "failed"
    EXCLUDED = "excluded"  # named by another member, or refused twice
    REVOKED = "revoked"  # taken from the list of confirmed keys; it may come back if people put it back
    LEFT = "left"  # it said so; it comes back by joining


OUT = frozenset({Standing.DECLINED, Standing.FAILED, Standing.EXCLUDED, Standing.REVOKED, Standing.LEFT})


@dataclass(frozen=True, slots=True)
class Member:
    """One admitted hospital."""

    uri: str
    weight: int
    last_seen_s: float  # a hospital that never came counts as seen when the coordinator started
    public_key: bytes = b""
    standing: Standing = Standing.ABSENT
    code: str = ""
    refusals: int = 0  # in this round
    lost: bool = False
    base: bytes = b""  # buffered rounds: the model that it trains or trained on,
    began: int = 0  # the round in which it began,
    asked_s: float = 0.0  # when it was asked to,
    not_before: int = 0  # and the first round that counts: what it began earlier was let go

    @property
    def may_be_asked(self) -> bool:
        """Whether another try, or another round, is offered to it."""
        return self.standing not in {Standing.REVOKED, Standing.LEFT} and not self.definitive

    @property
    def definitive(self) -> bool:
        """Whether it will not take part again in this run."""
        return self.standing is Standing.DECLINED and self.code in DEFINITIVE_DECLINES


@dataclass(frozen=True, slots=True)
class Session:
    """One masking session.

    `expected` are the members whose answer to the present phase counts towards going on; `answered` those whose message
    was taken, also where they left afterwards: what was advertised, shared or uploaded stays part of the session.
    """

    id: bytes
    roster: tuple[Seat, ...]
    threshold: int
    expected: frozenset[str]
    answered: frozenset[str] = frozenset()
    adverts: Mapping[str, Advert] = field(default_factory=dict)
    sets: Mapping[str, ShareSet] = field(default_factory=dict)
    seals: Mapping[str, UploadSeal] = field(default_factory=dict)
    confirmations: Mapping[str, Confirmation] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    closed_at_s: float | None = None  # the phase is over; the next orders wait for the drill pause
    ended: str | None = None  # why the session cannot go on

    @property
    def uris(self) -> tuple[str, ...]:
        """Members in the order of the roster."""
        return tuple(seat.uri for seat in self.roster)

    @property
    def present(self) -> frozenset[str]:
        """Members that have answered the present phase and are still there."""
        return self.answered & self.expected

    @property
    def missing(self) -> frozenset[str]:
        """Members that have not answered the present phase."""
        return self.expected - self.answered


@dataclass(frozen=True, slots=True)
class Kept:
    """A masking session that an earlier start of the coordinator left open. `members`: the roster's, as they were."""

    phase: Phase
    session: Session
    members: Mapping[str, Member]


@dataclass(frozen=True, slots=True)
class State:
    """All that the engine knows. Build the first one with `begin`."""

    plan: Plan
    members: Mapping[str, Member]
    round: int
    asked: frozenset[str]  # hospitals that the plan selects for `round`; nobody else has a part in it
    base_digest: bytes
    due: tuple[tuple[int, bytes], ...]  # models that evaluators still have to measure when the run starts
    drill_pause_s: float = 0.0
    phase: Phase = Phase.START
    phase_since_s: float = 0.0
    deadline_s: float = 0.0  # of the training phase
    base_round: int = 0  # the round that published the base
    evaluated_round: int = -1  # newest model that evaluators were sent
    models: tuple[tuple[int, bytes], ...] = ()  # (round that published it, digest), the newest last
    session: Session | None = None
    kept: Kept | None = None  # goes on with the first tick
    forming: tuple[str, ...] = ()  # roster whose session id is being drawn
    impossible: tuple[str, ...] = ()  # roster that was found not to hold
    held: str = ""  # who lets no further round begin, and why
    finished: str = ""


def begin(
    plan: Plan,
    *,
    round: int,  # noqa: A002
    base_digest: bytes,
    base_round: int,
    due: tuple[tuple[int, bytes], ...],
    evaluated_round: int = -1,
    now_s: float,
    drill_pause_s: float = 0.0,
    kept: Kept | None = None,
    held: str = "",
    models: tuple[tuple[int, bytes], ...] = (),
    left: frozenset[str] = frozenset(),
) -> State:
    """State of a coordinator that has just started and will offer `round` on the model `base_digest`, or go on with `kept`.

    `left`: hospitals that had said goodbye to an earlier start and were not back.
    """
    members = {h.uri: Member(h.uri, h.weight, last_seen_s=now_s) for h in plan.hospitals}
    members |= {uri: replace(member, standing=Standing.LEFT) for uri, member in members.items() if uri in left}
    if kept is not None:
        came = kept.members.items()
        members |= {uri: replace(member, last_seen_s=now_s, weight=members[uri].weight) for uri, member in came}
    return State(
        plan=plan,
        members=dict(sorted(members.items())),
        round=round,
        asked=frozenset(plan.selected(round)),
        base_digest=base_digest,
        base_round=base_round,
        due=due,
        evaluated_round=evaluated_round,
        drill_pause_s=drill_pause_s,
        phase_since_s=now_s,
        kept=kept,
        held=held,
        models=models or ((base_round, base_digest),),
    )


def fits(plan: Plan, roster_size: int) -> bool:
    """Whether a session of this size is secret against the plan's colluders: c < 2t - n and t - c >= 2 (protocol.md).

    With shared noise it may lose as many members as the plan says and still be opened.
    """
    threshold, colluders = plan.threshold_of(roster_size), plan.masking.max_colluders
    return (
        roster_size >= plan.masking.minimum_cohort
        and threshold <= roster_size
        and colluders < 2 * threshold - roster_size
        and threshold - colluders >= 2
        and (not plan.privacy.is_shared or fewest_survivors(plan, roster_size) >= threshold)
    )


def smallest_cohort(plan: Plan) -> int:
    """Fewest members with which a session may open. PlanError where no roster that the plan can have fits."""
    for size in range(plan.fewest_updates, plan.largest_cohort + 1):
        if fits(plan, size):
            return size
    raise PlanError(
        f"no cohort of study '{plan.study}' is safe against {plan.masking.max_colluders} colluders: c < 2t - n and t - c >= 2 "
        f"hold for no n up to {plan.largest_cohort}; let more hospitals take part, or lower masking.max_colluders"
    )


def willing(state: State) -> list[str]:
    """Hospitals that have budget left, as far as is known."""
    return [m.uri for m in state.members.values() if not m.definitive]


def willing_now(state: State) -> list[str]:
    """Of those that the plan selects for this round."""
    return [uri for uri in sorted(state.asked) if not state.members[uri].definitive]


def behind(state: State) -> list[Member]:
    """Hospitals of this round without an update that may still come; those that left only where too few are there without."""
    asked = [state.members[uri] for uri in sorted(state.asked) if not state.members[uri].definitive]
    here = [member for member in asked if member.standing is not Standing.LEFT]
    wanted = here if len(here) >= smallest_cohort(state.plan) else asked
    return [member for member in wanted if member.standing is not Standing.READY]


def ready_cohort(state: State, now_s: float) -> tuple[str, ...]:
    """Everybody with an update, once nobody is waited for; () before. Of rounds that wait for their hospitals."""
    live = [m for m in state.members.values() if m.uri in state.asked and not is_lost(state, m, now_s)]
    slower = [m for m in live if m.standing is not Standing.READY and m.standing not in OUT]
    return () if slower and now_s < state.deadline_s else tuple(m.uri for m in live if m.standing is Standing.READY)


def enough(state: State, session: Session) -> int:
    """Members that must stay until the upload: the threshold, the plan's minimum cohort, as many as shared noise needs."""
    return max(session.threshold, state.plan.masking.minimum_cohort, fewest_survivors(state.plan, len(session.roster)))


def seats_of(state: State, roster: tuple[str, ...]) -> tuple[Seat, ...]:
    """The members of a session as its context binds them."""
    members = [state.members[uri] for uri in roster]
    if state.plan.buffer is None:
        return tuple(Seat(m.uri, m.public_key, m.weight, state.base_digest) for m in members)
    factors = state.plan.buffer.factors
    return tuple(Seat(m.uri, m.public_key, m.weight * factors[state.round - m.began], m.base) for m in members)


def is_lost(state: State, member: Member, now_s: float) -> bool:
    """Whether a hospital has not been heard of for so long that nobody waits for it."""
    return now_s - member.last_seen_s >= state.plan.timing.lost_after_s


def why_not(state: State, party: str, session_id: bytes, phase: Phase) -> str | None:
    """Why an answer to `phase` cannot be taken now, as a sentence for its sender; None where it can."""
    session = state.session
    if session is None or session.id != session_id or session.ended is not None:
        return "this masking session is over: drop its state and poll for the next instruction"
    if party not in session.uris:
        return "this party is not a member of the masking session"
    if phase is not state.phase or session.closed_at_s is not None:
        return f"the session is not in its {phase} phase: poll for the next instruction"
    if party not in session.expected:
        return f"no {phase} answer is expected from this party: it was left out at an earlier phase"
    return None


def needs_people(state: State) -> bool:
    """Whether the round stands still until people act: each of its hospitals is ready or out, and no cohort can form."""
    settled = {Standing.READY, *OUT}
    return (
        state.phase is Phase.TRAIN and not state.forming and all(state.members[uri].standing in settled for uri in state.asked)
    )


def member_view(state: State, uri: str) -> tuple[str, str, str]:
    """(state, phase, code) of a hospital as the store's MemberRow shows them."""
    member, session = state.members[uri], state.session
    if session is not None and uri in session.expected:
        return "masking", state.phase.value, ""
    over = state.phase is Phase.FINISHED and member.standing not in {*OUT, Standing.ABSENT}  # an update of then is no news
    word = "joined" if over or member.standing is Standing.IDLE else member.standing.value
    trains = state.phase is Phase.TRAIN and uri in state.asked and member.standing not in OUT
    phase = Phase.TRAIN.value if trains else ""
    return word, phase, member.code if member.standing in OUT else ""


def waiting_for(state: State, now_s: float) -> str:
    """What the run waits for, in plain words; empty where it works or is over."""
    if state.session is not None and state.session.closed_at_s is None and state.session.missing:
        names = _names(sorted(state.session.missing))
        return f"Round {state.round} · {state.phase} · waiting for {names}"
    if state.phase is Phase.HELD:
        return f"Round {state.round} · {state.held}"
    if state.phase is not Phase.TRAIN:
        return ""
    needed = smallest_cohort(state.plan)
    asked = [state.members[uri] for uri in sorted(state.asked)]
    bases = [m.base for m in asked if m.standing is Standing.READY]  # a cohort has one; without [buffer] there is no other
    ready = max(map(bases.count, bases), default=0)
    missing = [_described(state, member, now_s) for member in behind(state)]
    if not missing:
        return ""
    return f"Round {state.round} · {ready} ready, {needed} needed · waiting for {', '.join(missing)}"


def _described(state: State, member: Member, now_s: float) -> str:
    if member.standing in OUT:
        why = f"{member.standing}: {member.code}" if member.code else member.standing.value
    elif is_lost(state, member, now_s):
        why = "not heard of"
    else:
        why = {Standing.ABSENT: "to join", Standing.IDLE: "to begin"}.get(member.standing, member.standing.value)
    return f"{short_name(member.uri)} ({why})"


def _names(uris: list[str]) -> str:
    return ", ".join(short_name(uri) for uri in uris)
