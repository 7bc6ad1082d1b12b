"""A masking round taken apart: CPU seconds of each member, and the messages, to be played to a coordinator again.

Members run as `secagg.rehearse` runs them, one after the other. What they sent is kept, so that the coordinator's part can be
measured alone and as often as it takes. CPU seconds of this process; wall time on a shared machine says little.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from secagg import Confirmation, Door, Quantizer, Revealed, RoundParams, ShareSet, UploadSeal, Vector, Words, node
from secagg.coordinate import OpenedSum, SessionView, add_upload, open_sum
from secagg.identity import public_der
from secagg.messages import Advert
from secagg.node import Advertised, Confirmed, Masked, Shared
from secagg.params import SESSION_BYTES
from secagg.policy import policy_of
from secagg.upload import PackedUpload

READ_BYTES = 1 << 19  # as coordinator/spool.py reads
ARRIVAL = "arrival"  # reading and hashing uploads: done as they come, and as much as their transport costs
RELAY = "relay"  # making the messages for members
APART = frozenset({ARRIVAL, RELAY})  # the reference figures of other libraries leave transport and messages out


class Stopwatch:
    """CPU seconds of this process under each label."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, label: str) -> Iterator[None]:
        """Count the body under `label`."""
        start = process_time()
        yield
        self.spent_s[label] += process_time() - start

    def sum_s(self) -> float:
        """All labels but those kept apart."""
        return sum(spent for label, spent in self.spent_s.items() if label not in APART)


@dataclass(frozen=True, slots=True)
class Upload:
    """A whole upload, or None where it is summed up in another one."""

    data: bytes | None
    seal: UploadSeal


@dataclass
class Recording:
    """One round as its coordinator saw it, and what it cost each member."""

    params: RoundParams
    adverts: dict[str, Advert] = field(default_factory=dict)
    share_sets: dict[str, ShareSet] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    confirmations: dict[str, Confirmation] = field(default_factory=dict)
    revealed: dict[str, Revealed] = field(default_factory=dict)
    members: dict[str, Stopwatch] = field(default_factory=dict)

    def client_s(self) -> list[float]:
        """CPU seconds of each member that stayed to the end, with the digest of its upload."""
        return [self.members[party].sum_s() for party in self.revealed]

    def digest_s(self) -> list[float]:
        """CPU seconds of SHA-256 over each upload, which its member and the coordinator pay once each."""
        return [self.members[party].spent_s[ARRIVAL] for party in self.revealed]


def parameters(members: int, length: int, lanes: int = 3, **fields: object) -> RoundParams:
    """A session of so many members with equal weights and the plan's default threshold."""
    params = RoundParams(
        session=os.urandom(SESSION_BYTES),
        participants=tuple(f"hospital-{number:04d}" for number in range(members)),
        threshold=2 * members // 3 + 1,
        length=length,
        quantizer=Quantizer(1.0, lanes),
    )
    return replace(params, **fields)  # type: ignore[arg-type]


def update_of(length: int) -> Vector:
    """An update that a clip of one leaves alone but for a few coordinates."""
    return np.random.default_rng(length).normal(0, 0.3, length).astype(np.float32)


def record(
    params: RoundParams, lost: int, update: Vector, door: Door, *, trusting: bool = False, summed: bool = False
) -> Recording:
    """Run all members; `lost` of them vanish before their upload. All send the same update, each under its own masks.

    `trusting` members check nothing: for cohorts whose members are not measured and would take minutes. `summed` keeps
    one upload, the sum of all, for cohorts whose uploads would fill the memory.
    """
    with trust_everything() if trusting else nullcontext():
        return _Members(params, lost, door, summed=summed).run(update)


@contextmanager
def trust_everything() -> Iterator[None]:
    """Members check nothing, and what each of them would compute alike from what all were shown is computed once."""
    with ExitStack() as patches:
        for name in ("check_advert", "check_distinct_keys", "check_share_set", "check_confirmation", "check_seal"):
            patches.enter_context(mock.patch.object(node, name, _nothing))
        for name in ("adverts_digest", "session_graph", "list_statement", "uploads_context"):
            patches.enter_context(mock.patch.object(node, name, _first_answer(getattr(node, name))))
        yield


def _nothing(*_: object, **__: object) -> None:
    """A check that always passes; a Mock would remember every call."""


def _first_answer(function: Callable[..., Any]) -> Callable[..., Any]:
    answers: list[Any] = []

    def answer(*arguments: object) -> object:
        if not answers:
            answers.append(function(*arguments))
        return answers[0]

    return answer


