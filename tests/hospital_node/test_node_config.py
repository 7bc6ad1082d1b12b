"""Configuration and state folder: every mistake is one sentence with a remedy, and a power cut leaves no half file."""

from __future__ import annotations

import io
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import ME, NAMES, make_plan, uri

from hospital_node import ledger_stamp, logs, state
from hospital_node.config import ConfigError, NodePolicy, load_config
from hospital_node.state import SESSION_BYTES, StateError, StateFolder
from hospital_node.study import policy_obstacle
from proto.plan import PlanError

GOOD = 'coordinator = "c.example.org:8443"\nidentity = "id"\nstate = "st"\ndata = "data"\npeers = "peers.toml"\n'
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def written(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file_and_not_to_where_one_stands(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD))
    assert (config.identity, config.state, config.peers) == (tmp_path / "id", tmp_path / "st", tmp_path / "peers.toml")
    assert (config.threads, config.policy.minimum_cohort, config.policy.max_colluders, config.cap) == (1, 3, 1, None)


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / "elsewhere"
    assert load_config(written(tmp_path, GOOD.replace('"data"', f'"{elsewhere}"'))).data == elsewhere


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "threds = 2\n", "unknown key 'threds': remove it or correct its spelling"),
        (GOOD + "[policy]\nminimum = 4\n", "unknown key 'policy.minimum'"),
        (GOOD.replace("identity", "identify"), "key 'identity' is missing"),
        (GOOD.replace("c.example.org:8443", "c.example.org"), "not of the form host:port"),
        (GOOD.replace(":8443", ":99999"), "not of the form host:port"),
        (GOOD + "threads = 0\n", "'threads'"),
        (GOOD + "[policy]\nminimum_cohort = 2\n", "'policy.minimum_cohort'"),
        (GOOD + "[policy]\nmax_colluders = -1\n", "'policy.max_colluders'"),
        (GOOD + "[cap]\nepsilon = 0\n", "'cap.epsilon'"),
        (GOOD + "[cap]\nepsilon = inf\n", "'cap.epsilon'"),
        ("coordinator = ", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load_config(tmp_path / "nowhere.toml")


def test_missing_folders_and_peers_are_said(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD.replace('peers = "peers.toml"\n', "")))
    with pytest.raises(ConfigError, match="'identity' does not exist"):
        config.require_folders()
    (tmp_path / "id").mkdir()
    with pytest.raises(ConfigError, match="'data' does not exist"):
        config.require_folders()
    with pytest.raises(ConfigError, match="'peers'"):
        config.require_peers()


# ---- state folder ----


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    made.create()
    return made


def test_the_state_folder_is_closed_to_other_users(folder: StateFolder) -> None:
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_only_one_process_holds_the_folder(folder: StateFolder) -> None:
    with folder.locked(), pytest.raises(StateError, match="stop it first"), StateFolder(folder.path).locked():
        pass
    with folder.locked():
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot make the state folder"):
        StateFolder(tmp_path / "file" / "state").create()


def test_the_plan_comes_back_as_it_was_and_an_edited_one_is_refused(folder: StateFolder) -> None:
    assert folder.read_plan() is None
    folder.write_plan(make_plan())
    assert folder.read_plan() == make_plan()
    folder.plan.write_bytes(folder.plan.read_bytes() + b" ")
    with pytest.raises(PlanError, match="delete it and start the node again"):
        folder.read_plan()


