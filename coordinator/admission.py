"""Who may call: the list of confirmed keys, read again where its file changed, and the keys that followed them by renewal.

Rules: (1) membership is a key's hash, never a signature of a CA; (2) a party taken from the list is refused at its next call;
(3) the key before the present one is admitted until its owner has come with the present one, so that no session is cut by a
renewal; (4) a list that cannot be read changes nothing: the last good one holds, and the log says so.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from certs.party import CertificateError, Party
from certs.peers import AllowList, load_peers
from certs.succession import Succession, append_succession, chain_from, load_successions, present_keys

log = structlog.get_logger()


class Admission:
    """One owner, one thread."""

    def __init__(self, confirmed: AllowList, listed_in: Path, statements: Path) -> None:
        self._confirmed = confirmed
        self._path = listed_in
        self._stamp = _stamp(listed_in)
        self._kept = statements
        self._statements = load_successions(statements)
        self._keys = dict(present_keys(confirmed, self._statements))
        self._moved: set[str] = set()  # parties that came with their present key

    def check(self, party: Party) -> None:
        """Return if this party may call with this key; CertificateError otherwise."""
        if self._keys.get(party.uri) == party.fingerprint:
            self._moved.add(party.uri)
        if self.holds(party.uri, party.fingerprint):
            return
        self._confirmed.check(party)
        raise CertificateError(f"{party.uri} comes with a key that was replaced: restart it with the key in its folder")

    def holds(self, uri: str, key_sha256: bytes) -> bool:
        """Whether a party may use this key now."""
        if self._keys.get(uri) == key_sha256:
            return True
        chain = self.chain(uri)
        return bool(chain) and chain[-1].old_sha256 == key_sha256 and uri not in self._moved  # (3)

    def chain(self, uri: str) -> tuple[Succession, ...]:
        """How the present key of a party follows from the confirmed one; nothing where it never changed."""
        peer = next((one for one in self._confirmed.peers if one.uri == uri), None)
        return () if peer is None else chain_from(peer, self._statements)

    def is_present(self, party: Party) -> bool:
        """Whether the party holds its present key, not the one before."""
        return self._keys.get(party.uri) == party.fingerprint

    def follow(self, statement: Succession) -> None:
        """Take up a new key: on disk first. Raises CertificateError."""
        append_succession(self._kept, statement)
        self._statements = load_successions(self._kept)
        self._keys = dict(present_keys(self._confirmed, self._statements))
        self._moved.discard(statement.uri)

    def refresh(self) -> frozenset[str]:
        """Read the list again where it changed: the parties that it names no more, or with another key."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return frozenset()
        self._stamp = stamp
        try:
            confirmed = load_peers(self._path)
        except CertificateError as error:  # (4)
            log.warning("the list of admitted keys cannot be read; the last one holds", reason=str(error))
            return frozenset()
        before, self._confirmed = self._keys, confirmed
        self._keys = dict(present_keys(confirmed, self._statements))
        changed = frozenset(uri for uri, key in before.items() if self._keys.get(uri) != key)
        self._moved -= changed
        log.info("the list of admitted keys was read again", parties=len(self._keys), removed=len(changed))
        return changed


def _stamp(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_ino
