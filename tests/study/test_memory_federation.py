"""Whole federations in one process: what they give, who stops, and that nothing that fails makes them hang."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import structlog
from memory_world import LAYOUT, Ward, error_bound, make_plan

from coordinator import optimizer
from coordinator.config import load_config
from coordinator.run import Run
from coordinator.serving import Desk, serve
from coordinator.store import open_store
from hospital_node import evaluator, runner
from hospital_node.accounting import Mechanism
from hospital_node.cap import Cap, CapFilter
from hospital_node.config import load_config as load_node
from hospital_node.ledger import Ledger
from hospital_node.link import dial
from hospital_node.state import StateFolder
from hospital_node.work import Interrupted, WorkFailed
from proto.layout import Layout
from proto.plan import short_name
from study import sites
from study.bench import world
from study.bench.federation import run_federation
from study.bench.task import StudyError

ONE_ROUND = Mechanism(4.0, 1 / 2, 2)  # of make_plan(noise=4.0)
BUDGET_SPENT = "the next round would cross the privacy cap of this node"


def play(folder, plan, ward, *, cap=None, public=True, stop=None, on_round=lambda _: None):
    return run_federation(
        folder,
        plan,
        ward.start(),
        ward.seats(plan),
        cap=cap,
        data_is_public=public,
        on_round=on_round,
        stop=stop or threading.Event(),
    )


OTHERS = []


def uris(plan):
    return [hospital.uri for hospital in plan.hospitals]


def spent(delta, rounds):
    """What a ledger with a cap at this delta reads after so many rounds of make_plan(noise=4.0)."""
    return CapFilter(delta=delta, order=2).spent([ONE_ROUND.times(rounds)] if rounds else [])


@pytest.fixture(autouse=True)
def others():
    """Threads that other tests of the same process left."""
    OTHERS[:] = threading.enumerate()


def nothing_is_left():
    deadline = time.monotonic() + 60
    while left := [thread for thread in threading.enumerate() if thread not in OTHERS]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    return True


# ---- what a federation gives ----


def test_the_model_is_the_start_plus_the_mean_update_of_every_round(tmp_path):
    plan, ward, told = make_plan(4, rounds=3), Ward(), []
    done = play(tmp_path, plan, ward, on_round=told.append)
    assert np.max(np.abs(done.model - ward.expected(plan, dict.fromkeys((1, 2, 3), uris(plan))))) < error_bound(plan, 3)
    assert [row.round for row in done.rounds] == [0, 1, 2, 3]
    assert told == done.rounds
    assert [row.survivors for row in done.rounds] == [0, 4, 4, 4]
    assert [row.epsilon for row in done.rounds] == [None] * 4
    assert done.stopped == {}
    assert done.rounds[0].scores == {"even": [0.5] * 3, "odd": [0.5] * 3}
    share = float((done.model > 0).mean())
    assert done.rounds[3].scores["even"] == pytest.approx([share] * 3)
    assert sorted(ward.trained) == sorted((uri, number) for uri in uris(plan) for number in (1, 2, 3))
    assert (tmp_path / "log.txt").read_text() == ""
    assert nothing_is_left()


@pytest.mark.parametrize("buffer", [None, {"updates": 3, "max_staleness": 2}], ids=["in step", "buffered"])
def test_rounds_bound_to_one_history_lose_nobody(tmp_path, buffer):
    """With the first round's head the history is empty; each later one is another, which every member has to know by then."""
    masking = make_plan().masking.model_dump() | {"bind_log": True}
    plan, ward = make_plan(3, rounds=3, masking=masking, buffer=buffer), Ward()
    done = play(tmp_path, plan, ward)
    assert [row.survivors for row in done.rounds] == [0, 3, 3, 3]
    assert np.max(np.abs(done.model - ward.expected(plan, dict.fromkeys((1, 2, 3), uris(plan))))) < error_bound(plan, 3)
    with open_store(tmp_path / "coordinator" / "state" / "store.db") as store:
        heads = {entry.head for entry in store.log_entries(0, 10)}
        assert (len(heads), store.sessions_used()) == (3, 3)


