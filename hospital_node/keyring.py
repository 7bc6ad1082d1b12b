"""The node's own key and its peers' keys while it runs: both can change without a restart and without a lost round.

(1) From day 60 on the node asks for a certificate of a new key, over the connection of the old one (`renew`).
(2) A new key, or another certificate that people installed, is taken up between sessions only: a session keeps leaf and signing
    key until it ends (`changed`, `adopt`). A session that was formed just before is still signed with the key that it names.
(3) A peer's new key is pinned only by the old key's statement (`learn`), kept on disk before it counts; or people write the
    list again, which is read anew where it changed.
(4) Whatever goes wrong is a line in the log and another try; it never ends the node while the old key works.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from certs import renewal
from certs.audit import Action, AuditError
from certs.audit_file import AuditLog
from certs.identity import Identity, key_fingerprint, load_identity, stamp_of
from certs.party import CertificateError, fingerprint_of
from certs.peers import PeerList, load_peers
from certs.succession import Succession, append_succession, load_successions, new_statements, parse_succession, present_keys
from hospital_node.link import Link, LinkRefused, OrderStale
from hospital_node.logs import logger
from hospital_node.session import Member
from hospital_node.state import StateFolder
from proto import federation_pb2 as pb
from secagg.policy import Policy

RETRY = timedelta(hours=6)
SAY_AGAIN = timedelta(days=1)
ACTOR = "secagg-node"  # in the audit log, of what people set up and nobody does by hand


class Keyring:
    """Keys of one node. One owner, one thread. Construction raises CertificateError."""

    def __init__(self, folder: Path, peers: Path | None, statements: Path, now: datetime) -> None:
        renewal.finish(folder)
        self._folder = folder
        self._peers = peers
        self._kept = statements
        self._statements = load_successions(statements)
        self._confirmed = PeerList(()) if peers is None else load_peers(peers)
        self._peers_stamp = _stamp(peers)
        self._stamp = stamp_of(folder)
        self.identity: Identity = load_identity(folder, None)
        self.pinned: Mapping[str, bytes] = present_keys(self._confirmed, self._statements)
        self._former: Identity | None = None
        self._stuck = False  # the change to the next key failed; said once, tried again at the next start
        self._try_from: datetime | None = None
        self._say_from: datetime | None = None
        self._log = logger()
        self.warn(now)

    def warn(self, now: datetime) -> None:
        """Say in the log, once a day, that the certificate ends soon."""
        warning = renewal.expiry_warning(self.identity.not_after, now)
        if warning is not None and (self._say_from is None or now >= self._say_from):
            self._say_from = now + SAY_AGAIN
            self._log.warning("certificate ends soon", reason=warning)

    def renew(self, link: Link, now: datetime) -> None:
        """Ask for the certificate of a new key where it is time (1). Raises LinkLost."""
        self.warn(now)
        due = renewal.is_due(self.identity.not_after, now) and renewal.renews_itself(self._folder)
        if not due or renewal.is_ready(self._folder) or (self._try_from is not None and now < self._try_from):
            return
        self._try_from = now + RETRY
        try:
            asked = renewal.ask(self._folder, self.identity, now)
            keep_own_statement(StateFolder(self._kept.parent).own_successions, asked.succession)
            request = pb.RenewRequest(request=asked.request_pem, succession=asked.succession.encoded())
            renewal.keep(self._folder, self.identity, link.renew(request).certificate, now)
        except (CertificateError, LinkRefused, OrderStale) as error:
            self._log.warning("certificate not renewed", reason=str(error))
        else:
            self._log.info("certificate of a new key received")

    def tend(self, link: Link, now: datetime) -> bool:
        """Renew in time and read the list of peers again; whether another key or list counts from now on."""
        self.renew(link, now)
        self.read_peers_again()
        return self.changed() and self.adopt()

    def changed(self) -> bool:
        """Whether another key or certificate than the one in use waits in the folder."""
        return (renewal.is_ready(self._folder) and not self._stuck) or stamp_of(self._folder) != self._stamp

    def adopt(self) -> bool:
        """Take up what waits in the folder (2); False where it cannot be used, which is said once."""
        try:
            renewal.finish(self._folder)
            self._stamp = stamp_of(self._folder)
            identity = load_identity(self._folder, None)
        except CertificateError as error:
            self._stuck = renewal.is_ready(self._folder)
            self._log.warning("the new certificate cannot be used; the old one stays", reason=str(error))
            return False
        if identity.uri != self.identity.uri:
            self._log.warning("the new certificate cannot be used; the old one stays", reason=f"it names {identity.uri}")
            return False
        if identity.fingerprint != self.identity.fingerprint:
            self._former = self.identity
        self.identity = identity
        self._log.info("certificate taken up", detail=f"valid until {identity.not_after:%Y-%m-%d}")
        self._record("certificate-taken-up", key=identity.fingerprint.hex(), until=f"{identity.not_after:%Y-%m-%d}")
        return True

    def read_peers_again(self) -> bool:
        """Read the list of confirmed keys where its file changed; True where pins changed. A damaged list changes nothing."""
        stamp = _stamp(self._peers)
        if self._peers is None or stamp == self._peers_stamp:
            return False
        self._peers_stamp = stamp
        try:
            self._confirmed = load_peers(self._peers)
        except CertificateError as error:
            self._log.warning("the list of peers cannot be read; the last one holds", reason=str(error))
            return False
        before = self.pinned
        self._pin()
        gone = sorted(uri for uri, key in before.items() if self.pinned.get(uri) != key)
        came = sorted(uri for uri, key in self.pinned.items() if before.get(uri) != key)
        self._record("peers-changed", removed=", ".join(gone) or "none", added=", ".join(came) or "none")
        return True

    def learn(self, order: pb.Open, now: datetime) -> None:
        """Pin the new keys of peers whose pinned keys vouch for them (3); anything else is left to the session's checks."""
        for seat in order.members:
            pinned, key = self.pinned.get(seat.uri), fingerprint_of(seat.public_key)
            if pinned is None or pinned == key or not seat.successions:
                continue
            try:
                offered = [parse_succession(one, f"the key of {seat.uri}") for one in seat.successions]
                for statement in new_statements(pinned, [one for one in offered if one.uri == seat.uri], key, now):
                    self._record(
                        "peer-key-renewed", peer=seat.uri, old=statement.old_sha256.hex(), new=statement.new_sha256.hex()
                    )
                    append_succession(self._kept, statement)
            except CertificateError as error:
                self._log.warning("a renewed key is not taken up", culprit=seat.uri, reason=str(error))
                continue
            self._log.info("a peer's renewed key is pinned", uri=seat.uri)
        self._statements = load_successions(self._kept)
        self._pin()

    def member_for(self, order: pb.Open, member: Member) -> Member:
        """`member` with the pins of now and the key that the session names for this node, if this node holds it (2)."""
        policy: Policy = dataclasses.replace(member.policy, pinned=dict(self.pinned))
        own = next((fingerprint_of(seat.public_key) for seat in order.members if seat.uri == member.uri), b"")
        former = self._former
        key = former.key if former is not None and key_fingerprint(former.key) == own else self.identity.key
        return dataclasses.replace(member, policy=policy, key=key)

    def _record(self, kind: str, **fields: str) -> None:
        """Into the node's audit log; what nobody decided has the program's name."""
        try:
            AuditLog.within(self._kept.parent).append(Action(ACTOR, kind, fields=fields), datetime.now(UTC))
        except AuditError as error:
            self._log.warning("not recorded", reason=str(error))

    def _pin(self) -> None:
        self.pinned = present_keys(self._confirmed, self._statements)


def keep_own_statement(path: Path, statement: Succession) -> None:
    """On disk before the new key is asked for: the old one, which could say it again, is deleted once it came."""
    if all((one.old_sha256, one.new_sha256) != (statement.old_sha256, statement.new_sha256) for one in load_successions(path)):
        append_succession(path, statement)


def _stamp(path: Path | None) -> tuple[int, int]:
    if path is None:
        return 0, 0
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_ino
