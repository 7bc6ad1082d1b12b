"""Who is signed in: a table in this process's memory, so that signing out ends a session everywhere and at once.

A browser holds a random number and nothing else; the table holds its digest, so that a dump of memory opens no session. Times
are seconds since 1970 and given by the caller. Rules: (1) a session ends at a fixed moment, whatever is done in it; (2) what a
browser brings back from the provider counts once, for the browser that began it, within ten minutes; (3) a new sign-in has
a new number.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass, replace
from typing import Final

from ui.roles import Role

RANDOM_BYTES: Final = 32
BEGUN_FOR_S: Final = 600.0  # to type a password and a second factor
MOST_BEGUN: Final = 50_000  # the oldest goes: starting many costs nobody who is already signed in anything
MOST_SESSIONS: Final = 5000
MOST_OF_ONE: Final = 20  # sessions of one account: whoever signs in without end ends their own first
LONGEST_PLACE: Final = 2000  # characters of a page to go to, which strangers choose
HEADER: Final = "x-secagg-session"  # a session's key on its way from the gate to the page, where Streamlit keeps it as
USER_KEY: Final = "session"
CLOSING_S: Final = 75.0  # in which an open page learns that its session is over; a hidden window looks once a minute


class SignInRefused(ValueError):
    """A sign-in that does not count. `code` for logs; the text for the person, in one sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class Person:
    """Whom the provider named."""

    issuer: str
    subject: str
    name: str
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in of one browser. `key` names it on the server and opens nothing."""

    key: str
    person: Person
    proved_at_s: float  # when the provider last saw a password or its like
    ends_s: float


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in on its way: what the provider and the browser will have to bring back."""

    browser: str
    state: str
    nonce: str
    verifier: str
    then: str  # a page of this app
    fresh: bool  # the person was asked to prove themselves anew
    at_s: float


class Sessions:
    """The table. Safe for threads: pages run in theirs, the server in its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: dict[str, Begun] = {}
        self._open: dict[str, Session] = {}

    def begin(self, then: str, now_s: float, *, fresh: bool = False) -> Begun:
        """A new sign-in for one browser, which then goes to `then`."""
        browser, state, nonce, verifier = (secrets.token_urlsafe(RANDOM_BYTES) for _ in range(4))
        begun = Begun(browser, state, nonce, verifier, local_path(then), fresh=fresh, at_s=now_s)
        with self._lock:
            while self._begun:  # in the order in which they were begun: only the first ones are looked at
                first = next(iter(self._begun.values()))
                if now_s - first.at_s <= BEGUN_FOR_S and len(self._begun) < MOST_BEGUN:
                    break
                del self._begun[first.state]
            self._begun[begun.state] = begun
        return begun

    def take(self, state: str, browser: str, now_s: float) -> Begun:
        """The sign-in that comes back, once. Raises SignInRefused."""
        with self._lock:
            begun = self._begun.get(state)
            if begun is not None and hmac.compare_digest(begun.browser.encode(), browser.encode()):
                del self._begun[state]
            elif begun is not None:
                raise SignInRefused("other-browser", "This sign-in was begun in another browser: begin it anew here.")
        if begun is None or now_s - begun.at_s > BEGUN_FOR_S:
            raise SignInRefused("unknown-state", "This sign-in was used already or took too long: begin it anew.")
        return begun

    def open(self, person: Person, proved_at_s: float, ends_s: float, now_s: float) -> str:
        """A session; what the browser has to show for it."""
        shown = secrets.token_urlsafe(RANDOM_BYTES)
        with self._lock:
            for key in [one.key for one in self._open.values() if now_s >= one.ends_s + CLOSING_S]:
                del self._open[key]
            account = (person.issuer, person.subject)
            own = [one.key for one in self._open.values() if (one.person.issuer, one.person.subject) == account]
            for key in own[: max(0, len(own) - MOST_OF_ONE + 1)]:
                del self._open[key]
            while len(self._open) >= MOST_SESSIONS:
                del self._open[next(iter(self._open))]
            self._open[key_of(shown)] = Session(key_of(shown), person, proved_at_s, ends_s)
        return shown

    def find(self, key: str, now_s: float) -> Session | None:
        """The session of this name, as long as it lasts."""
        session = self._open.get(key)
        return None if session is None or now_s >= session.ends_s else session

    def is_connected(self, key: str, now_s: float) -> bool:
        """Whether an open page of this session may still be told anything."""
        session = self._open.get(key)
        return session is not None and now_s < session.ends_s + CLOSING_S

    def end(self, key: str, now_s: float) -> None:
        """Sign out, in every window at once."""
        with self._lock:
            session = self._open.get(key)
            if session is not None and now_s < session.ends_s:
                self._open[key] = replace(session, ends_s=now_s)


def key_of(shown: str) -> str:
    """The name of a session from what a browser shows."""
    return hashlib.sha256(shown.encode()).hexdigest()


def local_path(wanted: str) -> str:
    """`wanted` where it is a page of this app; the first page otherwise, so that no link leads elsewhere after signing in."""
    plain = len(wanted) <= LONGEST_PLACE and wanted.isascii() and wanted.isprintable() and "\\" not in wanted
    return wanted if plain and wanted.startswith("/") and not wanted.startswith(("//", "/signin", "/signout")) else "/"


OPEN: Final = Sessions()  # of this process: the server fills it, pages ask it
