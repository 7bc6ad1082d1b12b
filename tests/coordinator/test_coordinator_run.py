"""A run without sockets: what happens when the disk fails between a decision and its record."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager

import pytest
from coordinator_federation import LAYOUT, small_plan, write_study
from coordinator_world import uri

from certs.identity import load_identity
from coordinator import events as ev
from coordinator import orders, record, store_write
from coordinator.run import Run
from coordinator.sessions import Refusal, forget, take
from coordinator.state import Phase
from coordinator.store import StoreError, open_store
from proto import federation_pb2 as pb
from proto.plan import Masking
from proto.wire import to_advert
from secagg import Policy, node


@contextmanager
def broken_store(run):
    """No transaction succeeds."""

    @contextmanager
    def batch(**_):
        raise StoreError("disk full")
        yield

    whole, run.store.batch = run.store.batch, batch
    try:
        yield
    finally:
        run.store.batch = whole


@pytest.fixture
def run(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())
    config.state.mkdir()
    one = Run(config, os.urandom)
    one.feed(ev.Tick())
    yield one
    one.store.close()


def advertising(run, identities):
    """Bring the run to its advertise phase; returns each hospital's advert as it goes on the wire."""
    people = [load_identity(identities / f"h{number}") for number in range(4)]
    for person in people:
        run.feed(ev.Joined(person.uri, person.public_key_der))
    for person in people:
        run.feed(ev.Reported(person.uri, 1, ev.Report.READY, run.state.base_digest))
    session = run.state.session.id
    params = run.views[session].params
    answers = []
    for person in people:
        pinned = {other.uri: other.fingerprint for other in people}
        _, advert = node.advertise(params, person.uri, person.key, Policy(pinned, 3, 1), os.urandom)
        answers.append(pb.PhaseAnswer(session=session, advert=to_advert(advert)))
    return answers


def test_nothing_is_promised_that_was_not_stored(run):
    before = run.state
    with broken_store(run), pytest.raises(StoreError):
        run.feed(ev.Joined(uri(0), b"key"))
    assert run.state is before
    assert run.mail[uri(0)].after(0) is None
    run.feed(ev.Joined(uri(0), b"key"))
    assert isinstance(run.mail[uri(0)].after(0)[1], orders.Train)


def test_a_session_opens_only_once_its_id_is_stored(run, identities):
    people = [load_identity(identities / f"h{number}") for number in range(4)]
    for person in people:
        run.feed(ev.Joined(person.uri, person.public_key_der))
    for person in people[:3]:
        run.feed(ev.Reported(person.uri, 1, ev.Report.READY, run.state.base_digest))
    last = ev.Reported(people[3].uri, 1, ev.Report.READY, run.state.base_digest)
    with broken_store(run), pytest.raises(StoreError):
        run.feed(last)
    assert run.state.phase is Phase.TRAIN
    assert run.store.sessions_used() == 0
    run.feed(last)
    assert run.state.phase is Phase.ADVERTISE
    assert run.store.sessions_used() == 1
    assert all(isinstance(run.mail[person.uri].after(0)[1], orders.Open) for person in people)


def test_only_answers_do_not_wait_for_the_disk(run, identities, monkeypatch):
    """What was decided outlives a power cut, and with it every answer that it rests on: SQLite's log is one."""
    waited = []
    really = store_write.transaction

    @contextmanager
    def watched(connection, *, durable):
        with really(connection, durable=durable):
            waited.append((durable, connection.connection.driver_connection.execute("PRAGMA synchronous").fetchone()[0]))
            yield

    monkeypatch.setattr(store_write, "transaction", watched)
    answers = advertising(run, identities)
    assert all(durable for durable, _ in waited)
    waited.clear()
    view = run.views[run.state.session.id]
    for number in range(4):
        run.feed(take(run.state, view, uri(number), answers[number]).event)
    full, normal = (True, 2), (False, 1)
    assert waited == [normal, normal, normal, full], "the last answer ends the phase"


def test_an_answer_that_could_not_be_stored_can_be_given_again(run, identities):
    answers = advertising(run, identities)
    view = run.views[run.state.session.id]
    for number in range(3):
        run.feed(take(run.state, view, uri(number), answers[number]).event)
    taken = take(run.state, view, uri(3), answers[3])
    with broken_store(run), pytest.raises(StoreError):
        run.feed(taken.event)
    forget(view, uri(3), taken.event)
    assert run.state.phase is Phase.ADVERTISE
    run.feed(take(run.state, view, uri(3), answers[3]).event)
    assert run.state.phase is Phase.SHARE


def test_an_answer_is_taken_once_and_another_one_is_refused(run, identities):
    answers = advertising(run, identities)
    view = run.views[run.state.session.id]
    run.feed(take(run.state, view, uri(0), answers[0]).event)
    assert take(run.state, view, uri(0), answers[0]).event is None
    changed = pb.PhaseAnswer()
    changed.CopyFrom(answers[0])
    changed.advert.seal_key = bytes(32)
    with pytest.raises(Refusal) as again:
        take(run.state, view, uri(0), changed)
    assert again.value.kind == "invalid"
    with pytest.raises(Refusal, match="another party"):
        take(run.state, view, uri(1), answers[0])


