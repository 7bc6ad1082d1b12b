"""The coordinator's side of a session up to the opening: pure checks of what members send, and who is still in.

Rule: every check raises RemoteError naming the sender, who is known from the connection, and changes nothing when it
raises. `SessionView` gathers one session; the caller keeps the uploads and their running sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secagg import identity, shamir
from secagg.errors import LocalError, RemoteError, TooFewSurvivors
from secagg.identity import Purpose
from secagg.messages import Advert, Confirmation, Revealed, ShareKind, ShareSet, UploadSeal, digests_of
from secagg.params import WORD_BYTES, RoundParams, Words
from secagg.policy import check_cohort, policy_of
from secagg.statements import (
    adverts_digest,
    check_advert,
    check_confirmation,
    check_distinct_keys,
    check_share_set,
    list_statement,
    upload_statement,
)


def verify_advert(params: RoundParams, advert: Advert) -> None:
    """A member's signed advert with canonical keys."""
    check_advert(params, advert, blame=advert.party)


def verify_share_set(params: RoundParams, adverts: Mapping[str, Advert], share_set: ShareSet) -> None:
    """Boxes for all other advertised members, signed over exactly these adverts."""
    _check_boxes(params, adverts, adverts_digest(adverts), share_set.with_digests())


def verify_upload_seal(params: RoundParams, party: str, upload_digest: bytes, seal: UploadSeal) -> None:
    """The member signed this digest; `upload_digest` is SHA-256 of the bytes that arrived (params.upload_bytes of them)."""
    if seal.digest != upload_digest:
        raise RemoteError(party, "bad-upload", f"the upload of {party} did not arrive as it was sent: have it sent again")
    statement = upload_statement(party, params.upload_bytes, upload_digest)
    identity.verify(params.public_key(party), Purpose.UPLOAD, params.context(), statement, seal.signature, blame=party)


def add_upload(total: Words, data: bytes | bytearray | memoryview, offset_bytes: int = 0) -> None:
    """Add a run of one upload's bytes to the sum in place; `offset_bytes` and length are multiples of eight."""
    if offset_bytes % WORD_BYTES or len(data) % WORD_BYTES or not 0 <= offset_bytes <= total.nbytes - len(data):
        raise LocalError(f"{len(data)} bytes at offset {offset_bytes} are not whole words inside the vector")
    words = np.frombuffer(data, dtype="<u8")
    first = offset_bytes // WORD_BYTES
    total[first : first + len(words)] += words  # modulo 2**64


