"""The local control socket: a Unix socket in a state folder, for the user who runs the process and nobody else. No TCP.

The file has mode 0600, and every connection's user is asked of the kernel (SO_PEERCRED) besides. One request a connection.
A slow, long or silent caller costs one thread for a few seconds and nothing else.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from proto.control import MAX_REQUEST_BYTES, Answer, ControlError, Request

SOCKET_FILE: Final = "control.sock"
OWNER_ONLY: Final = 0o600
WAITING_CALLERS: Final = 8
CALLER_LIMIT_S: Final = 5.0  # for a request to arrive and an answer to be taken
ANSWER_LIMIT_S: Final = 60.0  # for the process to decide: the accountant may run
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid, as Linux gives them

Handle = Callable[[bytes], Answer]


@contextmanager
def listening(folder: Path, handle: Handle) -> Iterator[None]:
    """Answer requests in threads while the block runs. The caller holds the folder, so that an old file here is nobody's.

    Raises ControlError where the socket cannot be made.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(folder) as address:
            (folder / SOCKET_FILE).unlink(missing_ok=True)
            server.bind(address)
        (folder / SOCKET_FILE).chmod(OWNER_ONLY)  # nobody can connect before `listen`
        server.listen(WAITING_CALLERS)
    except OSError as error:
        server.close()
        raise ControlError(f"cannot make the control socket {folder / SOCKET_FILE}: {error.strerror}") from error
    threading.Thread(target=_accept, args=(server, handle), name="control", daemon=True).start()
    try:
        yield
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # ends `accept`
        server.close()
        (folder / SOCKET_FILE).unlink(missing_ok=True)


def ask(folder: Path, request: Request, whom: str) -> Answer:
    """The answer of the process that works on `folder`; `whom` names it in sentences. Raises ControlError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(ANSWER_LIMIT_S)
        try:
            with _address(folder) as address:
                caller.connect(address)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise ControlError(f"{whom} does not run: start it, and ask again; nothing was changed") from error
        except PermissionError as error:
            raise ControlError(f"{whom} belongs to another user of this machine: ask as the user who runs it") from error
        except OSError as error:
            raise ControlError(f"cannot reach {whom}: {error.strerror}") from error
        try:
            caller.sendall(request.model_dump_json().encode())
            caller.shutdown(socket.SHUT_WR)
            return Answer.model_validate_json(_read(caller))
        except (OSError, ValidationError) as error:
            raise ControlError(f"{whom} gave no answer: look at its audit log and its own log before asking again") from error


def runs(folder: Path) -> bool:
    """Whether somebody listens. Asks nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller, suppress(OSError):
        caller.settimeout(CALLER_LIMIT_S)
        with _address(folder) as address:
            caller.connect(address)
            return True
    return False


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """A name of the socket that fits into an address: 107 bytes are few for a path."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_FILE}"
    finally:
        os.close(descriptor)


def _accept(server: socket.socket, handle: Handle) -> None:
    while True:
        try:
            caller, _ = server.accept()
        except OSError:  # closed: the process ends
            return
        threading.Thread(target=_serve, args=(caller, handle), name="control call", daemon=True).start()


def _serve(caller: socket.socket, handle: Handle) -> None:
    with caller, suppress(OSError):
        caller.settimeout(CALLER_LIMIT_S)
        answer = _answer(caller, handle)
        if answer is not None:
            caller.sendall(answer.model_dump_json().encode())


def _answer(caller: socket.socket, handle: Handle) -> Answer | None:
    """None where nothing was asked. What others send is read and thrown away, so that they hear why."""
    try:
        data = _read(caller)
    except TimeoutError:
        return Answer(done=False, sentence="the request did not arrive whole")
    if user_of(caller) != os.getuid():
        return Answer(done=False, sentence="only the user who runs this process may ask it anything")
    if len(data) > MAX_REQUEST_BYTES:
        return Answer(done=False, sentence=f"a request has at most {MAX_REQUEST_BYTES} bytes")
    return handle(data) if data else None


def user_of(caller: socket.socket) -> int:
    """The user behind a connection, as the kernel knows it."""
    size = CREDENTIALS.size
    _, user, _ = CREDENTIALS.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


def _read(stream: socket.socket) -> bytes:
    """Everything until the other side has ended, or a little more than a request may have."""
    data = b""
    while len(data) <= MAX_REQUEST_BYTES and (piece := stream.recv(MAX_REQUEST_BYTES)):
        data += piece
    return data
