"""The arithmetic behind the pages, without a page."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import BEGIN, World, make_plan, uri

from coordinator.store import EventRow, RoundRow, ScoreRow, TrafficRow
from hospital_node.ledger import Cap
from hospital_node.progress import LocalProgress
from proto.plan import DECLINE_CODES
from ui import accuracy, bandwidth, budget, overview, palette, rounds, sources
from ui.settings import from_arguments
from ui.store_reading import RoundBytes, by_round

A, B, C = uri("a"), uri("b"), uri("c")


def score(number: int, *values: float, label: str = "nodule") -> ScoreRow:
    return ScoreRow(number, label, values)


# ---- accuracy ----


def test_the_interval_holds_the_mean_and_narrows_with_more_cases():
    few, many = (0.2, 0.5, 0.8, 0.6), tuple(np.linspace(0.2, 0.8, 200))
    low, high = accuracy.interval(few)
    assert low < np.mean(few) < high
    narrow = accuracy.interval(many)
    assert narrow[1] - narrow[0] < high - low


def test_the_interval_agrees_with_the_normal_one_for_many_cases():
    values = tuple(np.random.default_rng(1).normal(0.6, 0.1, 400))
    low, high = accuracy.interval(values)
    half = 1.96 * np.std(values) / np.sqrt(len(values))
    assert low == pytest.approx(np.mean(values) - half, abs=0.002)
    assert high == pytest.approx(np.mean(values) + half, abs=0.002)


def test_one_case_has_no_interval_and_no_cases_no_point():
    (point,) = accuracy.curve([score(0, 0.4), score(1)])
    assert (point.mean, point.low, point.high) == (0.4, None, None)
    assert point.spread == "none"
    assert "(" not in accuracy.sentence([point])


def test_the_same_cases_give_the_same_picture():
    assert accuracy.interval.__wrapped__((0.1, 0.5, 0.9)) == accuracy.interval.__wrapped__((0.1, 0.5, 0.9))


def test_the_sentence_compares_with_the_start():
    points = accuracy.curve([score(0, 0.3, 0.3), score(2, 0.7, 0.7)])
    assert (
        accuracy.sentence(points)
        == "After round 2 the mean Dice is nodule 0.70 (0.70 to 0.70) over 2 public cases; the start had 0.30."
    )
    assert accuracy.sentence(points[:1]) == "The start: mean Dice nodule 0.30 (0.30 to 0.30) over 2 public cases."
    assert [figure.value for figure in accuracy.figures(points)] == ["0.70", "0.30", "+0.40", "2"]


# ---- bandwidth ----


TRAFFIC = by_round(
    [
        TrafficRow(1, A, "up", "mask", 1_000),
        TrafficRow(1, B, "up", "mask", 3_000),
        TrafficRow(1, A, "up", "share", 200),
        TrafficRow(1, C, "up", "mask", 9_000),  # not in the sum
        TrafficRow(1, A, "down", "broadcast", 8_000),
        TrafficRow(2, A, "up", "mask", 5_000),  # of an aborted round
    ]
)
SURVIVORS = {1: (A, B)}


def test_bars_are_means_over_the_hospitals_in_the_sum():
    shown = bandwidth.bars(TRAFFIC, "up", SURVIVORS)
    assert [(bar.round, bar.group, bar.bytes) for bar in shown] == [(1, "masked update", 2_000), (1, "keys and shares", 100)]


def test_bars_of_one_hospital_are_its_own_bytes():
    (bar,) = bandwidth.bars(TRAFFIC, "up", SURVIVORS, only=B)
    assert bar.bytes == 3_000
    assert bandwidth.bars(TRAFFIC, "up", SURVIVORS, only=C) == ()


def test_what_was_drawn_of_a_round_is_kept_until_bytes_are_added(monkeypatch):
    (one, _) = TRAFFIC
    first = bandwidth.bars([one], "up", SURVIVORS)
    table = bandwidth.rows([one], "up", None)
    monkeypatch.setattr(bandwidth, "size", None)  # nothing may be computed again
    assert bandwidth.bars([one], "up", SURVIVORS) == first
    assert bandwidth.rows([one], "up", None) == table
    monkeypatch.undo()
    more = RoundBytes(1, (*one.rows, TrafficRow(1, A, "up", "mask", 5_000)))
    assert [bar.bytes for bar in bandwidth.bars([more], "up", SURVIVORS)] == [4_500, 100]
    assert [bar.bytes for bar in bandwidth.bars([one], "up", {1: (A,)})] == [1_000, 200], "another choice is another answer"


def test_every_phase_of_a_round_is_drawn_once():
    drawn = [phase for phases in bandwidth.GROUPS.values() for phase in phases]
    assert sorted(drawn) == sorted(set(drawn))
    assert set(drawn) == set(rounds.PHASES)
    assert bandwidth.group_of("a later phase") == "everything else"


@pytest.mark.parametrize(
    ("upload", "words"),
    [(1_000, "4.0 times smaller than"), (4_000, "about as large as"), (8_000, "2.0 times larger than")],
)
def test_the_comparison_is_honest_in_both_directions(upload, words):
    assert words in bandwidth.compared(bandwidth.Saving(upload, 4_000))


def test_totals_count_everything():
    assert bandwidth.totals({(A, "up"): 18_000, (B, "up"): 200, (A, "down"): 8_000}) == {"up": 18_200, "down": 8_000}
    assert bandwidth.saving((), 4_000) is None
    assert bandwidth.sentence((), 4_000, "up") == "No bytes were counted yet."


# ---- rounds ----


ROW = RoundRow(
    number=7,
    state="opened",
    started_at=BEGIN,
    ended_at=BEGIN + timedelta(seconds=30),
    cohort=(A, B, C),
    survivors=(A, B),
    dropped={C: "mask"},
    phase_seconds={"train": 20.0, "advertise": 1.0, "share": 1.0, "mask": 4.0, "confirm": 1.0, "reveal": 3.0},
)


def test_a_lost_hospital_ends_with_the_phase_in_which_it_was_lost():
    shown = rounds.timeline(ROW)
    assert [part.phase for part in shown.segments if part.party == "c"] == ["train", "advertise", "share", "mask"]
    assert shown.losses == (rounds.Loss("c", "mask", 26.0),)
    assert shown.end_s == 30.0


def test_the_masking_session_has_an_axis_of_its_own():
    shown = rounds.timeline(ROW, masking_only=True)
    assert shown.end_s == 10.0
    assert {part.phase for part in shown.segments} == set(rounds.MASKING_PHASES)


@given(
    st.dictionaries(st.sampled_from(list(rounds.PHASES)), st.floats(0, 1e4), max_size=10), st.sampled_from(["", *rounds.PHASES])
)
def test_phases_follow_each_other_without_gaps(phase_seconds, lost_in):
    row = replace(ROW, phase_seconds=phase_seconds, dropped={C: lost_in} if lost_in else {})
    for name in ("a", "b", "c"):
        parts = [part for part in rounds.timeline(row).segments if part.party == name]
        ends = [0.0] + [part.end_s for part in parts]
        assert [part.start_s for part in parts] == pytest.approx(ends[:-1])


def test_a_round_in_one_line_and_one_sentence():
    declined = EventRow(3, BEGIN, 7, uri("d"), "declined", "train", "d declined")
    cells = rounds.line(ROW, [declined]).cells(UTC)
    assert cells["in the sum"] == "2 of 3"
    assert cells["lost"] == "c (masked update)"
    assert cells["sat out"] == "d"
    assert rounds.sentence(ROW) == (
        "Round 7 took 30 s; 2 of 3 hospitals returned; c was lost in the phase 'masked update', and the round went on without."
    )
    assert rounds.sentence(replace(ROW, dropped={}, cohort=(A, B))).endswith("nobody was lost.")


def test_an_aborted_round_has_nobody_in_its_sum_and_names_who_was_lost():
    seconds = {"train": 60.0, "advertise": 1.0, "share": 1.0, "mask": 1.0}  # it broke off while the list was confirmed
    broken = replace(ROW, state="aborted", survivors=(A, B, C), dropped={C: "confirm"}, phase_seconds=seconds)
    broken = replace(broken, reason="confirm: only 2 of 3 answered in time, 3 are needed")
    assert rounds.line(broken, []).returned == "0 of 3"
    said = rounds.sentence(broken)
    assert said.endswith(": survivor list: only 2 of 3 answered in time, 3 are needed. Lost: c (survivor list).")
    assert rounds.timeline(broken).losses == (rounds.Loss("c", "confirm", 63.0),)
    assert rounds.timeline(broken, masking_only=True).losses == (rounds.Loss("c", "confirm", 3.0),)


def test_a_running_round_claims_no_result():
    running = replace(ROW, state="masking", ended_at=None, survivors=())
    assert rounds.line(running, []).returned == ""
    assert rounds.sentence(running) == "Round 7 is running: masking session."
    assert rounds.worth_showing([ROW, replace(running, number=8)]) == "7"
    assert rounds.worth_showing([running]) == "7"


# ---- budget ----


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tmp_path_factory.mktemp("budget"), make_plan(6), caps={"st-anna": 4.4})
    for name in ("lakeside", "st-anna"):
        found.approve(name)
        for number in (1, 2):
            found.charge(name, number)
    return found


def read(world: World, name: str) -> sources.Hospital:
    return sources.hospital(world.state(name))


def test_the_curve_starts_at_zero_and_goes_on_from_what_is_spent(world):
    found = read(world, "lakeside")
    curve = budget.curve(found.budget, found.events)
    assert curve.spent[0] == (0, 0.0)
    assert curve.spent[-1] == curve.forecast[0]
    assert curve.spent[-1][1] == found.budget.spent
    assert [number for number, _ in curve.forecast] == [2, 3, 4, 5, 6]
    assert curve.stop is None
    assert curve.cap_note == f"agreed {BEGIN.day} {BEGIN:%b %Y}, Dr K. Weber"


def test_the_forecast_ends_where_the_cap_is_crossed(world):
    found = read(world, "st-anna")
    curve = budget.curve(found.budget, found.events)
    over = [reached for _, reached in curve.forecast if reached > curve.cap]
    assert len(over) == 1
    assert curve.forecast[-1][1] == over[0]
    assert curve.stop == (2, "stopped itself here")
    assert curve.last_round == 6


def test_the_bar_of_all_hospitals_puts_the_nearest_to_its_cap_first(world):
    rows = budget.shares([read(world, "lakeside"), read(world, "st-anna"), sources.Hospital("new", world.folder)])
    assert [row.name for row in rows] == ["st-anna", "lakeside"]
    assert rows[0].share == pytest.approx(read(world, "st-anna").budget.spent / 4.4)
    assert rows[0].text.endswith("δ 1e-5 · stopped itself")
    assert rows[1].text.endswith("4 rounds left")
    assert budget.shares_sentence(rows).endswith("94 %, and stopped itself.")


def test_a_curve_after_an_earlier_study_does_not_pretend_to_start_at_zero(tmp_path):
    later = make_plan(3).model_copy(update={"rounds": 2})
    first = World(tmp_path, make_plan(1))
    ledger = first.approve("lakeside")
    first.charge("lakeside", 1)
    second = World(tmp_path, later)
    ledger.approve(later, by="Dr K. Weber", reason="second study", cap=Cap(epsilon=8, delta=1e-5), at=second.clock)
    (second.state("lakeside") / "plan.json").write_bytes(later.canonical())
    before = read(second, "lakeside")
    assert budget.curve(before.budget, before.events).spent == ((0, before.budget.spent),)
    second.charge("lakeside", 1)
    after = read(second, "lakeside")
    assert [number for number, _ in budget.curve(after.budget, after.events).spent] == [1]


def test_what_is_left_is_rounded_down_and_what_is_spent_up(world):
    view = replace(read(world, "lakeside").budget, spent=4.001, left=3.999)
    shown = {figure.label: figure for figure in budget.figures(view)}
    assert shown["Spent"].value == "ε 4.01 of 8"
    assert shown["Left"].note == "ε 3.99 below the cap"


def test_a_raised_or_lowered_cap_is_named_with_its_author(world, tmp_path):
    found = World(tmp_path, make_plan(3))
    ledger = found.approve("lakeside")
    ledger.lower_cap(Cap(epsilon=5, delta=1e-5), by="Dr Ito", reason="second study planned", at=found.clock)
    events = ledger.events()
    assert budget.cap_note(events).endswith("Dr Ito")
    newest, oldest = budget.decisions(events, UTC)
    assert newest["what"] == "lowered the cap to ε 5, δ 1e-5"
    assert "at most 3 rounds, cap ε 8" in oldest["what"]
    assert newest["why"] == "second study planned"


def test_sizes_that_were_not_measured_are_not_zero(world):
    rows = budget.leaving(world.plan, None)
    assert [row["size, last round"] for row in rows if row["how often"] != "never"] == ["–"] * (len(rows) - 1)
    measured = budget.leaving(world.plan, read(world, "lakeside").leaves)
    assert measured[0]["size, last round"] == "180 kB"


# ---- overview ----


def test_a_member_is_stale_only_after_the_plans_own_limit(tmp_path):
    world = World(tmp_path)
    world.start()
    seen = sources.federation(world.coordinator)
    heard = max(member.last_seen_at for member in seen.members)
    soon = overview.member_rows(seen, heard + timedelta(seconds=50))
    late = overview.member_rows(seen, heard + timedelta(seconds=200))
    assert soon[0]["state"] == "trains"
    assert late[0]["state"] == "not heard of for 3 min"
    assert soon[-1]["role"] == "evaluator"


def test_progress_says_its_age_when_it_is_old():
    now = datetime.now(UTC)
    found = LocalProgress(
        study="chest", round=3, rounds=8, phase="training", step=2, steps=5, since=now, sentence="training", updated_at=now
    )
    assert overview.progress_line(found, now) == ("round 3 of 8 · training · step 2 of 5", 0.4)
    assert overview.progress_line(found, now + timedelta(minutes=6))[0].endswith("said 6 min ago")
    assert overview.progress_line(found.model_copy(update={"steps": 0, "step": 0}), now)[1] is None
    over = found.model_copy(update={"phase": "finished", "sentence": "all 8 rounds are done", "steps": 0})
    assert overview.progress_line(over, now) == ("all 8 rounds are done", None), (
        "the round that this node was last in is no news"
    )


# ---- sources ----


def test_a_reading_is_kept_until_the_ledger_changes(tmp_path):
    world = World(tmp_path, make_plan(3))
    world.approve("lakeside")
    first = read(world, "lakeside")
    assert read(world, "lakeside") is first
    world.charge("lakeside", 1)
    assert read(world, "lakeside").budget.rounds_done == 1


def test_the_signature_ignores_heartbeats_and_notices_rounds(tmp_path):
    world = World(tmp_path)
    world.start()
    settings = from_arguments(world.arguments())
    before = sources.signature(settings)
    with world.store() as store, store.batch() as batch:
        batch.member(uri("lakeside"), "training", BEGIN.timestamp() + 999, "train")
    assert sources.signature(settings) == before
    world.begin(1)
    assert sources.signature(settings) != before


def test_a_store_made_anew_is_read_anew(tmp_path):
    old, new = World(tmp_path / "a", make_plan(2)), World(tmp_path / "b", make_plan(5))
    old.start()
    assert sources.federation(old.coordinator).plan.rounds == 2
    new.start()
    (new.coordinator / "store.db").replace(old.coordinator / "store.db")
    assert sources.federation(old.coordinator).plan.rounds == 5


def test_a_hospital_is_named_by_its_node_before_it_has_a_ledger(tmp_path):
    folder = tmp_path / "lakeside" / "state"
    folder.mkdir(parents=True)
    assert sources.hospital(folder).name == "lakeside"
    (folder / "node.json").write_text('{"uri": "secagg://chest/hospital/st-anna", "study": "chest"}')
    assert sources.name_of(folder) == "st-anna"


# ---- palette ----


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("paper", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_colours_can_be_seen_and_text_can_be_read(paper):
    for colour in (palette.BLUE, palette.VERMILLION, palette.GREEN, palette.PURPLE, palette.GREY):
        assert contrast(colour, paper.surface) >= 3
        assert contrast(palette.on(colour), colour) >= 4.5
    assert contrast(paper.strong, paper.surface) >= 7
    assert contrast(paper.soft, paper.surface) >= 4.5


def test_series_differ_in_colour_and_in_dash():
    drawn = palette.styles(["a", "b", "c", "d", "e"], palette.LIGHT)
    assert len({style.colour for style in drawn.values()}) == 5
    assert len({style.dash for style in drawn.values()}) == 5


def test_many_series_are_grey_with_one_highlighted():
    names = [f"h{number}" for number in range(40)]
    drawn = palette.styles(names, palette.DARK, highlighted="h7")
    assert [name for name, style in drawn.items() if style.colour == palette.BLUE] == ["h7"]


def test_what_left_by_day_is_on_the_readers_calendar(tmp_path):
    world = World(tmp_path, make_plan(6), clock=datetime(2026, 11, 21, 9, 0, tzinfo=UTC))
    world.approve("lakeside")
    now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    assert budget.left_by_day(world.ledger("lakeside").events(), UTC, now) == "No update has left."
    for number in (1, 2):
        world.charge("lakeside", number)
    world.clock += timedelta(days=1)
    world.charge("lakeside", 3)
    events = world.ledger("lakeside").events()
    days = "Updates that left by day: 22 Nov 2026: round 3; 21 Nov 2026: rounds 1 to 2."
    assert budget.left_by_day(events, UTC, now) == f"{days} Yesterday, 22 Nov 2026: round 3."
    later = now + timedelta(days=1)
    assert budget.left_by_day(events, UTC, later) == f"{days} Yesterday, 23 Nov 2026: no update left."
    far_east = timezone(timedelta(hours=16))
    assert budget.left_by_day(events, far_east, now).startswith("Updates that left by day: 23 Nov 2026: round 3; 22 Nov 2026")


def test_who_stopped_itself_is_said_in_that_round_and_in_every_later_one_until_it_is_back():
    text = f"Round 4 · d declined: {DECLINE_CODES['budget-exhausted']}"
    out = [EventRow(1, BEGIN, 4, uri("d"), "declined", "train", text), EventRow(2, BEGIN, 5, C, "failed", "train", "c failed")]
    cohorts = {3: (A, uri("d")), 4: (A, B), 5: (A, B), 6: (A, B), 7: (A, B, uri("d")), 8: (A, B)}
    rows = [replace(ROW, number=number, cohort=cohort, dropped={}) for number, cohort in cohorts.items()]
    said = {line.number: line.sat_out for line in rounds.lines(rows, out)}
    stopped = "d (stopped itself: its privacy cap would be exceeded)"
    assert said == {3: "", 4: stopped, 5: f"c and {stopped}", 6: stopped, 7: "", 8: ""}
    ended = rounds.stops(rows, out)
    assert rounds.sentence(rows[3], out, ended).endswith(f"nobody was lost. Sat out: {stopped}.")
    other = EventRow(3, BEGIN, 4, B, "declined", "train", f"Round 4 · b declined: {DECLINE_CODES['paused']}")
    assert rounds.stops(rows, [other]) == ()


def test_a_round_says_who_sat_it_out():
    declined = EventRow(1, BEGIN, 7, C, "declined", "train", "Round 7 · c declined")
    other = EventRow(2, BEGIN, 6, A, "declined", "train", "Round 6 · a declined")
    assert rounds.sentence(ROW, [declined, other]).endswith(" Sat out: c.")
    assert "Sat out" not in rounds.sentence(ROW, [other])
