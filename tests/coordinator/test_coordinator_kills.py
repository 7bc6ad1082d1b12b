"""The coordinator is killed at the commits of a run, just before or just after: the run ends with the same model, bit for bit.

SECAGG_EVERY_KILL=1 takes every commit, otherwise a fifth of the moments.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
from coordinator_federation import make_identities, small_plan
from kill_world import KillWorld, LinkLost, update_of

from coordinator import events as ev
from coordinator.machine import Machine
from coordinator.models import ModelError, ModelFolder
from coordinator.opening import Made, Opener
from coordinator.spool import Spool
from coordinator.state import Phase
from coordinator.store import open_store
from hospital_node.release import Outcome
from proto import wire
from proto.layout import Layout, model_digest
from proto.modelfile import read_model
from proto.plan import Aggregation
from secagg import Door, Sparse

ROUNDS = 2
EVERY_KILL = "SECAGG_EVERY_KILL" in os.environ  # a fifth of the moments otherwise
LARGE = Layout((("w", (200_000,)),))  # an upload of two pieces


@dataclass
class Ended:
    """What a run left."""

    world: KillWorld
    digests: list[str]
    sessions: int


def plan_of(rounds=ROUNDS, hospitals=4):
    return small_plan(hospitals, rounds).model_copy(update={"aggregation": Aggregation(momentum=0.5)})


def play(folder, identities, kill_at=None, prepare=lambda world: None, layout=None, rounds=ROUNDS, hospitals=4, shown=True):
    world = KillWorld(folder, identities, plan_of(rounds, hospitals), *([layout] if layout else []))
    world.kill_at = kill_at
    prepare(world)
    asyncio.run(world.live())
    with open_store(world.config.database) as store:
        rows = store.rounds()
        assert [row.state for row in rows] == ["opened"] * rounds, [(row.state, row.reason) for row in rows]
        assert all(len(row.survivors) == hospitals for row in rows)
        assert not [event for event in store.events() if event.kind == "dropped"]
        digests, sessions = [model.digest for model in store.models()], store.sessions_used()
    for node in world.nodes:
        assert [number for number, _ in node.ledger.committed] == list(range(1, rounds + 1)), "each round is charged once"
        assert node.ledger.verified == list(range(1, rounds + 1)), "every result was read and verified"
        assert node.outcomes == {Outcome.COUNTED: rounds}
    assert world.run.spool.held() == []
    assert world.run.models.shown() == ((str(rounds), digests[-1]) if shown else ("", "")), "people have the newest model"
    return Ended(world, digests, sessions)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, identities):
    return play(tmp_path_factory.mktemp("undisturbed"), identities)


def test_the_undisturbed_run_opens_the_mean(undisturbed):
    length = undisturbed.world.layout.length
    means = [np.mean([update_of(n.uri, number, length) for n in undisturbed.world.nodes], axis=0) for number in (1, 2)]
    model = np.fromfile(undisturbed.world.config.state / "models" / f"{undisturbed.digests[-1]}.f32", dtype="<f4")
    assert np.abs(model - (means[0] + 0.5 * means[0] + means[1])).max() < 1e-5


def test_a_model_that_cannot_be_written_for_people_costs_no_round(undisturbed, tmp_path, identities, monkeypatch):
    """The next start writes it."""
    tried = []

    def full(_, vector, number, digest):
        del vector, digest
        tried.append(number)
        raise ModelError("cannot write latest.safetensors: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ModelFolder, "export", full)
        ended = play(tmp_path, identities, shown=False)
    assert (ended.digests, tried) == (undisturbed.digests, [1, 2])
    ended.world.start()
    assert read_model(ended.world.config.state / "models" / "latest.safetensors").digest.hex() == undisturbed.digests[-1]
    ended.world.run.store.close()


def test_an_older_model_never_takes_the_place_of_a_newer_one(tmp_path):
    """The next sum may be opened while a slow disk still takes the last one."""
    layout = Layout((("w", (3,)),))
    models = ModelFolder(tmp_path, layout)
    opener = Opener(plan_of(), layout, models, Spool(tmp_path / "spool"), Machine(Door.GCM, 1))
    for number, shown in ((1, 1), (3, 3), (2, 3)):
        vector = np.full(3, number, np.float32)
        opener.show(Made(ev.Opened(b"", b"", model_digest(vector)), vector, number))
        assert models.shown()[0] == str(shown)
        assert np.array_equal(read_model(tmp_path / "latest.safetensors").vector, np.full(3, shown))


def test_a_coordinator_killed_at_any_commit_ends_with_the_same_model(undisturbed, tmp_path, identities):
    """A fifth of all moments, or all of them. Where no other session was needed the models are those of the undisturbed run."""
    moments = [(when, number) for number in range(1, undisturbed.world.commits + 1) for when in ("before", "after")]
    for when, number in moments if EVERY_KILL else moments[2::5]:
        ended = play(tmp_path / f"{when}-{number}", identities, (when, number))
        assert ended.world.starts == 2, f"never killed {when} commit {number}"
        if ended.sessions == undisturbed.sessions:
            assert ended.digests == undisturbed.digests, f"killed {when} commit {number}"
        else:  # between the drawing of a session's id and its first order: nobody had heard of it
            assert ended.sessions == undisturbed.sessions + 1


def test_a_sparse_session_goes_on_as_well(tmp_path_factory, monkeypatch):
    """Seals belong to the order in which messages were taken: what uploads are signed under is fixed by the first one."""
    folder = tmp_path_factory.mktemp("sparse")
    identities = make_identities(folder / "identities", 7)
    monkeypatch.setattr(wire, "graph_for", lambda members, threshold, colluders: Sparse(members - 2, 3))
    first = play(folder / "undisturbed", identities, rounds=1, hospitals=7)
    moments = [("after", number) for number in range(10, first.world.commits + 1, 6)]
    for moment in moments:
        assert play(folder / str(moment[1]), identities, moment, rounds=1, hospitals=7).digests == first.digests, moment


def test_lost_acknowledgements_change_nothing(undisturbed, tmp_path, identities):
    def prepare(world):
        for place, node in enumerate(world.nodes):
            node.lose_answers = 3 + place

    assert play(tmp_path, identities, prepare=prepare).digests == undisturbed.digests


# ---- uploads of several messages ----


@pytest.fixture(scope="module")
def large(tmp_path_factory, identities):
    return play(tmp_path_factory.mktemp("large"), identities, layout=LARGE, rounds=1)


def test_a_broken_upload_goes_on_at_the_chunk_with_the_same_bytes(large, tmp_path, identities):
    def prepare(world):
        world.nodes[0].break_uploads = [0, 1, 2, 1]  # messages before the break: a header, then pieces of the vector
        world.nodes[3].break_uploads = [3]

    ended = play(tmp_path, identities, prepare=prepare, layout=LARGE, rounds=1)
    assert ended.digests == large.digests
    assert [node.sent_bytes for node in ended.world.nodes] == [node.sent_bytes for node in large.world.nodes]


def test_a_coordinator_killed_in_mid_upload_goes_on_at_the_chunk(large, tmp_path, identities):
    for number in range(1, large.world.chunks + 1):
        ended = play(tmp_path / str(number), identities, ("chunk", number), layout=LARGE, rounds=1)
        assert ended.digests == large.digests
        again = sum(node.sent_bytes for node in ended.world.nodes) - sum(node.sent_bytes for node in large.world.nodes)
        assert again == 0, "words that had come were sent again"


def test_a_node_lost_in_mid_upload_leaves_nothing_in_the_sum(tmp_path, identities):
    world = KillWorld(tmp_path, identities, plan_of(1), LARGE)
    lost = world.nodes[1]
    lost.break_uploads = [2]

    async def scenario():
        world.start()
        for _ in range(200):
            if lost.sent_bytes:  # its machine is gone, and with it the rest of the vector
                world.now_s += 1
            for node in world.nodes:
                if node is not lost or not lost.sent_bytes:
                    with suppress(LinkLost):
                        await node.turn()
            world.run.feed(ev.Tick())
            await world._opened()
            if all(node.finished for node in world.nodes if node is not lost):
                return

    asyncio.run(scenario())
    row = world.run.store.rounds()[0]
    assert row.state == "opened"
    assert row.dropped == {lost.uri: "mask"}
    assert 0 < lost.sent_bytes < world.nodes[0].sent_bytes
    others = [node.uri for node in world.nodes if node is not lost]
    mean = np.mean([update_of(uri, 1, LARGE.length) for uri in others], axis=0)
    model = np.fromfile(world.config.state / "models" / f"{row.model_digest}.f32", dtype="<f4")
    assert np.abs(model - mean).max() < 1e-5
    assert world.run.spool.held() == []


# ---- what is on disk ----


def killed_in(world, phase):
    """Bring a world to the given phase with one answer taken in it, then kill its coordinator."""

    async def scenario():
        world.start()
        for node in itertools.cycle(world.nodes):
            await node.turn()
            session = world.run.state.session
            if world.run.state.phase is phase and session.answered:
                return

    asyncio.run(scenario())
    state = world.run.state
    world.run.store._engine.dispose()
    return state


def test_damage_to_a_spooled_upload_is_found_and_its_sender_asked_again(undisturbed, tmp_path, identities):
    world = KillWorld(tmp_path, identities, plan_of())
    killed_in(world, Phase.MASK)
    (spooled,) = (path for path in (world.config.state / "spool").rglob("*") if path.is_file())
    spooled.write_bytes(b"x" + spooled.read_bytes()[1:])
    asyncio.run(world.live())
    assert [model.digest for model in open_store(world.config.database).models()] == undisturbed.digests


@pytest.mark.parametrize("phase", [Phase.CONFIRM, Phase.REVEAL])
def test_damage_after_the_list_was_fixed_ends_the_round_by_name(phase, tmp_path, identities):
    world = KillWorld(tmp_path, identities, plan_of())
    killed_in(world, phase)
    next(path for path in (world.config.state / "spool").rglob("*") if path.is_file()).unlink()
    asyncio.run(world.live())
    with open_store(world.config.database) as store:
        assert [row.state for row in store.rounds()] == ["aborted", "opened"]
    assert all(node.outcomes == {Outcome.LOST: 1, Outcome.COUNTED: 1} for node in world.nodes)


@pytest.mark.parametrize(("phase", "state"), [(Phase.SHARE, "opened"), (Phase.CONFIRM, "aborted")])
def test_a_record_that_was_edited_is_not_believed(phase, state, tmp_path, identities):
    """Before the mask phase another session forms; after it the round is given up."""
    world = KillWorld(tmp_path, identities, plan_of())
    killed_in(world, phase)
    with sqlite3.connect(world.config.state / "store.db") as database:
        (body,) = database.execute("SELECT body FROM session_messages WHERE kind = 'advert' LIMIT 1").fetchone()
        altered = body.replace(body[60:64], bytes(4), 1)
        database.execute("UPDATE session_messages SET body = ? WHERE body = ?", (altered, body))
    database.close()
    asyncio.run(world.live())
    with open_store(world.config.database) as store:
        assert [row.state for row in store.rounds()] == [state, "opened"]


def test_only_the_owner_can_read_what_is_stored_and_a_session_leaves_none_of_it(tmp_path, identities):
    world = KillWorld(tmp_path, identities, plan_of(1))
    before = os.umask(0)  # the rights are not left to chance
    try:
        killed_in(world, Phase.REVEAL)
    finally:
        os.umask(before)
    kept = [path for path in world.config.state.iterdir() if path.name.startswith("store.db")]
    kept += list((world.config.state / "spool").rglob("*"))
    assert len(kept) > 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
    with sqlite3.connect(world.config.state / "store.db") as database:
        revealed = [body for (body,) in database.execute("SELECT body FROM session_messages WHERE kind = 'revealed'")]
    database.close()
    assert revealed
    asyncio.run(world.live())
    world.run.store.close()
    assert not any(body[40:70] in (world.config.state / "store.db").read_bytes() for body in revealed)
    with sqlite3.connect(world.config.state / "store.db") as database:
        for table in ("session_messages", "session_outlines"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    database.close()