@dataclass(slots=True)
class SessionView:
    """What the coordinator holds of one session. Each method checks first and changes nothing when it raises.

    Adding the same message again is allowed; a different one from the same member is refused (second-question).
    """

    params: RoundParams
    adverts: dict[str, Advert] = field(default_factory=dict)
    share_sets: dict[str, ShareSet] = field(default_factory=dict)  # complete with digests, ready to relay
    survivors: tuple[str, ...] = ()
    confirmations: dict[str, Confirmation] = field(default_factory=dict)
    revealed: dict[str, Revealed] = field(default_factory=dict)
    _seen: bytes = b""  # digest of the adverts, fixed by the first share set
    _statement: bytes = b""  # what survivors sign, fixed with the list

    @property
    def sharers(self) -> tuple[str, ...]:
        """Members whose share set was accepted, in the order of names."""
        return tuple(sorted(self.share_sets))

    @property
    def dropped(self) -> tuple[str, ...]:
        """Sharers that are not on the survivor list."""
        return tuple(party for party in self.sharers if party not in self.survivors)

    def add_advert(self, advert: Advert) -> None:
        """Phase 1; adverts close with the first share set."""
        if self._repeated(self.adverts, advert.party, advert):
            return
        if self._seen:
            raise LocalError("adverts are closed: members have already shared over them")
        verify_advert(self.params, advert)
        check_distinct_keys([*self.adverts.values(), advert], blame=advert.party)
        self.adverts[advert.party] = advert

    def check_adverts(self) -> None:
        """TooFewSurvivors unless the share phase can start."""
        self._check_cohort(self.adverts, "share")

    def add_share_set(self, share_set: ShareSet) -> None:
        """Phase 2. What is kept has digests; relay `share_sets[party].for_receiver(uri)` to each sharer."""
        full = share_set.with_digests()
        if self._repeated(self.share_sets, share_set.party, full):
            return
        self._before_list()
        seen = self._seen or adverts_digest(self.adverts)
        _check_boxes(self.params, self.adverts, seen, full)
        self._seen = seen
        self.share_sets[share_set.party] = full

    def check_shares(self) -> None:
        """TooFewSurvivors unless the mask phase can start."""
        self._check_cohort(self.share_sets, "mask")

    def check_survivors(self, survivors: Sequence[str]) -> None:
        """TooFewSurvivors unless these members' uploads may be opened together."""
        if not set(survivors) <= set(self.share_sets) or len(set(survivors)) != len(survivors):
            raise LocalError("survivors are distinct members that shared")
        self._check_cohort(survivors, "confirm")

    def close(self, survivors: Sequence[str]) -> None:
        """Fix the survivor list: the members whose whole upload is in the sum. It is set once."""
        self._before_list()
        self.check_survivors(survivors)
        self.survivors = tuple(sorted(survivors))
        self._statement = list_statement(self._seen, self.share_sets, self.survivors)

    def add_confirmation(self, confirmation: Confirmation) -> None:
        """Phase 4."""
        if not self._repeated(self.confirmations, confirmation.party, confirmation):
            verify_confirmation(self, confirmation)
            self.confirmations[confirmation.party] = confirmation

    def check_confirmed(self) -> None:
        """TooFewSurvivors unless the reveal phase can start."""
        self._check_threshold(self.confirmations, "reveal")

    def add_revealed(self, party: str, revealed: Revealed) -> None:
        """Phase 5."""
        if not self._repeated(self.revealed, party, revealed):
            verify_revealed(self, party, revealed)
            self.revealed[party] = revealed

    def check_revealed(self) -> None:
        """TooFewSurvivors unless the sum can be opened."""
        self._check_threshold(self.revealed, "open")

    def statement(self) -> bytes:
        """What the survivors sign; LocalError before the list is closed."""
        if not self.survivors:
            raise LocalError("the survivor list is not closed yet")
        return self._statement

    def _before_list(self) -> None:
        if self.survivors:
            raise LocalError("the survivor list of this session is already fixed")

    def _check_cohort(self, parties: Iterable[str], phase: str) -> None:
        check_cohort(self.params, sorted(parties), None, policy_of(self.params), phase)

    def _check_threshold(self, parties: Iterable[str], phase: str) -> None:
        have = len(tuple(parties))
        if have < self.params.threshold:
            raise TooFewSurvivors(phase, f"{have} members answered, the threshold is {self.params.threshold}")

    @staticmethod
    def _repeated(known: Mapping[str, object], party: str, message: object) -> bool:
        if party in known and known[party] != message:
            raise RemoteError(party, "second-question", f"{party} answers one phase twice with different content")
        return party in known


def _check_boxes(params: RoundParams, adverts: Mapping[str, Advert], seen: bytes, full: ShareSet) -> None:
    if full.digests != digests_of(full.boxes):
        raise RemoteError(full.party, "altered-box", f"the boxes of {full.party} are not the ones it signed")
    check_share_set(params, adverts, seen, full, blame=full.party)


def verify_confirmation(view: SessionView, confirmation: Confirmation) -> None:
    """A survivor's signature over the one list."""
    check_confirmation(view.params, view.statement(), view.survivors, confirmation, blame=confirmation.party)


def verify_revealed(view: SessionView, party: str, revealed: Revealed) -> None:
    """From a survivor: exactly one share of the right kind for each sharer, each a field element."""
    if party not in view.survivors:
        raise RemoteError(party, "unknown-party", f"{party} reveals shares without being on the list")
    expected = {peer: _kind(view, peer) for peer in view.sharers}
    if {item.peer: item.kind for item in revealed.shares} != expected:
        raise RemoteError(
            party, "wrong-shares", f"the shares of {party} are not one of the right kind for each member that shared"
        )
    if not all(shamir.is_share(item.share) for item in revealed.shares):
        raise RemoteError(party, "malformed", f"{party} reveals something that is no share")


def _kind(view: SessionView, peer: str) -> ShareKind:
    return ShareKind.SELF_MASK_SEED if peer in view.survivors else ShareKind.MASK_KEY
