"""The coordinator's side of a session up to the opening: pure checks of what members send, and who is still in.

Rule: every check raises RemoteError naming the sender, who is known from the connection, and changes nothing when it
raises. `SessionView` gathers one session; the caller keeps the uploads and their running sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secagg import shamir
from secagg.errors import LocalError, RemoteError, TooFewSurvivors
from secagg.graph import Complete, Graph
from secagg.messages import Advert, Confirmation, Revealed, ShareKind, ShareSet, UploadSeal, digests_of
from secagg.noised import check_enough_noise
from secagg.params import WORD_BYTES, RoundParams, Words
from secagg.policy import check_cohort, policy_of
from secagg.relay import Relay
from secagg.statements import (
    adverts_digest,
    check_advert,
    check_confirmation,
    check_distinct_keys,
    check_seal,
    check_share_set,
    list_statement,
    session_graph,
    uploads_context,
)


def verify_advert(params: RoundParams, advert: Advert) -> None:
    """A member's signed advert with canonical keys."""
    check_advert(params, advert, blame=advert.party)


def verify_share_set(params: RoundParams, adverts: Mapping[str, Advert], share_set: ShareSet) -> None:
    """Boxes for all receivers that these adverts name, signed over exactly these adverts."""
    graph, seen = session_graph(params, adverts), adverts_digest(adverts)
    _check_boxes(params, graph, seen, share_set.with_digests(), given=bool(share_set.digests))


def verify_upload_seal(
    params: RoundParams, party: str, upload_digest: bytes, seal: UploadSeal, context: bytes | None = None
) -> None:
    """The member signed this digest; `upload_digest` is SHA-256 of the bytes that arrived (params.upload_bytes of them).

    `context` is `uploads_context`, which in the complete graph is the session's.
    """
    if seal.digest != upload_digest:
        raise RemoteError(party, "bad-upload", f"the upload of {party} did not arrive as it was sent: have it sent again")
    check_seal(params, party, seal, params.context() if context is None else context, blame=party)


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
    seals: dict[str, UploadSeal] = field(default_factory=dict)
    survivors: tuple[str, ...] = ()
    confirmations: dict[str, Confirmation] = field(default_factory=dict)
    revealed: dict[str, Revealed] = field(default_factory=dict)
    _owners: dict[bytes, str] = field(default_factory=dict)  # of the keys and commitments in the adverts
    _seen: bytes = b""  # digest of the adverts, fixed by the first share set
    _graph: Graph | None = None  # fixed with `_seen`
    _relay: Relay | None = None  # of the sets that are here
    _uploads_context: bytes = b""  # what uploads are signed under, fixed by the first seal
    listed: frozenset[str] = frozenset()  # the survivors, fixed with the list
    _sharers: tuple[str, ...] = ()  # fixed with the list
    _statement: bytes = b""  # what survivors sign, fixed with the list

    def __post_init__(self) -> None:
        for advert in self.adverts.values():
            self._owners.update(dict.fromkeys(advert.values, advert.party))

    @property
    def sharers(self) -> tuple[str, ...]:
        """Members whose share set was accepted, in the order of names."""
        return self._sharers or tuple(sorted(self.share_sets))

    @property
    def dropped(self) -> tuple[str, ...]:
        """Sharers that are not on the survivor list."""
        return tuple(party for party in self.sharers if party not in self.listed)

    def is_survivor(self, party: str) -> bool:
        """Whether the survivor list names `party`."""
        return party in self.listed

    @property
    def graph(self) -> Graph:
        """The edges among the advertised members; adverts close with the first share set."""
        return self._graph or session_graph(self.params, self.adverts)

    def add_advert(self, advert: Advert) -> None:
        """Phase 1; adverts close with the first share set."""
        if self._repeated(self.adverts, advert.party, advert):
            return
        if self._seen:
            raise LocalError("adverts are closed: members have already shared over them")
        verify_advert(self.params, advert)
        rivals = {self._owners[value] for value in advert.values if value in self._owners} - {advert.party}
        check_distinct_keys([*(self.adverts[party] for party in rivals if party in self.adverts), advert], blame=advert.party)
        self._owners.update(dict.fromkeys(advert.values, advert.party))
        self.adverts[advert.party] = advert

    def check_adverts(self) -> None:
        """TooFewSurvivors unless the share phase can start."""
        self._check_cohort(self.adverts, "share")
        self.graph.check_kept(self.graph.advertised, self.adverts, "share")

    def add_share_set(self, share_set: ShareSet) -> None:
        """Phase 2. What is kept has digests; relay `sets_for(uri)` to each sharer."""
        full = share_set.with_digests()
        if self._repeated(self.share_sets, share_set.party, full):
            return
        self._before_list()
        if self.seals:
            raise LocalError("share sets are closed: members have already masked over them")
        seen, graph = self._seen or adverts_digest(self.adverts), self.graph
        _check_boxes(self.params, graph, seen, full, given=bool(share_set.digests))
        self._seen, self._graph = seen, graph
        self.share_sets[share_set.party] = full
        self._relay = None

    def sets_for(self, reader: str) -> list[ShareSet]:
        """What the mask phase tells a sharer: every set as `ShareSet.for_receiver` gives it, in the order of names."""
        if self._relay is None or len(self._relay) != len(self.share_sets):  # the caller may take a set back
            self._relay = Relay(self.share_sets[party] for party in self.sharers)
        return self._relay.for_reader(reader)

    def check_shares(self) -> None:
        """TooFewSurvivors unless the mask phase can start."""
        self._check_cohort(self.share_sets, "mask")
        self.graph.check_kept(self.sharers, self.share_sets, "mask")

    def add_seal(self, party: str, upload_digest: bytes, seal: UploadSeal) -> None:
        """Phase 3: the seal of an upload whose bytes arrived with this digest; share sets close with the first one."""
        if self._repeated(self.seals, party, seal) and seal.digest == upload_digest:
            return
        self._before_list()
        if party not in self.share_sets:
            raise RemoteError(party, "unknown-party", f"{party} uploads without having shared")
        context = self._uploads_context or uploads_context(self.params, self._seen, self.share_sets)
        verify_upload_seal(self.params, party, upload_digest, seal, context)
        self._uploads_context = context
        self.seals[party] = seal

    def seals_for(self, reader: str) -> dict[str, UploadSeal]:
        """Relay these with the survivor list: in a sparse session, of the survivors whose shares the reader holds."""
        if isinstance(self.params.graph, Complete):
            return {}
        return {party: self.seals[party] for party in self.graph.senders(reader) if party in self.listed}

    def check_survivors(self, survivors: Sequence[str]) -> None:
        """TooFewSurvivors unless these members' uploads may be opened together."""
        if not set(survivors) <= set(self.share_sets) or len(set(survivors)) != len(survivors):
            raise LocalError("survivors are distinct members that shared")
        self._check_cohort(survivors, "confirm")
        check_enough_noise(self.params, survivors, "confirm")
        self.graph.check_kept(self.sharers, survivors, "confirm")

    def close(self, survivors: Sequence[str]) -> None:
        """Fix the survivor list: the members whose whole upload is in the sum. It is set once."""
        self._before_list()
        self.check_survivors(survivors)
        if not (isinstance(self.params.graph, Complete) or set(survivors) <= set(self.seals)):
            raise LocalError("in a sparse session every survivor's upload was sealed")
        self._sharers, self.survivors = self.sharers, tuple(sorted(survivors))
        self.listed = frozenset(survivors)
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
        if isinstance(self.params.graph, Complete):
            self._check_threshold(self.revealed, "open")
            return
        for party in self.sharers:
            have = sum(holder in self.revealed for holder in (party, *self.graph.receivers(party)))
            if have < self.params.share_threshold:
                text = f"{have} members revealed shares of {party}, {self.params.share_threshold} are needed"
                raise TooFewSurvivors("open", text)

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


