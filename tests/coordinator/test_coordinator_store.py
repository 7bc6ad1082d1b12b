"""The store's contract, for SQLite and for PostgreSQL: what one side writes the other reads, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from coordinator_federation import LAYOUT
from coordinator_world import make_plan, uri

from coordinator.store import RoundRow, ScoreRow, StoreError, TrafficRow, open_store
from coordinator.store_write import StoreWriter

PLAN = make_plan(4)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
SESSION = bytes(range(16))


@pytest.fixture
def writer(url: str) -> Iterator[StoreWriter]:
    with StoreWriter.create(url, PLAN, LAYOUT) as store:
        with store.batch() as changes:
            changes.model(0, "00" * 32, LAYOUT.length, NOON)
        yield store


def test_a_new_store_knows_plan_layout_and_members(writer, url):
    with open_store(url) as store:
        assert store.plan() == PLAN
        assert store.layout() == LAYOUT
        assert store.float32_bytes() == 4 * 28
        assert [(m.uri, m.state, m.last_seen_at) for m in store.members()] == [
            (party, "absent", None) for party in sorted([*(uri(k) for k in range(4)), "secagg://lidc/evaluator/e0"])
        ]
        assert store.rounds() == store.traffic() == store.scores() == store.events() == []
        assert "h0, h1, h2, h3 to join" in store.waiting()
        assert store.finished() == ""


def test_rounds_come_back_as_written(writer, url):
    with writer.batch() as changes:
        changes.round_state(1, "training", NOON)
        changes.phase_seconds(1, "share", 0.5)
        changes.phase_seconds(1, "train", 10.0)
        changes.phase_seconds(1, "share", 0.25)  # a second session of the same round
    with writer.batch() as changes:
        changes.round_state(
            1,
            "opened",
            NOON + 60,
            cohort=[uri(0), uri(1), uri(2)],
            survivors=[uri(0), uri(1)],
            dropped={uri(2): "mask"},
            model_digest="ab" * 32,
        )
    with open_store(url) as store:
        rounds = store.rounds()
    assert rounds == [
        RoundRow(
            number=1,
            state="opened",
            started_at=datetime(2026, 11, 21, 12, 0, tzinfo=UTC),
            ended_at=datetime(2026, 11, 21, 12, 1, tzinfo=UTC),
            cohort=(uri(0), uri(1), uri(2)),
            survivors=(uri(0), uri(1)),
            dropped={uri(2): "mask"},
            model_digest="ab" * 32,
            phase_seconds={"train": 10.0, "share": 0.75},
        )
    ]


def test_traffic_adds_up_and_scores_replace(writer, url):
    for count in (100, 23):
        with writer.batch() as changes:
            changes.traffic(1, uri(0), "up", "mask", count)
            changes.scores(1, "e", [("edema", [0.5, count / 1000]), ("core", [1])])
    with open_store(url) as store:
        assert store.traffic() == [TrafficRow(1, uri(0), "up", "mask", 123)]
        assert store.scores() == [ScoreRow(1, "edema", (0.5, 0.023), "e"), ScoreRow(1, "core", (1.0,), "e")]


def test_events_are_numbered_and_can_be_followed(writer, url):
    with writer.batch() as changes:
        for text in ("one", "two", "three"):
            changes.event(NOON, 1, "phase", text, party=uri(0), phase="mask")
    with open_store(url) as store:
        events = store.events()
        assert [event.text for event in events] == ["one", "two", "three"]
        assert [event.text for event in store.events(after_seq=events[1].seq)] == ["three"]
        assert events[0].at == datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_the_revision_grows_with_every_change_and_only_then(writer, url):
    with open_store(url) as store:
        before = store.revision()
        assert store.revision() == before
        with writer.batch() as changes:
            changes.member(uri(0), "joined", NOON)
        assert store.revision() > before


def test_a_batch_is_all_or_nothing(writer, url):
    with writer.batch() as changes:
        changes.new_session(SESSION, 1, [uri(0)], NOON)
    revision = writer.revision()

    def event_and_used_session() -> None:
        with writer.batch() as changes:
            changes.event(NOON, 1, "phase", "never")
            changes.new_session(SESSION, 1, [uri(0)], NOON)

    with pytest.raises(StoreError):
        event_and_used_session()
    with open_store(url) as store:
        assert store.events() == []
    assert writer.revision() == revision


def test_a_session_id_cannot_be_used_twice_even_after_its_end(writer):
    with writer.batch() as changes:
        changes.new_session(SESSION, 1, [uri(0)], NOON)
        changes.session_state(SESSION, "aborted", reason="test")
    with pytest.raises(StoreError, match=r"(?i)unique"), writer.batch() as changes:
        changes.new_session(SESSION, 2, [uri(0)], NOON)
    assert writer.sessions_used() == 1


def test_a_store_belongs_to_one_plan(writer, url):
    writer.close()
    StoreWriter.create(url, PLAN, LAYOUT).close()
    with pytest.raises(StoreError, match="belongs to another plan"):
        StoreWriter.create(url, make_plan(5), LAYOUT)


def test_reading_cannot_write(writer, url):
    with (
        open_store(url) as store,
        pytest.raises(StoreError, match=r"read-?only"),
        StoreWriter(store._engine).batch() as changes,
    ):
        changes.status("", "")


def test_reading_needs_a_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        open_store(tmp_path / "nothing.db")
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at by SQLite as one" * 20)
    with pytest.raises(StoreError, match="not a database"):
        open_store(tmp_path / "text.db")


def test_epochs_grow_with_every_start(writer, url):
    first = writer.next_epoch()
    writer.close()
    with StoreWriter.create(url, PLAN, LAYOUT) as again:
        assert again.next_epoch() == first + 1


@pytest.mark.parametrize(
    ("session_state", "next_round", "round_state"),
    [(None, 2, "training"), ("open", 2, "training"), ("masking", 3, "aborted")],
)
def test_resume_gives_up_a_round_only_where_updates_may_have_left(writer, session_state, next_round, round_state):
    with writer.batch() as changes:
        changes.round_state(1, "opened", NOON, model_digest="ab" * 32)
        changes.model(1, "ab" * 32, LAYOUT.length, NOON)
        changes.round_state(2, "training", NOON)
        if session_state:
            changes.new_session(SESSION, 2, [uri(0)], NOON)
            changes.session_state(SESSION, session_state)
    resume = writer.resume(NOON + 5)
    assert (resume.round, resume.model_round, resume.model_digest) == (next_round, 1, "ab" * 32)
    assert resume.interrupted == ((SESSION.hex(),) if session_state else ())
    assert writer.rounds()[1].state == round_state
    assert writer.resume(NOON + 6).interrupted == ()
