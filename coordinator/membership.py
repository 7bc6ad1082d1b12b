"""Who is a member of the running study: admitted by key, named in the plan, not revoked; and renewals of members' keys.

It joins the list of keys (coordinator/admission.py) to the run: a party that leaves the list leaves the round under way.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib.metadata import version

import structlog

from certs.audit import Action, AuditError
from certs.audit_file import AuditLog
from certs.party import CertificateError, Party, fingerprint_of
from certs.peers import AllowList
from certs.succession import Succession
from coordinator import events as ev
from coordinator.admission import Admission
from coordinator.expiry import Expiry
from coordinator.renewing import renewed
from coordinator.run import Run
from coordinator.sessions import Refusal
from proto import federation_pb2 as pb
from proto.plan import PROTOCOL_VERSION, role_of, short_name

STATEMENTS = "successions.jsonl"
ACTOR = "secagg-coordinator"  # in the audit log, of what people set up and nobody does by hand

log = structlog.get_logger()


class Membership:
    """One owner, one event loop."""

    def __init__(self, run: Run, allow: AllowList) -> None:
        self._run = run
        config = run.config
        self._authority = config.authority
        self._admission = Admission(allow, config.allow, config.state / STATEMENTS)
        self._expiry = Expiry(config.state)
        self._leaving: set[str] = set()  # taken from the list, and the run does not know it yet
        self._revoked: set[str] = set()  # taken from the list since this start, and not back

    def check(self, party: Party) -> None:
        """Return if this party has a part in the study. Raises Refusal."""
        try:
            self._admission.check(party)
        except CertificateError as error:
            raise Refusal("denied", str(error)) from error
        if party.uri not in self._run.mail:
            raise Refusal("denied", f"{party.uri} is not named in the plan of study '{self._run.plan.study}'")

    def seen(self, uri: str, not_after: datetime) -> None:
        """A party joined, with a certificate that ends at `not_after`."""
        self._revoked.discard(uri)
        self._expiry.seen(uri, not_after)

    def check_not_revoked(self, uri: str) -> None:
        """For calls that took long: the list may have changed meanwhile. Raises Refusal."""
        if uri in self._revoked:
            raise Refusal("denied", f"{uri} was taken from the list of confirmed keys")

    def identify(self, party: Party, request: pb.IdentifyRequest) -> pb.IdentifyReply:
        """How this side sees a caller, member or not."""
        try:
            self.check(party)
            check_version(request.protocol_version)
            refusal = ""
        except Refusal as why:
            refusal = why.text
        return pb.IdentifyReply(
            protocol_version=PROTOCOL_VERSION,
            software_version=version("hospital-secagg"),
            identity=party.uri,
            key_sha256=party.fingerprint,
            refusal=refusal,
            time_s=time.time(),
        )

    def renew(self, party: Party, not_after: datetime, request: pb.RenewRequest) -> pb.RenewReply:
        """A certificate for a new key of `party`, whose present one ends at `not_after`. Raises Refusal."""
        pem = renewed(
            self._authority, self._admission, party, not_after, request.request, request.succession, datetime.now(UTC)
        )
        self._record("key-renewed", party=party.uri, old=party.fingerprint.hex())
        self._run.note("renewed", f"{short_name(party.uri)} has a certificate for a new key", party.uri)
        return pb.RenewReply(certificate=pem)

    def add_successions(self, order: pb.Open) -> None:
        """Show the members of a session how renewed keys follow from those that people confirmed."""
        for member in order.members:
            member.successions.extend(one.encoded() for one in self._leading_to(member.uri, member.public_key))

    def revoke_unlisted(self) -> None:
        """Act on a changed list of keys: a party that it names no more has no part in anything from now on."""
        changed = self._admission.refresh()
        if changed:
            self._record("keys-removed", parties=", ".join(sorted(changed)))
        self._leaving |= changed
        for uri in sorted(self._leaving):
            self._revoke(uri)
            self._leaving.discard(uri)  # not before it is stored

    def revoke_replaced(self) -> None:
        """Once after a start: members of a session that goes on, whose keys were taken from the list meanwhile."""
        for member in tuple(self._run.state.members.values()):
            if member.public_key and not self._admission.holds(member.uri, fingerprint_of(member.public_key)):
                self._revoke(member.uri)

    def _revoke(self, uri: str) -> None:
        self._revoked.add(uri)
        if role_of(uri) == "hospital" and uri in self._run.mail:
            self._run.feed(ev.Revoked(uri))
        if uri in self._run.bells:
            self._run.bells[uri].set()

    def _record(self, kind: str, **fields: str) -> None:
        """Into the audit log; a full disk delays no revocation."""
        try:
            AuditLog.within(self._run.config.state).append(Action(ACTOR, kind, fields=fields), datetime.now(UTC))
        except AuditError as error:
            log.warning("not recorded", reason=str(error))

    def _leading_to(self, uri: str, key: bytes) -> tuple[Succession, ...]:
        chain = self._admission.chain(uri)
        ends = [place for place, one in enumerate(chain, start=1) if one.new_key == key]
        return chain[: ends[0]] if ends else ()


def check_version(theirs: int) -> None:
    """Return where both sides speak the same protocol. Raises Refusal."""
    if theirs != PROTOCOL_VERSION:
        raise Refusal(
            "version",
            f"this coordinator speaks protocol version {PROTOCOL_VERSION}, the caller {theirs}: "
            "install the same software version on both sides",
        )