def test_rows_hold_all_bytes_of_their_rounds(tmp_path):
    done = play(tmp_path, make_plan(3, rounds=2), Ward())
    with open_store(tmp_path / "coordinator" / "state" / "store.db") as store:
        for row in done.rounds:
            for direction, counted in (("up", row.upload_bytes), ("down", row.download_bytes)):
                lanes = [lane for lane in store.traffic() if (lane.round, lane.direction) == (row.round, direction)]
                assert sum(lane.bytes for lane in lanes if "/hospital/" in lane.party) == counted
    assert (done.rounds[0].upload_bytes, done.rounds[0].download_bytes) == (0, 0)
    assert done.rounds[1].upload_bytes > 3 * 8 * LAYOUT.length // 3


def test_epsilon_of_a_round_is_what_the_ledgers_read(tmp_path):
    plan = make_plan(3, rounds=2, noise=4.0)
    done = play(tmp_path, plan, Ward(), cap=Cap(epsilon=50, delta=1e-3), public=False)
    assert [row.epsilon for row in done.rounds] == [pytest.approx(spent(1e-3, rounds)) for rounds in (0, 1, 2)]
    ledger = Ledger.open_readonly(tmp_path / "h0" / "state" / "ledger.db")
    assert [round(value, 9) for _, value in ledger.budget(plan).by_round] == [round(row.epsilon, 9) for row in done.rounds[1:]]


def test_only_measured_rounds_have_scores_and_the_last_model_always_has(tmp_path):
    plan, told = make_plan(3, rounds=3, evaluate_every=2), []
    done = play(tmp_path, plan, Ward(), on_round=told.append)
    assert [bool(row.scores) for row in done.rounds] == [True, False, True, True]
    assert told == done.rounds


def test_trainings_and_measurements_happen_one_at_a_time(tmp_path):
    ward = Ward(disturb=lambda *_: time.sleep(0.02))
    play(tmp_path, make_plan(4, rounds=2), ward)
    assert ward.most_at_work == 1
    assert len(ward.trained) == 8


def test_each_round_belongs_to_the_participants_that_the_plan_selects(tmp_path):
    plan, ward = make_plan(5, rounds=4, participants=3), Ward()
    done = play(tmp_path, plan, ward)
    cohorts = {number: list(plan.selected(number)) for number in range(1, 5)}
    assert sorted(ward.trained) == sorted((uri, number) for number, chosen in cohorts.items() for uri in chosen)
    assert [row.survivors for row in done.rounds[1:]] == [3] * 4
    assert np.max(np.abs(done.model - ward.expected(plan, cohorts))) < error_bound(plan, 4)
    assert done.stopped == {}


# ---- who stops ----


def test_a_hospital_whose_training_fails_drops_out_and_the_others_go_on(tmp_path):
    def fail(name, _number, _on_step):
        if name == "h1":
            raise WorkFailed("training-failed", "the scanner is away")

    plan, ward = make_plan(4, rounds=2), Ward(disturb=fail)
    done = play(tmp_path, plan, ward)
    others = [uri for uri in uris(plan) if short_name(uri) != "h1"]
    assert np.max(np.abs(done.model - ward.expected(plan, dict.fromkeys((1, 2), others)))) < error_bound(plan, 2)
    assert [row.survivors for row in done.rounds] == [0, 3, 3]
    assert done.stopped == {"h1": "training did not finish"}
    assert "scanner" not in (tmp_path / "log.txt").read_text(), "the hospital's own sentence stays with the hospital"


def test_a_hospital_that_failed_once_and_came_back_did_not_stop(tmp_path):
    def fail(name, number, _on_step):
        if (name, number) == ("h1", 1):
            raise WorkFailed("training-failed", "once")

    done = play(tmp_path, make_plan(4, rounds=2), Ward(disturb=fail))
    assert [row.survivors for row in done.rounds] == [0, 3, 4]
    assert done.stopped == {}


def test_caps_end_the_run_after_the_rounds_that_they_pay_for(tmp_path):
    plan = make_plan(3, rounds=5, noise=4.0)
    cap = Cap(epsilon=(spent(1e-3, 2) + spent(1e-3, 3)) / 2, delta=1e-3)
    done = play(tmp_path, plan, Ward(), cap=cap)
    assert [row.round for row in done.rounds] == [0, 1, 2]
    assert done.rounds[-1].epsilon == pytest.approx(spent(1e-3, 2))
    assert set(done.stopped) <= {"h0", "h1", "h2"}
    assert set(done.stopped.values()) == {BUDGET_SPENT}


