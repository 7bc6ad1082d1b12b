"""A share of the seeded schedules of faults (`python -m tests.simulate` plays them all), and that the search finds faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fault_schedules import (
    HARMLESS,
    OPERATIONS,
    PACES,
    ROUNDS,
    broken_by,
    draw,
    play,
    play_buffered,
    play_harmless,
    search,
    shortened,
)

from coordinator import events as ev
from coordinator import journal, masking, rounds
from coordinator.state import UNCOMMITTED, Phase

SHARE = 200
KEPT = json.loads((Path(__file__).parent / "kept_schedules.json").read_text())


def test_no_schedule_of_faults_breaks_a_rule():
    assert [found for _, found in search(range(SHARE)) if found is not None] == []


def test_kills_of_the_coordinator_and_lost_or_late_messages_cost_nothing():
    assert [found for _, found in search(range(SHARE), play_harmless, HARMLESS) if found is not None] == []


def test_no_schedule_of_faults_breaks_a_rule_of_buffered_rounds():
    found = [one for _, one in search(range(SHARE // 2), play_buffered, OPERATIONS, len(PACES)) if one is not None]
    assert found == []


@pytest.mark.parametrize("kept", KEPT, ids=[f"{entry['kind']}-{entry['seed']}" for entry in KEPT])
def test_schedules_that_broke_a_rule_once_break_none(kept):
    run = {"any": play, "harmless": play_harmless, "buffered": play_buffered}[kept["kind"]]
    assert broken_by(tuple(map(tuple, kept["schedule"])), run) == ""


def test_a_seed_is_one_schedule():
    assert draw(7) == draw(7) != draw(8)
    assert {name for seed in range(200) for name, _, _ in draw(seed)} == set(OPERATIONS)
    world, again = play(draw(7)), play(draw(7))
    assert world.records == again.records
    assert world.crashes == again.crashes


def test_an_undisturbed_schedule_opens_every_round_in_one_session():
    world = play_harmless(())
    assert len(world.sessions) == ROUNDS


# ---- faults that the search has to find ----


def forgets_the_list(before, after):
    """An engine that stores nothing of the end of the mask phase."""
    return REALLY_DECIDED(before, after) and after.phase.value != "confirm"


def forgets_adverts(before, event):
    """A store that keeps no adverts, so that a restart relays other ones."""
    return None if isinstance(event, ev.Advertised) and event.party.endswith("h0") else REALLY_TAKEN(before, event)


def takes_late_uploads(turn, event):
    """An engine whose list changes while it is being signed."""
    if isinstance(event, ev.UploadAccepted) and turn.state.phase.value == "confirm":
        turn.change_session(survivors=tuple(one for one in turn.session.survivors if one != event.party))
    REALLY_ANSWER(turn, event)


def drops_whom_it_asks_again(turn, kept):
    """A restart that expects nothing more of whoever had not answered."""
    expected = kept.session.expected & kept.session.answered or kept.session.expected
    REALLY_RESUME(turn, replace(kept, session=replace(kept.session, expected=expected)))


REALLY_DECIDED, REALLY_TAKEN, REALLY_ANSWER = journal.decided, journal.taken, masking.on_answer
REALLY_RESUME = masking.resume
RELEASED_AND_AGAIN = (*UNCOMMITTED, Phase.MASK)  # an engine that forms another session from updates that were released
FAULTS = [
    (journal, "decided", forgets_the_list),
    (journal, "taken", forgets_adverts),
    (masking, "on_answer", takes_late_uploads),
    (rounds, "UNCOMMITTED", RELEASED_AND_AGAIN),
    (masking, "resume", drops_whom_it_asks_again),
]


@pytest.mark.parametrize(("where", "name", "fault"), FAULTS, ids=[name for _, name, _ in FAULTS])
def test_the_search_finds_a_fault_and_makes_its_schedule_short(where, name, fault, monkeypatch):
    monkeypatch.setattr(where, name, fault)
    run, weights = (play_harmless, HARMLESS) if fault is drops_whom_it_asks_again else (play, OPERATIONS)
    for seed in range(SHARE):
        schedule = draw(seed, weights)
        if broken_by(schedule, run):
            break
    short = shortened(schedule, run)
    assert broken_by(short, run), "not found"
    assert 0 < len(short) <= 6
    monkeypatch.undo()
    assert broken_by(short, run) == ""
