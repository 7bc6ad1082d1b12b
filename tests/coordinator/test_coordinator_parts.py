"""Optimizer, models, spool, mailbox, meter, configuration: each alone."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from coordinator_federation import LAYOUT
from coordinator_world import START, uri
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from coordinator import optimizer, orders
from coordinator.config import ConfigError, load_config
from coordinator.mailbox import Mailbox, first_id
from coordinator.meter import Lane, Meter
from coordinator.models import ModelError, ModelFolder, pieces, read_start
from coordinator.spool import Spool, SpoolError, UploadBroken, UploadError
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.modelfile import Model, encode_model
from proto.plan import Aggregation
from proto.wire import framed_bytes
from secagg.coordinate import add_upload

BASE = np.linspace(-1, 1, LAYOUT.length, dtype=np.float32)
MEAN = np.full(LAYOUT.length, 0.5, np.float32)


def test_a_plain_step_adds_the_scaled_mean_and_keeps_no_memory():
    model, velocity = optimizer.apply(Aggregation(learning_rate=2.0), BASE, MEAN, None, 1)
    assert velocity is None
    assert np.array_equal(model, BASE + np.float32(1.0))
    assert model.dtype == np.float32


def test_momentum_follows_its_recurrence():
    settings = Aggregation(learning_rate=0.5, momentum=0.5)
    model, velocity = optimizer.apply(settings, BASE, MEAN, None, 1)
    model, velocity = optimizer.apply(settings, model, MEAN, velocity, 2)
    assert np.array_equal(velocity, np.full(LAYOUT.length, 0.75, np.float32))  # 0.5 * 0.5 + 0.5
    assert np.allclose(model, BASE + 0.5 * 0.5 + 0.5 * 0.75)


def test_a_step_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        optimizer.apply(Aggregation(learning_rate=3e38), BASE, MEAN * 1e30, None, 1)


def test_models_are_found_by_digest_and_damage_is_noticed(tmp_path):
    folder = ModelFolder(tmp_path / "models", LAYOUT)
    digest = folder.write(BASE, velocity=MEAN)
    assert digest == model_digest(BASE)
    assert np.array_equal(folder.read(digest.hex()), BASE)
    assert np.array_equal(folder.read_velocity(digest.hex()), MEAN)
    with folder.path_of(digest.hex()).open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(ModelError, match="damaged"):
        folder.read(digest.hex())
    folder.path_of(digest.hex()).write_bytes(b"1234")
    with pytest.raises(ModelError, match="holds 1 values, the plan needs 28"):
        folder.read(digest.hex())


def test_what_is_sent_of_a_model_follows_its_file(tmp_path):
    folder = ModelFolder(tmp_path, LAYOUT)
    path = folder.path_of(folder.write(BASE).hex())
    whole = path.read_bytes()
    path.write_bytes(whole[:16])
    assert b"".join(piece.data for piece in pieces(path, 16)) == whole[:16]
    path.write_bytes(whole)  # an operator puts the copy back
    assert b"".join(piece.data for piece in pieces(path, 16)) == whole
    path.unlink()
    with pytest.raises(FileNotFoundError):
        next(pieces(path, 16))


def test_what_a_crash_left_half_written_is_removed(tmp_path):
    folder = ModelFolder(tmp_path, LAYOUT)
    digest = folder.write(BASE)
    (tmp_path / "ab.f32.part").write_bytes(b"half")
    assert np.array_equal(ModelFolder(tmp_path, LAYOUT).read(digest.hex()), BASE)
    assert list(tmp_path.glob("*.part")) == []


def test_the_latest_model_is_exported_with_its_layout(tmp_path):
    ModelFolder(tmp_path, LAYOUT).export(BASE, 7)
    model = read_start(tmp_path / "latest.safetensors")
    assert model.layout == LAYOUT
    assert np.array_equal(model.vector, BASE)
    assert model.provenance == {"round": "7", "digest": model_digest(BASE).hex()}


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, ("", "")), (b"no model", ("", "")), ({}, ("", "")), ({"round": "12", "digest": "ab"}, ("12", "ab"))],
)
def test_what_is_shown_to_people_is_read_from_the_file(tmp_path, content, named):
    path = tmp_path / "latest.safetensors"
    if isinstance(content, dict):
        path.write_bytes(encode_model(Model(LAYOUT, BASE, content)))
    elif content is not None:
        path.write_bytes(content)
    assert ModelFolder(tmp_path, LAYOUT).shown() == named


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, call):
    folder = ModelFolder(tmp_path, LAYOUT)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"write": "coordinator.models.sync", "replace": "pathlib.Path.replace"}[call]
    for attempt in (lambda: folder.write(BASE, MEAN), lambda: folder.write_mean(MEAN), lambda: folder.export(BASE, 1)):
        with monkeypatch.context() as patched:
            patched.setattr(target, full)
            with pytest.raises(ModelError, match="No space left"):
                attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_cannot_be_used_is_named(tmp_path):
    tensors = {name: part.copy() for name, part in LAYOUT.split(BASE).items()}
    path = tmp_path / "start.safetensors"
    with pytest.raises(ModelError, match="there is no model file"):
        read_start(path)
    save_file(tensors, path)
    with pytest.raises(ModelError, match="not a model file"):
        read_start(path)
    path.write_bytes(b"zip")
    with pytest.raises(ModelError, match="not a model file"):
        read_start(path)
    tensors["conv.bias"][0] = np.nan
    save_file(tensors, path, {"layout": LAYOUT.to_json()})
    with pytest.raises(ModelError, match="not finite"):
        read_start(path)


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5), min_size=1, max_size=4), st.data())
def test_the_sum_of_spooled_uploads_is_the_sum_of_their_words(tmp_path_factory, uploads, data):
    spool = Spool(tmp_path_factory.mktemp("spool") / "spool")
    parties = tuple(uri(number) for number in range(len(uploads)))
    for party, words in zip(parties, uploads, strict=True):
        content = np.array(words, dtype="<u8").tobytes()
        cut = data.draw(st.integers(0, len(content)))  # chunks on the wire need not end at word borders
        with spool.begin(b"session", party, len(content)) as spooled:
            spooled.write(content[:cut])
            spooled.write(content[cut:])
            assert spooled.digest() == hashlib.sha256(content).digest()
            spooled.sync()
            spooled.accept()
    total = np.zeros(5, np.uint64)
    threads, read_bytes = data.draw(st.integers(1, 4)), 8 * data.draw(st.integers(1, 6))
    with mock.patch("coordinator.spool.READ_BYTES", read_bytes):
        spool.add_all(b"session", parties, lambda piece, at: add_upload(total, piece, at), threads)
    assert [int(word) for word in total] == [sum(column) % 2**64 for column in zip(*uploads, strict=True)]
    spool.clear(b"session")
    assert spool.held() == []


@pytest.mark.parametrize("taken_up", [False, True], ids=["by the same run", "by one that takes its plan up"])
def test_a_newer_try_of_an_upload_has_its_file_to_itself(tmp_path, taken_up):
    """An older stream may still write in another thread, or end with an error that deletes what it sent."""
    spool, content = Spool(tmp_path / "spool"), bytes(range(40))
    older = spool.begin(b"session", uri(0), 40)
    spool = Spool(tmp_path / "spool") if taken_up else spool
    older.write(bytes(16))
    with spool.begin(b"session", uri(0), 40) as newer:
        newer.write(content[:24])
        with pytest.raises(UploadBroken, match="begun anew"):
            older.write(bytes(8))
        with pytest.raises(UploadBroken, match="begun anew"):
            older.sync()
        with pytest.raises(UploadError, match="too long"), older:
            raise UploadError("too long")
        newer.write(content[24:])
        newer.sync()
        newer.accept()
    assert spool.digest_of(b"session", uri(0)) == hashlib.sha256(content).digest()


def test_a_newer_try_waits_for_words_that_are_being_written(tmp_path, monkeypatch):
    spool, content = Spool(tmp_path / "spool"), bytes(range(40))
    older = spool.begin(b"session", uri(0), 40)
    writing, go_on = threading.Event(), threading.Event()

    def slow(words, really=older._hash.update):
        writing.set()
        assert go_on.wait(10)
        really(words)

    monkeypatch.setattr(older, "_hash", SimpleNamespace(update=slow))
    with ThreadPoolExecutor(2) as threads:
        written = threads.submit(older.write, bytes(40))
        assert writing.wait(10)
        begun = threads.submit(spool.begin, b"session", uri(0), 40)
        assert not wait([begun], timeout=0.05).done
        go_on.set()
        written.result()
        with begun.result() as newer:
            newer.write(content)
            newer.accept()
    assert spool.digest_of(b"session", uri(0)) == hashlib.sha256(content).digest()


def test_a_slow_disk_keeps_nobody_waiting_who_ends_an_upload_or_begins_it_anew(tmp_path, monkeypatch):
    """Both happen in the thread that answers everybody's calls."""
    spool, syncing, go_on = Spool(tmp_path / "spool"), threading.Event(), threading.Event()

    def slow(_):
        syncing.set()
        assert go_on.wait(10)

    monkeypatch.setattr(os, "fsync", slow)
    with ThreadPoolExecutor(1) as threads:
        with spool.begin(b"session", uri(0), 8) as older:
            older.write(bytes(8))
            synced = threads.submit(older.sync)
            assert syncing.wait(10)
            spool.begin(b"session", uri(0), 8)
        assert not synced.done()
        go_on.set()