@settings(max_examples=30)
@given(st.lists(st.binary(min_size=SESSION_BYTES, max_size=SESSION_BYTES), max_size=8), st.integers(0, 33))
def test_a_torn_last_line_loses_no_session_that_was_answered(
    tmp_path_factory: pytest.TempPathFactory, ids: list[bytes], cut: int
) -> None:
    folder = StateFolder(tmp_path_factory.mktemp("state"))
    for one in ids:
        folder.remember_session(one)
    whole = folder.sessions.read_bytes() if ids else b""
    folder.sessions.write_bytes(whole + b"ab" * SESSION_BYTES + b"\n")
    os.truncate(folder.sessions, len(whole) + cut)  # a power cut in the middle of the next line
    expected = set(ids) | ({b"\xab" * SESSION_BYTES} if cut >= 32 else set())
    assert folder.seen_sessions() == expected
    assert all(map(folder.has_answered, expected))
    assert folder.has_answered(b"\x02" * 16) == (not expected or b"\x02" * 16 in expected)  # where none is known, any may be
    folder.remember_session(b"\x01" * SESSION_BYTES)
    assert folder.seen_sessions() == expected | {b"\x01" * SESSION_BYTES}


def test_a_long_list_of_sessions_is_not_read_for_every_question(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [bytes([number]) * SESSION_BYTES for number in range(20)]
    for one in ids:
        folder.remember_session(one)
    read: list[int] = []
    each = StateFolder._each_session
    monkeypatch.setattr(StateFolder, "_each_session", lambda self: read.append(1) or each(self))
    while ledger_stamp.stamp_of(folder.sessions) is None:  # a file that was written just now is read each time
        time.sleep(0.01)
    assert [folder.has_answered(one) for one in ids] == [True] * 20
    assert not folder.has_answered(b"\xff" * SESSION_BYTES)
    assert len(read) == 1
    folder.remember_session(b"\xff" * SESSION_BYTES)
    assert folder.has_answered(b"\xff" * SESSION_BYTES)


def test_a_session_is_synced_before_remember_returns(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def watching(descriptor: int) -> None:
        synced.append(os.pread(descriptor, 100, 0) if os.path.isfile(f"/proc/self/fd/{descriptor}") else b"folder")
        real(descriptor)

    monkeypatch.setattr(state.os, "fsync", watching)
    folder.remember_session(b"\x0a" * SESSION_BYTES)
    assert synced[0] == b"0a" * SESSION_BYTES + b"\n"
    assert "folder" in str(synced)


@pytest.mark.parametrize("content", [b"zz" * SESSION_BYTES + b"\n", b"\xff" * 40 + b"\n"])
def test_a_damaged_list_of_sessions_stops_the_node(folder: StateFolder, content: bytes) -> None:
    folder.sessions.write_bytes(content)
    for ask in (folder.seen_sessions, lambda: folder.has_answered(bytes(SESSION_BYTES))):
        with pytest.raises(StateError, match="is damaged"):
            ask()


def test_the_ledger_of_another_hospital_is_refused(folder: StateFolder) -> None:
    folder.open_ledger(ME, NOW)
    assert folder.open_ledger(ME, NOW).hospital == "h0"
    with pytest.raises(StateError, match="belongs to h0"):
        folder.open_ledger(uri("h1"), NOW)


# ---- model files ----


# ---- policy and log ----

PINNED = {uri(name): bytes(32) for name in NAMES}


def test_policy_of_a_plan_that_fits_is_no_obstacle() -> None:
    assert policy_obstacle(make_plan(), ME, NodePolicy(), PINNED) is None


@pytest.mark.parametrize(
    ("policy", "pinned", "says"),
    [
        (NodePolicy(minimum_cohort=5), PINNED, "at most 4 hospitals can take part and this node demands 5"),
        (NodePolicy(max_colluders=2), PINNED, "withstands the 2 colluders"),
        (NodePolicy(), {uri("h1"): bytes(32)}, "2 of 4 hospitals are not on this node's list"),
    ],
)
def test_policy_that_no_session_can_meet_is_said_before_training(
    policy: NodePolicy, pinned: dict[str, bytes], says: str
) -> None:
    assert says in (policy_obstacle(make_plan(), ME, policy, pinned) or "")


def test_a_field_that_is_not_allowed_never_reaches_the_log() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    logs.logger().info("training begins", round=3, loss=0.123, patient="P-0042", file="scan.mhd")
    assert "round=3" in stream.getvalue()
    assert not any(word in stream.getvalue() for word in ("0.123", "P-0042", "scan.mhd"))
