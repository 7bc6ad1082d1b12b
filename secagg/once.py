"""A question that is answered once.

Every secret of a session may serve one message only: two survivor lists signed, two vectors under one mask or two
polynomials for one secret each undo the protocol. A state therefore carries one `Once`. The same question again gets
the identical answer (a lost response must not lose the round); another one is refused. It refuses to be copied or
stored, and with it the state: a restarted node has nothing to reveal.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, NoReturn, TypeVar

from secagg.errors import UNKNOWN, LocalError, RemoteError, SecaggError

SECOND_QUESTION = RemoteError(UNKNOWN, "second-question", "a phase that was answered is asked again with other content")

A = TypeVar("A")


class Once(Generic[A]):
    """Answers the first question and remembers it; a failed attempt to answer leaves it unused."""

    __slots__ = ("_answered", "_lock")

    def __init__(self) -> None:
        self._answered: tuple[object, A] | None = None
        self._lock = Lock()

    def answer(self, question: object, make: Callable[[], A], refusal: SecaggError = SECOND_QUESTION) -> A:
        """The answer to `question`; raises `refusal` if another question was answered before."""
        with self._lock:
            if self._answered is None:
                self._answered = (question, make())
            asked, answer = self._answered
        if asked != question:
            raise refusal
        return answer

    def __reduce__(self) -> NoReturn:
        raise LocalError("the state of a masking session lives in memory only and cannot be copied or stored")