def test_more_threads_open_no_more_files(tmp_path):
    spool, parties = Spool(tmp_path / "spool"), tuple(uri(number) for number in range(5))
    for party in parties:
        with spool.begin(b"session", party, 64) as spooled:
            spooled.write(bytes(64))
            spooled.accept()
    before, seen = len(os.listdir("/proc/self/fd")), []
    with mock.patch("coordinator.spool.READ_BYTES", 8), mock.patch("coordinator.spool.FILES_AT_ONCE", 2):
        spool.add_all(b"session", parties, lambda *_: seen.append(len(os.listdir("/proc/self/fd"))), 8)
    assert len(seen) == 5 * 8
    assert max(seen) <= before + 2 + 8  # 8: each look of a thread opens one


def send(spool, content, offset, *, total=40, broken=False):
    """The words of `content` from `offset` on, as a stream that ends well or breaks."""
    with spool.begin(b"session", uri(0), total, offset) as spooled:
        for _ in spooled.rehash():
            pass
        spooled.write(content[offset:])
        if broken:
            raise UploadBroken
        assert spooled.digest() == hashlib.sha256(content).digest()
        spooled.accept()


def test_an_upload_that_is_not_accepted_leaves_nothing(tmp_path):
    spool = Spool(tmp_path / "spool")
    with spool.begin(b"session", uri(0), 16) as spooled:
        spooled.write(bytes(8))
        with pytest.raises(UploadError, match="8 bytes too short"):
            spooled.digest()
        spooled.write(bytes(8))
    with pytest.raises(UploadError, match="longer than"):
        send(spool, bytes(16) + b"x", 16, total=16)
    assert spool.held() == []
    with pytest.raises(SpoolError):
        spool.add_all(b"session", (uri(0),), lambda piece, at: None)