def test_a_cap_stops_the_one_hospital_that_was_asked_most(tmp_path):
    plan = next(plan for plan in _plans_for_one() if plan is not None)
    first = [set(plan.selected(number)) for number in (1, 2, 3)]
    (busiest,) = first[0] & first[1] & first[2]
    cap = Cap(epsilon=(spent(1e-3, 2) + spent(1e-3, 3)) / 2, delta=1e-3)
    ward = Ward()
    done = play(tmp_path, plan, ward, cap=cap)
    assert done.stopped == {short_name(busiest): BUDGET_SPENT}
    assert [row.survivors for row in done.rounds] == [0, 4, 4, 3]
    cohorts = {1: first[0], 2: first[1], 3: first[2] - {busiest}}
    assert np.max(np.abs(done.model - ward.expected(plan, cohorts))) < error_bound(plan, 3)


def _plans_for_one():
    """Plans of three rounds in which one hospital of seven is selected every time."""
    for number in range(200):
        plan = make_plan(7, rounds=3, study=f"bench{number}", noise=4.0, participants=4)
        chosen = [set(plan.selected(place)) for place in (1, 2, 3)]
        yield plan if len(chosen[0] & chosen[1] & chosen[2]) == 1 else None


def test_too_few_hospitals_are_one_sentence_where_a_coordinator_would_wait_for_people(tmp_path):
    def fail(name, _number, _on_step):
        if name in {"h1", "h2"}:
            raise WorkFailed("training-failed", "no")

    with pytest.raises(StudyError) as caught:
        play(tmp_path, make_plan(4), Ward(disturb=fail))
    assert str(caught.value) == (
        "coordinator: round 1 cannot form a cohort: 2 of its 4 hospitals have an update and 3 are needed "
        "(h1: training did not finish; h2: training did not finish)"
    )
    assert nothing_is_left()


# ---- what fails ends, and says who ----


def test_an_exception_in_a_hospitals_thread_ends_everything_with_a_sentence(tmp_path):
    def fail(name, number, _on_step):
        if (name, number) == ("h2", 2):
            raise ZeroDivisionError("boom")

    before = structlog.get_config()
    with pytest.raises(StudyError, match=r"^h2: ZeroDivisionError: boom$"):
        play(tmp_path, make_plan(4), Ward(disturb=fail))
    assert nothing_is_left()
    assert structlog.get_config() == before


def test_an_exception_while_measuring_names_the_evaluator(tmp_path):
    plan, ward = make_plan(3), Ward()
    seats = ward.seats(plan)
    object.__setattr__(seats.evaluator, "scorer", lambda *_: lambda _case: {}["no such case"])
    with pytest.raises(StudyError, match=r"^public-test: KeyError"):
        run_federation(
            tmp_path,
            plan,
            ward.start(),
            seats,
            cap=None,
            data_is_public=True,
            on_round=lambda _: None,
            stop=threading.Event(),
        )
    assert nothing_is_left()


def test_a_coordinator_that_fails_beside_a_call_is_noticed(tmp_path, monkeypatch):
    def apply(*_):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(optimizer, "apply", apply)
    with pytest.raises(StudyError, match=r"^coordinator: ZeroDivisionError: boom$"):
        play(tmp_path, make_plan(3), Ward())
    assert nothing_is_left()


def test_a_coordinator_that_fails_in_a_call_is_noticed(tmp_path, monkeypatch):
    def measured(*_):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(Run, "measured", measured)
    with pytest.raises(StudyError, match=r"^public-test: it lost the coordinator .*ZeroDivisionError.*test_memory_federation"):
        play(tmp_path, make_plan(3), Ward())
    assert nothing_is_left()


def test_an_error_of_the_caller_passes_and_ends_everything(tmp_path):
    def on_round(_row):
        raise ZeroDivisionError("boom")

    with pytest.raises(ZeroDivisionError):
        play(tmp_path, make_plan(3), Ward(), on_round=on_round)
    assert nothing_is_left()


