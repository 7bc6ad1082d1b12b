"""Peak memory of one member and of the coordinator, in vectors: multiples of the update as float32.

Counted by tracemalloc, to which numpy reports every array: bytes that were asked for, exactly, whatever the interpreter had
freed before. A process's resident peak would hide what is reused and add what the allocator rounds. What tracemalloc
cannot see are the cipher contexts of the library, about one KiB for each mask and thread.
"""

from __future__ import annotations

import copy
import gc
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.masking_round import READ_BYTES, Recording
from secagg import Door, RoundParams, Vector, Words, node
from secagg.coordinate import SessionView, add_upload, open_sum
from secagg.identity import public_der
from secagg.node import MaskReady
from secagg.policy import policy_of


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that `work` held at once, beyond what was there before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def client_vectors(params: RoundParams, update: Vector, door: Door, *, streamed: bool) -> float:
    """A member from the moment its update is there to its seal. Streamed, a piece is let go when the next one is there."""
    ready = _ready(params)

    def work() -> object:
        _, upload = node.mask(ready, update, door)
        if streamed:
            for _ in upload.pieces():
                pass
            return upload.finish()
        data, at = bytearray(upload.total_bytes), 0
        for piece in upload.pieces():
            data[at : at + len(piece)] = piece
            at += len(piece)
        return data, upload.finish()

    return peak_bytes(work) / update.nbytes


def server_vectors(recording: Recording, door: Door, threads: int) -> float:
    """The coordinator from the first advert to the mean, messages included, with the uploads on disk."""
    with TemporaryFile() as spool:
        for upload in recording.uploads.values():
            spool.write(upload.data or bytes(recording.params.upload_bytes))
        return peak_bytes(lambda: _serve(recording, spool, door, threads)) / (4 * recording.params.length)


def _serve(recording: Recording, spool: BinaryIO, door: Door, threads: int) -> object:
    """`masking_round.play`, but what arrives is the coordinator's own, and of uploads there is a piece at a time."""
    params = recording.params
    view = SessionView(params)
    for advert in recording.adverts.values():
        view.add_advert(copy.deepcopy(advert))
    for share_set in recording.share_sets.values():
        view.add_share_set(copy.deepcopy(share_set))
    for party, upload in recording.uploads.items():
        view.add_seal(party, upload.seal.digest, copy.deepcopy(upload.seal))
    view.close(tuple(recording.uploads))
    for confirmation in recording.confirmations.values():
        view.add_confirmation(copy.deepcopy(confirmation))
    for party, revealed in recording.revealed.items():
        view.add_revealed(party, copy.deepcopy(revealed))
    total: Words = np.zeros(params.words, dtype=np.uint64)
    for at in range(0, params.upload_bytes, READ_BYTES):
        for number in range(len(recording.uploads)):
            spool.seek(number * params.upload_bytes + at)
            add_upload(total, spool.read(min(READ_BYTES, params.upload_bytes - at)), at)
    return view, total, open_sum(view, total, threads=threads, door=door)


def _ready(params: RoundParams) -> MaskReady:
    """One member that has heard from all others."""
    names = params.participants
    keys = {party: ec.generate_private_key(ec.SECP256R1()) for party in names}
    params = replace(params, public_keys=tuple(public_der(keys[party]) for party in names))
    view, policy = SessionView(params), policy_of(params)
    advertised = {}
    for party in names:
        advertised[party], advert = node.advertise(params, party, keys[party], policy, os.urandom)
        view.add_advert(advert)
    shared = {}
    for party in chain(names[1:], names[:1]):
        shared[party], share_set = node.share(advertised[party], tuple(view.adverts.values()), os.urandom)
        view.add_share_set(share_set)
    return node.ready_to_mask(shared[names[0]], view.sets_for(names[0]))