class _Members:
    """All members of one round, and a coordinator that collects."""

    def __init__(self, params: RoundParams, lost: int, door: Door, *, summed: bool) -> None:
        names = params.participants
        self._keys = {party: ec.generate_private_key(ec.SECP256R1()) for party in names}
        self._params = replace(params, public_keys=tuple(public_der(self._keys[party]) for party in names))
        self._lost = {names[place] for place in range(0, len(names), len(names) // lost)[:lost]} if lost else set()
        self._door = door
        self._total: Words | None = np.zeros(params.words, dtype=np.uint64) if summed else None
        self._view = SessionView(self._params)
        self._record = Recording(self._params, members={party: Stopwatch() for party in names})

    def run(self, update: Vector) -> Recording:
        confirmed = self._confirm(self._mask(self._share(self._advertise()), update))
        signed = tuple(self._record.confirmations.values())
        for party, state in confirmed.items():
            with self._record.members[party].on("reveal"):
                _, self._record.revealed[party] = node.reveal(state, signed)
        if self._total is not None:
            first = next(iter(self._record.uploads))
            self._record.uploads[first] = replace(self._record.uploads[first], data=self._total.tobytes())
        return self._record

    def _advertise(self) -> dict[str, Advertised]:
        policy, states = policy_of(self._params), {}
        for party, key in self._keys.items():
            with self._record.members[party].on("advertise"):
                states[party], advert = node.advertise(self._params, party, key, policy, os.urandom)
            self._record.adverts[party] = advert
            self._view.add_advert(advert)
        return states

    def _share(self, advertised: dict[str, Advertised]) -> dict[str, Shared]:
        adverts, states = tuple(self._record.adverts.values()), {}
        for party, state in advertised.items():
            with self._record.members[party].on("share"):
                states[party], share_set = node.share(state, adverts, os.urandom)
            self._record.share_sets[party] = share_set
            self._view.add_share_set(share_set)
        return states

    def _mask(self, shared: dict[str, Shared], update: Vector) -> dict[str, Masked]:
        states = {}
        for party, state in shared.items():
            if party in self._lost:
                continue
            sets, watch = self._view.sets_for(party), self._record.members[party]
            with watch.on("check"):
                ready = node.ready_to_mask(state, sets)
            with watch.on("mask"):
                states[party], upload = node.mask(ready, update, self._door)
            self._receive(party, *_taken(watch, upload))
        return states

    def _receive(self, party: str, data: bytes, seal: UploadSeal) -> None:
        self._view.add_seal(party, seal.digest, seal)
        if self._total is None:
            self._record.uploads[party] = Upload(data, seal)
        else:
            self._record.uploads[party] = Upload(None, seal)
            add_upload(self._total, data)

    def _confirm(self, masked: dict[str, Masked]) -> dict[str, Confirmed]:
        self._view.close(tuple(masked))
        states = {}
        for party, state in masked.items():
            seals = self._view.seals_for(party)
            with self._record.members[party].on("confirm"):
                states[party], self._record.confirmations[party] = node.confirm(state, self._view.survivors, seals)
        return states


def _taken(watch: Stopwatch, upload: PackedUpload) -> tuple[bytes, UploadSeal]:
    """Piece after piece, as a connection takes them. The digest, which is part of it, is measured again: it is kept apart."""
    data, at, pieces = bytearray(upload.total_bytes), 0, upload.pieces()
    while at < len(data):
        with watch.on("mask"):
            piece = next(pieces)
        data[at : at + len(piece)] = piece
        at += len(piece)
    with watch.on("mask"):
        seal = upload.finish()
    with watch.on(ARRIVAL):
        digest = hashlib.sha256(data).digest()
    assert digest == seal.digest
    return bytes(data), seal


def play(recording: Recording, door: Door, *, threads: int = 1) -> tuple[Stopwatch, OpenedSum]:
    """The coordinator's part of a recorded round."""
    watch, view = Stopwatch(), SessionView(recording.params)
    with watch.on("adverts"):
        for advert in recording.adverts.values():
            view.add_advert(advert)
        view.check_adverts()
    with watch.on("shares"):
        for share_set in recording.share_sets.values():
            view.add_share_set(share_set)
        view.check_shares()
    with watch.on(RELAY):
        for party in view.sharers:
            view.sets_for(party)
    total = _summed(recording, view, watch)
    with watch.on("list"):
        view.close(tuple(recording.uploads))
        for confirmation in recording.confirmations.values():
            view.add_confirmation(confirmation)
        view.check_confirmed()
    with watch.on(RELAY):
        for party in view.survivors:
            view.seals_for(party)
    with watch.on("reveals"):
        for party, revealed in recording.revealed.items():
            view.add_revealed(party, revealed)
    with watch.on("open"):
        opened = open_sum(view, total, threads=threads, door=door)
    return watch, opened


def _summed(recording: Recording, view: SessionView, watch: Stopwatch) -> Words:
    """Every upload is read and hashed, its seal checked; then the sum is made of pieces as the spool gives them."""
    total: Words = np.zeros(recording.params.words, dtype=np.uint64)
    for party, upload in recording.uploads.items():
        if upload.data is not None:
            with watch.on(ARRIVAL):
                hashlib.sha256(upload.data)
        with watch.on("seals"):
            view.add_seal(party, upload.seal.digest, upload.seal)
    uploads = [memoryview(upload.data) for upload in recording.uploads.values() if upload.data is not None]
    buffer = memoryview(bytearray(READ_BYTES))
    for at in range(0, recording.params.upload_bytes, READ_BYTES):
        for upload_bytes in uploads:
            with watch.on(ARRIVAL):
                piece = buffer[: len(upload_bytes[at : at + READ_BYTES])]
                piece[:] = upload_bytes[at : at + READ_BYTES]
            with watch.on("sum"):
                add_upload(total, piece, at)
    return total
