"""The first screen in words and figures: where the study stands, whom it waits for, and four numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta

from coordinator.store import MemberRow, RoundRow
from hospital_node.progress import LocalProgress
from proto.plan import role_of
from ui import accuracy, bandwidth, budget, rounds
from ui.figures import Figure, Headline
from ui.sources import Hospital
from ui.store_reading import Federation
from ui.words import age, counted, decline, duration, party, percent, phase, size

EVENTS_SHOWN = 12
STALE_AFTER = timedelta(minutes=2)  # what a node said before that is shown with its age
PACED_BY = 5  # opened rounds
PACE = "The time left is that of the newest opened rounds for each round to come."
NOTHING_YET = "Nothing yet: the coordinator has not started round 1."
MEMBER_STATES = {
    "absent": "has not joined yet",
    "joined": "connected",
    "training": "trains",
    "ready": "has an update",
    "masking": "in the masking session",
    "declined": "declined",
    "failed": "failed",
    "excluded": "left out of this round",
    "left": "left; comes back when it is started",
    "evaluating": "evaluates",
}


def headline(seen: Federation | None, now: datetime) -> Headline:
    """Which round, which phase, waiting for whom."""
    if seen is None:
        return Headline("plain", NOTHING_YET, "This page fills by itself as soon as there is something to show.")
    row = rounds.latest(seen.rounds)
    if seen.finished:
        done = len(rounds.opened(seen.rounds))
        return Headline("good" if done else "watch", f"Finished with {counted(done, 'opened round')}", _capital(seen.finished))
    silent = silence(seen, now)
    if silent:
        where = f"The last word was of round {row.number} of {seen.plan.rounds}. " if row else ""
        return Headline(
            "watch", f"Nothing was heard for {silent}", f"{where}The coordinator is stopped, or its network is down."
        )
    if row is None:
        return Headline("plain", NOTHING_YET, _capital(seen.waiting))
    _, held, why = seen.waiting.partition(" · paused by ")
    if held:
        return Headline("watch", "Paused: no further round is opened", f"Paused by {why}.")
    title = f"Round {row.number} of {seen.plan.rounds}: {rounds.STATES.get(row.state, row.state)}"
    if row.state == "aborted":
        return Headline("watch", title, _capital(row.reason or seen.waiting))
    return Headline("plain", title, _capital(_without_round(seen.waiting)) or _last_event(seen))


def silence(seen: Federation, now: datetime) -> str:
    """For how long no party at all was heard of; empty while that is normal."""
    last = max((member.last_seen_at for member in seen.members if member.last_seen_at), default=None)
    if last is None or now - last <= timedelta(seconds=seen.plan.timing.lost_after_s):
        return ""
    return age(last, now).removesuffix(" ago")


def _without_round(text: str) -> str:
    """The store's sentences begin with the round, which the title says already."""
    return text.partition(" · ")[2] if text.startswith("Round ") else text


def _capital(text: str) -> str:
    text = text.rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _last_event(seen: Federation) -> str:
    return _capital(seen.events[-1].text) if seen.events else ""


def figures(seen: Federation | None, hospitals: Sequence[Hospital]) -> tuple[Figure, Figure, Figure, Figure]:
    """Rounds, accuracy, upload, and the hospital nearest to its cap."""
    return _rounds(seen), _dice(seen), _upload(seen), _budget(seen, hospitals)


def _rounds(seen: Federation | None) -> Figure:
    explained = (
        "Rounds whose sum was opened, of those that the plan foresees. A round may end without a sum; the model then stays."
    )
    if seen is None:
        return Figure("Rounds", "none yet", "waiting for the coordinator", explained)
    aborted = sum(row.state == "aborted" for row in seen.rounds)
    note = f"{aborted} aborted" if aborted else "none aborted"
    left = remaining_s(seen)
    end = f" · about {duration(left)} left" if left else ""
    return Figure("Rounds", f"{len(rounds.opened(seen.rounds))} of {seen.plan.rounds}", note + end, f"{explained} {PACE}")


def remaining_s(seen: Federation) -> float:
    """Until the end of the plan, at the pace of the newest opened rounds; 0 where there is no pace yet, or nothing to come."""
    last = rounds.latest(seen.rounds)
    paces = [sum(row.phase_seconds.values()) for row in rounds.opened(seen.recent)[-PACED_BY:]]
    if seen.finished or last is None or not paces or " · paused by " in seen.waiting:
        return 0.0
    ahead = seen.plan.rounds - last.number + (last.state not in {"opened", "aborted"})
    return statistics.median(paces) * ahead


