"""What `secagg-coordinator status` says: the store's facts and what follows from the time that has passed since.

A coordinator that died cannot say so itself: whoever reads sees from its last heartbeat that the figures are stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from coordinator.store import MemberRow, StoreReader
from proto.plan import Plan, short_name

HEARTBEAT_S = 2.0  # how often a running coordinator says that it is there
STALE_AFTER_S = 5 * HEARTBEAT_S


def status_of(store: StoreReader, now: datetime) -> dict[str, object]:
    """Everything as JSON can hold it, datetimes aside; `now` is aware."""
    plan = store.plan()
    return {
        "study": plan.study,
        "plan_digest": plan.digest().hex(),
        "waiting": store.waiting(),
        "finished": store.finished(),
        "coordinator": heartbeat_of(store, now),
        "phase": phase_of(store),
        "awaited": [_named(item, now) for item in store.awaited()],
        "rounds": [asdict(row) for row in store.rounds()],
        "members": [_member(row, plan, now) for row in store.members()],
        "scores": [asdict(row) for row in store.scores()],
        "validations": [asdict(row) for row in store.validations()],
    }


def heartbeat_of(store: StoreReader, now: datetime) -> dict[str, object]:
    """When the coordinator was last known to run. `stale` where that is long ago and the run is not over."""
    at = store.heartbeat()
    age_s = None if at is None else max(0.0, (now - at).total_seconds())
    stale = not store.finished() and (age_s is None or age_s > STALE_AFTER_S)
    return {"heartbeat_at": at, "heartbeat_age_s": age_s, "stale": stale}


def phase_of(store: StoreReader) -> dict[str, object]:
    """Name of the present phase and when it began; empty where no coordinator has run yet."""
    name, since = store.phase()
    return {"name": name, "since": since}


def _named(item: Mapping[str, object], now: datetime) -> dict[str, object]:
    since = datetime.fromtimestamp(float(str(item["since"])), UTC)
    waited_s = max(0.0, (now - since).total_seconds())
    return {**item, "name": short_name(str(item["uri"])), "since": since, "waited_s": waited_s}


def _member(row: MemberRow, plan: Plan, now: datetime) -> dict[str, object]:
    age_s = None if row.last_seen_at is None else max(0.0, (now - row.last_seen_at).total_seconds())
    stale = age_s is None or age_s >= plan.timing.lost_after_s
    return {**asdict(row), "heard_age_s": age_s, "stale": stale}