def test_the_engine_hears_of_a_busy_hospital_a_few_times_a_second(run, monkeypatch):
    """And at once of one that counts as lost: nobody waits for it until it is heard of."""
    fed, now = [], run.now_s()
    feed = run.feed
    monkeypatch.setattr(run, "feed", lambda event: (fed.append(event), feed(event)))
    monkeypatch.setattr(run, "now_s", lambda: now)
    feed(ev.Joined(uri(0), b"key"))
    for _ in range(50):
        now += 0.01
        run.heard(uri(0))
    assert 1 <= len(fed) <= 3
    assert now - run.state.members[uri(0)].last_seen_s < 0.25
    now += 60.0
    feed(ev.Tick())
    assert run.state.members[uri(0)].lost
    run.heard(uri(0))
    assert not run.state.members[uri(0)].lost


@pytest.mark.parametrize(("many", "at_once"), [(2, False), (100, True)])
def test_among_many_hospitals_news_of_one_are_shown_with_the_next_heartbeat(run, monkeypatch, many, at_once):
    monkeypatch.setattr(record, "MANY_HOSPITALS", many)
    run.feed(ev.Tick())
    run.feed(ev.Joined(uri(0), b"key"))

    def shown():
        with open_store(run.config.database) as store:
            assert "joined" in {row.kind for row in store.events()}, "what happened is stored at once"
            return {row.uri: row.state for row in store.members()}[uri(0)] == "joined"

    assert shown() is at_once
    run.flush()
    assert shown()


def test_bytes_are_kept_until_they_can_be_stored(run):
    from coordinator.meter import Lane

    run.meter.add(Lane(1, uri(0), "up", "mask"), pb.Chunk(data=bytes(100)))
    with broken_store(run), pytest.raises(StoreError):
        run.flush()
    run.flush()
    assert run.store.traffic()[0].bytes > 100


def test_who_reads_that_a_round_went_on_reads_its_bytes_too(run, identities):
    from coordinator.meter import Lane

    run.meter.add(Lane(1, uri(0), "up", "train"), pb.Chunk(data=bytes(100)))
    advertising(run, identities)  # the round's row changes to masking
    assert [row.state for row in run.store.rounds()] == ["masking"]
    assert run.store.traffic()[0].bytes > 100


def test_weights_that_leave_no_safe_cohort_open_no_session_and_say_so(tmp_path, identities):
    plan = small_plan(3)
    heavy = plan.hospitals[0].model_copy(update={"weight": 1 << 20})
    plan = plan.model_copy(update={"hospitals": (heavy, *plan.hospitals[1:]), "masking": Masking(max_colluders=0)})
    config = write_study(tmp_path, identities, plan)
    config.state.mkdir()
    run = Run(config, os.urandom)
    run.feed(ev.Tick())
    for number in range(3):
        run.feed(ev.Joined(uri(number), load_identity(identities / f"h{number}").public_key_der))
    for number in range(3):
        run.feed(ev.Reported(uri(number), 1, ev.Report.READY, run.state.base_digest))
    assert run.state.phase is Phase.TRAIN
    assert run.store.sessions_used() == 0
    with open_store(config.database) as store:
        assert "no session opens until the cohort changes" in store.events()[-1].text
        assert store.float32_bytes() == 4 * LAYOUT.length


@pytest.mark.parametrize("phase", ["train", "advertise"])
def test_since_when_it_waits_outlives_a_restart(tmp_path, identities, monkeypatch, phase):
    """People ask how long a hospital has kept them waiting; deadlines are another matter and begin anew."""
    config = write_study(tmp_path, identities, small_plan())
    config.state.mkdir()
    before = Run(config, os.urandom)
    before.feed(ev.Tick())
    if phase == "advertise":
        answers = advertising(before, identities)
        before.feed(take(before.state, before.views[before.state.session.id], uri(0), answers[0]).event)
    before.flush()
    began = before.store.phase()
    before.store.close()
    assert began[0] == phase
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    after = Run(config, os.urandom)
    after.feed(ev.Tick())
    after.flush()
    assert after.store.phase() == began
    assert {round(item["since"], 3) for item in after.store.awaited()} == {round(began[1].timestamp(), 3)}
    for number in range(4):
        after.feed(ev.Joined(uri(number), load_identity(identities / f"h{number}").public_key_der))
        after.feed(ev.Reported(uri(number), 1, ev.Report.READY, after.state.base_digest))
    if phase == "train":
        after.flush()
        name, since = after.store.phase()
        assert (name, since.timestamp()) == ("advertise", pytest.approx(later, abs=60)), "the next phase begins when it begins"
    after.store.close()