def _dice(seen: Federation | None) -> Figure:
    explained = "Overlap of prediction and truth, 1 is perfect; mean over labels and the evaluator's public cases."
    measured = accuracy.end_means(seen.scores) if seen else None
    if measured is None:
        return Figure("Mean Dice", "none yet", "waiting for an evaluation", explained)
    (_, first), (number, last) = measured
    note = f"after round {number}, start {first:.2f}" if number else "of the start, before round 1"
    return Figure("Mean Dice", f"{last:.2f}", note, explained)


def _upload(seen: Federation | None) -> Figure:
    explained = "Bytes that one hospital sends in one round on average, all phases, counted on the connection."
    found = None if seen is None else bandwidth.saving(uploads(seen), seen.float32_bytes)
    if found is None:
        return Figure("Upload per round", "none yet", "waiting for round 1", explained)
    times = (
        f"{found.times:.1f} times smaller than float32" if found.times >= 1.05 else f"float32 is {size(found.float32_bytes)}"
    )
    return Figure("Upload per round", size(found.upload_bytes), times, explained)


def uploads(seen: Federation) -> tuple[bandwidth.Bar, ...]:
    """Mean upload per survivor of every opened round."""
    return bandwidth.bars(seen.by_round, "up", survivors(seen.recent))


def survivors(rows: Sequence[RoundRow]) -> dict[int, frozenset[str]]:
    """Who is in the sum of each opened round."""
    return {row.number: frozenset(row.survivors) for row in rounds.opened(rows)}


def _budget(seen: Federation | None, hospitals: Sequence[Hospital]) -> Figure:
    explained = "The hospital that has spent most of its own cap. Every hospital counts and stops by itself."
    rows = budget.shares(hospitals)
    if rows:
        value = rows[0].text if rows[0].text in budget.WITHOUT_SHARE else percent(rows[0].share)
        return Figure("Nearest to its cap", value, f"{rows[0].name} · {counted(len(rows), 'hospital')}", explained)
    if hospitals or seen is None:
        return Figure("Nearest to its cap", "none yet", "no hospital has a ledger yet", explained)
    here = sum(member.state != "absent" for member in seen.members if role_of(member.uri) == "hospital")
    connected = "Hospitals of the plan that have joined. Each shows its own budget in its own app."
    return Figure("Hospitals joined", f"{here} of {len(seen.hospitals)}", "budgets stay at the hospitals", connected)


def member_rows(seen: Federation, now: datetime) -> list[dict[str, str]]:
    """Who is here: state in words, and how long ago the party was heard of."""
    return [
        {
            "party": party(member.uri),
            "role": role_of(member.uri),
            "state": _member_state(member, seen, now),
            "last seen": "never" if member.last_seen_at is None else age(member.last_seen_at, now),
        }
        for member in sorted(seen.members, key=lambda member: (role_of(member.uri) != "hospital", member.uri))
    ]


def _member_state(member: MemberRow, seen: Federation, now: datetime) -> str:
    limit = timedelta(seconds=seen.plan.timing.lost_after_s)
    silent = member.last_seen_at is not None and now - member.last_seen_at > limit
    if silent and not seen.finished and member.state != "left":
        assert member.last_seen_at is not None
        return f"not heard of for {age(member.last_seen_at, now).removesuffix(' ago')}"
    if seen.finished and member.state in {"joined", "training", "ready", "masking", "evaluating"}:
        return "done: the study is over"  # what it did last is no news
    state = MEMBER_STATES.get(member.state, member.state)
    if member.code == "budget-exhausted":
        return rounds.STOPPED
    if member.code:
        return f"{state}: {decline(member.code)}"
    return f"{state} ({phase(member.phase)})" if member.state == "masking" and member.phase else state


def progress_line(found: LocalProgress, now: datetime) -> tuple[str, float | None]:
    """What one node does now, and how far it is (None where nobody knows)."""
    share = min(found.step / found.steps, 1.0) if found.steps else None
    where = f"round {found.round} of {found.rounds} · " if found.round and found.rounds and found.phase != "finished" else ""
    steps = f" · step {found.step} of {found.steps}" if found.steps else ""
    old = f" · said {age(found.updated_at, now)}" if now - found.updated_at > STALE_AFTER else ""
    return f"{where}{found.sentence}{steps}{old}", share
