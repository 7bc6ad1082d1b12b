"""A masked upload as messages, from its beginning or from where a broken one ended. Decides nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from hospital_node.session import Charged
from proto import federation_pb2 as pb
from proto import wire
from proto.bulk import UploadPart
from secagg.upload import PackedUpload


def offset_bytes(upload: PackedUpload, order: pb.Mask) -> int:
    """Where a broken upload goes on: never beyond what this node has sent, whatever the coordinator says that it holds."""
    return order.received_bytes if order.received_bytes <= upload.made_bytes else 0


def parts_of(charged: Charged, upload: PackedUpload, offset: int = 0) -> Iterator[UploadPart]:
    """Header, words from `offset` bytes on, trailer."""
    pieces = upload.pieces(offset)
    yield from wire.upload_messages(charged.session, upload.total_bytes, charged.receipt, pieces, offset)
    seal = upload.finish()
    yield wire.upload_trailer(seal.digest, seal.signature)