def test_stop_ends_a_training_and_all_that_wait_for_their_turn(tmp_path):
    stop, began = threading.Event(), threading.Event()

    def train_for_ever(_name, _number, on_step):
        began.set()
        while True:
            on_step(None)
            time.sleep(0.005)

    def watch():
        began.wait(120)
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(Interrupted):
        play(tmp_path, make_plan(4), Ward(disturb=_after_a_step(train_for_ever)), stop=stop)
    watcher.join()
    assert nothing_is_left()


def _after_a_step(disturb):
    """`on_step` wants a value with the steps in it."""

    class Progress:
        step, steps = 1, 2

    return lambda name, number, on_step: disturb(name, number, lambda _: on_step(Progress()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"evaluators": []}, "has one evaluator, the plan of 'bench' names 0"),
        ({"evaluators": ["secagg://bench/evaluator/h0"]}, "would share the folder 'h0'"),
    ],
)
def test_a_plan_that_cannot_be_played_is_refused_in_a_sentence(tmp_path, change, says):
    with pytest.raises(StudyError, match=says):
        play(tmp_path, make_plan(3, **change), Ward())


def test_seats_must_be_those_of_the_plan(tmp_path):
    plan, ward = make_plan(3), Ward()
    with pytest.raises(StudyError, match="different hospitals: secagg://bench/hospital/h3"):
        run_federation(
            tmp_path,
            plan,
            ward.start(),
            ward.seats(make_plan(4)),
            cap=None,
            data_is_public=True,
            on_round=lambda _: None,
            stop=threading.Event(),
        )


def test_without_noise_private_data_are_refused_by_the_ledger(tmp_path):
    with pytest.raises(StudyError, match="runs only on data declared public"):
        play(tmp_path, make_plan(3), Ward(), public=False)


def test_a_start_that_is_not_the_plans_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"^coordinator: the start .* has digest"):
        play(tmp_path, make_plan(3, start_digest="0" * 64), Ward())


# ---- the same over gRPC ----


@pytest.mark.sockets
def test_bytes_are_those_of_a_real_connection(tmp_path):
    """The same plan over loopback TLS, by the same nodes and the same coordinator."""
    ward = Ward(layout=Layout((("weight", (20_000,)),)))
    plan = make_plan(3, rounds=2)
    here = {row.round: (row.upload_bytes, row.download_bytes) for row in play(tmp_path / "here", plan, ward).rounds}
    over_grpc(tmp_path / "there", plan, ward)
    with open_store(tmp_path / "there" / "coordinator" / "state" / "store.db") as store:
        assert [row.state for row in store.rounds()] == ["opened"] * 2
        for number in (1, 2):
            for place, direction in enumerate(("up", "down")):
                lanes = [lane for lane in store.traffic(number) if lane.direction == direction and "/hospital/" in lane.party]
                assert here[number][place] == pytest.approx(sum(lane.bytes for lane in lanes), rel=0.02)


def over_grpc(folder, plan, ward):
    made = world.build(folder, plan, ward.start(), None, data_is_public=True)
    config, ended = load_config(made.coordinator_config), threading.Event()

    async def coordinate():
        stop = asyncio.Event()
        config.state.mkdir()
        serving = asyncio.create_task(serve([Desk(config, partial(Run, config, np.random.bytes))], config, stop))
        while not ended.is_set():  # noqa: ASYNC110  the event belongs to another thread
            await asyncio.sleep(0.02)
        stop.set()
        await serving

    def live(role):
        sites.write_node(made, role, _address(config))
        seats = ward.seats(plan)
        life, workshop = (
            (evaluator.evaluate_with, seats.evaluator)
            if role == made.cast.evaluator
            else (runner.run_with, seats.hospitals[made.uri(role)])
        )
        life(load_node(made.config(role)), workshop, dial=dial, clock=time.time, rand=np.random.bytes, stop=ended)

    with ThreadPoolExecutor() as pool, world.logs_to(folder / "log.txt"):
        coordinator = pool.submit(asyncio.run, coordinate())
        try:
            for party in [pool.submit(live, role) for role in made.roles]:
                party.result(180)
        finally:
            ended.set()
        coordinator.result(120)
    assert StateFolder(made.state(made.cast.hospitals[0])).ledger.exists()


def _address(config):
    deadline = time.monotonic() + 180
    while not config.address_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return config.address_file.read_text().strip()