def test_a_new_spool_keeps_what_belongs_to_the_session_that_goes_on(tmp_path):
    for session in (b"old", b"open"):
        with Spool(tmp_path / "spool").begin(session, uri(0), 1) as spooled:
            spooled.write(b"w")
            spooled.accept()
    spool = Spool(tmp_path / "spool")
    spool.keep_only(b"open")
    assert spool.digest_of(b"old", uri(0)) is None
    assert spool.digest_of(b"open", uri(0)) == hashlib.sha256(b"w").digest()
    spool.keep_only(None)
    assert spool.held() == []


@given(st.lists(st.integers(0, 40), max_size=6), st.binary(min_size=40, max_size=40))
def test_an_upload_that_breaks_goes_on_anywhere_before_its_end(tmp_path_factory, breaks, content):
    """Whatever was sent before, the file and its digest are those of the bytes sent last."""
    folder = tmp_path_factory.mktemp("spool")
    for stop in breaks:
        spool = Spool(folder)  # also after a restart
        offset = min(stop, spool.received_bytes(b"session", uri(0)))
        with suppress(UploadBroken):
            send(spool, content[: max(offset, stop)], offset, broken=True)
    spool = Spool(folder)
    offset = spool.received_bytes(b"session", uri(0))
    with pytest.raises(UploadBroken):
        spool.begin(b"session", uri(0), 40, offset + 1)
    send(spool, content, offset)
    assert spool.digest_of(b"session", uri(0)) == hashlib.sha256(content).digest()
    assert len(spool.held()) == 1


