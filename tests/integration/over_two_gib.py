"""Vectors of more than 2 GiB through every hand that they pass, in a process that may hold a fraction of one.

Exists in the tests only; a process of its own, because the limit is the process's. Usage: over_two_gib.py FOLDER
The files are sparse: zeros that take no disk.
"""

import hashlib
import os
import resource
import sys
from pathlib import Path

import numpy as np

import certs  # noqa: F401  sets the TLS floor before anything imports grpc
from benchmarks.masking_memory import _ready
from benchmarks.masking_round import parameters
from coordinator.models import pieces
from coordinator.spool import Spool
from proto import federation_pb2 as pb
from proto import wire
from secagg import Door, node

MIB = 1 << 20
VALUES = (1 << 29) + 3 * 1024 * 1024  # 2.01 GiB as float32, and as much in words of two lanes
MOST_BYTES = 400 * MIB  # of private memory: a fifth of one vector
FIRST_PART = (1 << 31) + 5 * MIB


def model_streams(folder: Path) -> None:
    """As FetchModel sends it: every message is a chunk, and all of it comes."""
    path = folder / "model.f32"
    with path.open("wb") as file:
        file.truncate(4 * VALUES)
    sizes = [len(pb.Chunk.FromString(piece.SerializeToString()).data) for piece in pieces(path, wire.CHUNK_BYTES)]
    assert (sum(sizes), max(sizes)) == (4 * VALUES, wire.CHUNK_BYTES)
    assert sum(sizes) > 1 << 31


def upload_streams_and_goes_on_beyond_two_gib(folder: Path) -> None:
    """A member's words into the coordinator's spool, cut beyond 2 GiB, taken up there, and read for the sum."""
    update = np.memmap(folder / "model.f32", dtype=np.float32, mode="r")
    params = parameters(3, VALUES, lanes=2)
    _, upload = node.mask(_ready(params), update, Door.CTR)
    assert upload.total_bytes == params.upload_bytes > 1 << 31
    spool, session, party, whole = Spool(folder / "spool"), bytes(16), "hospital", hashlib.sha256()
    with spool.begin(session, party, upload.total_bytes) as spooled:
        for piece in upload.pieces():
            spooled.write(bytes(piece))
            if spool.received_bytes(session, party) >= FIRST_PART:
                break
    came = spool.received_bytes(session, party)
    header = pb.UploadHeader(session=session, total_bytes=upload.total_bytes, offset_bytes=came)
    header = pb.UploadHeader.FromString(header.SerializeToString())
    with spool.begin(session, party, header.total_bytes, header.offset_bytes) as spooled:
        for _ in spooled.rehash():
            pass
        for piece in upload.pieces(header.offset_bytes):
            spooled.write(bytes(piece))
        assert spooled.digest() == upload.finish().digest
        spooled.accept()
    seen = []

    def add(words: memoryview, at: int) -> None:
        seen.append(at)
        whole.update(words)

    spool.add_all(session, (party,), add)
    assert whole.digest() == upload.finish().digest
    assert seen[-1] > 1 << 31
    spool.clear(session)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    model_streams(Path(sys.argv[1]))
    upload_streams_and_goes_on_beyond_two_gib(Path(sys.argv[1]))
    print("streamed", os.getpid())
