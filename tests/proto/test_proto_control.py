"""The control socket: the same user only, one request and one answer, and clear words where there is none."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from proto import control_socket
from proto.control import Answer, Approve, ControlError, Pause, coordinator_request, decision, node_request
from proto.control_socket import SOCKET_FILE, ask, listening, runs

PAUSE = Pause(by="Dr K. Weber", reason="a question")


def echo(data: bytes) -> Answer:
    return Answer(done=True, sentence=node_request(data).by)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder whose socket would not fit into an address by its path."""
    folder = tmp_path / ("a-long-name-" * 10)
    folder.mkdir()
    return folder


def test_a_request_is_answered_and_the_socket_is_the_owners_alone(deep: Path) -> None:
    assert not runs(deep)
    with listening(deep, echo):
        assert (deep / SOCKET_FILE).stat().st_mode & 0o777 == 0o600
        assert runs(deep)
        assert ask(deep, PAUSE, "the node") == Answer(done=True, sentence="Dr K. Weber")
        assert ask(deep, PAUSE, "the node").done
    assert not (deep / SOCKET_FILE).exists()
    assert not runs(deep)


def test_a_process_that_does_not_run_is_said_in_words(deep: Path) -> None:
    with pytest.raises(ControlError, match="the node does not run: start it"):
        ask(deep, PAUSE, "the node")
    with pytest.raises(ControlError, match="the node does not run"):
        ask(deep / "nowhere", PAUSE, "the node")


def test_a_socket_that_a_killed_process_left_behind_is_nobodys(deep: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left, control_socket._address(deep) as address:
        left.bind(address)
    with pytest.raises(ControlError, match="does not run"):
        ask(deep, PAUSE, "the node")
    with listening(deep, echo):
        assert ask(deep, PAUSE, "the node").done


def test_another_user_is_refused_by_the_kernels_word(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(control_socket, "user_of", lambda _: os.getuid() + 1)
    with listening(deep, lambda data: asked.append(data) or Answer(done=True, sentence="")):
        assert ask(deep, PAUSE, "the node") == Answer(
            done=False, sentence="only the user who runs this process may ask it anything"
        )
    assert asked == []


def test_the_kernel_names_the_user() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert control_socket.user_of(one) == os.getuid()


def test_a_socket_of_another_user_is_said_in_words(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: str) -> None:
        del self, address
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ControlError, match="belongs to another user"):
        ask(deep, PAUSE, "the node")


def test_a_silent_caller_holds_up_nobody(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "CALLER_LIMIT_S", 0.2)
    with listening(deep, echo), socket.socket(socket.AF_UNIX) as silent, control_socket._address(deep) as address:
        silent.connect(address)
        assert ask(deep, PAUSE, "the node").done
        assert b"did not arrive whole" in silent.recv(1000)


def test_too_long_a_request_is_refused(deep: Path) -> None:
    with listening(deep, echo), socket.socket(socket.AF_UNIX) as caller, control_socket._address(deep) as address:
        caller.connect(address)
        caller.sendall(b"{" * (control_socket.MAX_REQUEST_BYTES + 1))
        assert b"at most" in caller.recv(1000)


def test_an_answer_that_never_comes_is_said(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "ANSWER_LIMIT_S", 0.2)
    let_go = threading.Event()
    with listening(deep, lambda _: Answer(done=let_go.wait(120), sentence="late")):
        with pytest.raises(ControlError, match="gave no answer"):
            ask(deep, PAUSE, "the node")
        let_go.set()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "the request"),
        (b"[]", "the request"),
        (b'{"action": "delete"}', "delete"),
        (b'{"action": "pause", "by": " ", "reason": "x"}', "is empty"),
        (b'{"action": "pause", "by": "A", "reason": "two\\nlines"}', "line break"),
        (b'{"action": "pause", "by": "A", "reason": "x", "round": 3}', "unknown key"),
        (b'{"action": "approve", "by": "A", "reason": "x", "plan": "12"}', "plan"),
        (b'{"action": "approve", "by": "A", "reason": "x"}', "plan"),
    ],
)
def test_what_is_no_request_is_one_sentence(data: bytes, word: str) -> None:
    with pytest.raises(ControlError, match=word) as refused:
        node_request(data)
    assert "\n" not in str(refused.value)


def test_each_side_knows_its_own_requests_only() -> None:
    abort = b'{"action": "abort", "round": 1, "by": "A", "reason": "x"}'
    assert coordinator_request(abort).by == "A"
    with pytest.raises(ControlError):
        node_request(abort)
    with pytest.raises(ControlError):
        coordinator_request(b'{"action": "decline", "plan": "%s", "by": "A", "reason": "x"}' % (b"ab" * 32))


def test_a_decision_made_here_is_checked_here() -> None:
    with pytest.raises(ControlError, match="epsilon"):
        decision(Approve, by="A", reason="x", plan="ab" * 32, epsilon=-1.0)