def test_spooled_words_are_readable_by_their_owner_only(tmp_path):
    with Spool(tmp_path / "spool").begin(b"s", uri(0), 1) as spooled:
        spooled.write(b"w")
        spooled.accept()
    for path in (tmp_path / "spool").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_mailbox_keeps_results_until_read_and_a_task_until_replaced():
    box = Mailbox(first_id(2))
    train, result = orders.Train(1, START), orders.RoundResult(1, b"", (), b"", b"", opened=True)
    first = box.put(train)
    noted = box.put(result)
    later = box.put(orders.Train(2, START))
    assert first_id(2) < first < noted < later < first_id(3)
    assert box.after(0) == (noted, result)
    assert box.after(noted) == (later, orders.Train(2, START))
    assert box.after(later) is None
    assert box.after(0) == (later, orders.Train(2, START))  # a restarted node is told its task again, old results not


def test_evaluations_queue_up_in_order():
    box = Mailbox(0)
    for number in range(3):
        box.put(orders.Evaluate(number, START))
    box.put(orders.Finished("done"))
    seen, done = [], 0
    while (item := box.after(done)) is not None:
        done, order = item
        seen.append(order)
    assert seen == [orders.Evaluate(0, START), orders.Evaluate(1, START), orders.Evaluate(2, START), orders.Finished("done")]


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 2**20 - 1, 2**20, 2**21])
def test_the_size_of_a_chunk_is_that_of_its_bytes_on_the_connection(length):
    words = bytes(length)
    trailer = pb.UploadTrailer(digest=bytes(32), signature=bytes(64))
    for message in (pb.Chunk(data=words), pb.UploadChunk(words=words), pb.UploadChunk(trailer=trailer), pb.UploadChunk()):
        payload = len(message.SerializeToString()) + 5
        assert framed_bytes(message) == payload + 31 * -(-payload // 16_384)


def test_the_meter_counts_framed_bytes_and_can_take_them_back():
    meter, lane, message = Meter(), Lane(1, uri(0), "up", "mask"), pb.Chunk(data=bytes(100_000))
    assert meter.add(lane, message) == framed_bytes(message) > 100_000
    meter.add(lane, message)
    counts = meter.drain()
    assert counts == {lane: 2 * framed_bytes(message)}
    assert meter.drain() == {}
    meter.give_back(counts)
    assert meter.drain() == counts


GOOD = """
listen = "127.0.0.1:0"
identity = "identity"
allow = "peers.toml"
plan = "plan.toml"
start = "start.safetensors"
state = "state"
"""


def test_paths_of_the_configuration_start_at_its_own_folder(tmp_path):
    path = tmp_path / "coordinator.toml"
    path.write_text(GOOD)
    config = load_config(path)
    assert config.state == tmp_path / "state"
    assert config.database == f"sqlite:///{tmp_path}/state/store.db"
    assert config.drill_pause_s == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + "epsilon = 8\n", "unknown key 'epsilon': remove it or correct its spelling"),
        (GOOD.replace('plan = "plan.toml"\n', ""), "key 'plan' is missing"),
        (GOOD.replace("127.0.0.1:0", "127.0.0.1"), "not of the form host:port"),
        (GOOD.replace("127.0.0.1:0", "127.0.0.1:99999"), "not of the form host:port"),
        (GOOD + "drill_pause_s = -1\n", "'drill_pause_s'"),
        ("listen = ", "not valid TOML"),
    ],
)
def test_a_configuration_that_cannot_be_used_gets_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "coordinator.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "none.toml")