def _check_boxes(params: RoundParams, graph: Graph, seen: bytes, full: ShareSet, *, given: bool) -> None:
    """Digests that were `given` are its sender's only where they are those of its boxes."""
    if given and full.digests != digests_of(full.boxes):
        raise RemoteError(full.party, "altered-box", f"the boxes of {full.party} are not the ones it signed")
    check_share_set(params, graph, seen, full, blame=full.party)


def verify_confirmation(view: SessionView, confirmation: Confirmation) -> None:
    """A survivor's signature over the one list."""
    listed = (confirmation.party,) if view.is_survivor(confirmation.party) else ()
    check_confirmation(view.params, view.statement(), listed, confirmation, blame=confirmation.party)


def verify_revealed(view: SessionView, party: str, revealed: Revealed) -> None:
    """From a survivor: exactly one share of the right kind for each sharer whose shares it holds, each a field element."""
    if not view.is_survivor(party):
        raise RemoteError(party, "unknown-party", f"{party} reveals shares without being on the list")
    held = {party, *view.graph.senders(party)} & view.share_sets.keys()
    expected = dict.fromkeys(held, (ShareKind.MASK_KEY, False))
    surplus = view.params.surplus_from(len(view.listed)) is not None
    expected |= dict.fromkeys(held & view.listed, (ShareKind.SELF_MASK_SEED, surplus))
    if {item.peer: (item.kind, bool(item.noise)) for item in revealed.shares} != expected:
        raise RemoteError(
            party, "wrong-shares", f"the shares of {party} are not one of the right kind for each member whose shares it holds"
        )
    if not shamir.are_shares([part for item in revealed.shares for part in (item.share, item.noise) if part]):
        raise RemoteError(party, "malformed", f"{party} reveals something that is no share")
