"""Every decoder that bytes from elsewhere reach, each with the only errors that it may raise, and a corpus that is kept.

A decoder gives a value or one of its errors; anything else (another exception, a hang, memory without bound) is a finding.
`corpus/<name>/` holds whole messages and every input that once was a finding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

import certs  # noqa: F401  sets the TLS floor before anything imports grpc
from certs.party import CertificateError, parse_certificate, party_named_in
from certs.peers import load_peers
from coordinator.health import service_of
from coordinator.journal import PHASE_OF_KIND, JournalError, Message, body_of, read_outline
from hospital_node.ledger_export import ExportError, read_export
from hospital_node.ledger_schema import KINDS, ChainError, Row, decoded
from proto import bulk, wire
from proto import federation_pb2 as pb
from proto.layout import Layout, LayoutError
from proto.modelfile import ModelFileError, read_model
from proto.plan import PlanError, from_canonical
from secagg import SecaggError

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Decoder:
    """`decode` takes any bytes; `errors` are all that it may raise."""

    decode: Callable[[bytes], Any]
    errors: tuple[type[Exception], ...]


def _answer(data: bytes) -> None:
    """What a hospital sends in a session, as coordinator/sessions.py reads it."""
    message = pb.PhaseAnswer.FromString(data)
    match message.WhichOneof("answer"):
        case "advert":
            wire.from_advert(message.advert)
        case "shares":
            wire.from_share_set(message.shares)
        case "confirmation":
            wire.from_confirmation(message.confirmation)
        case "revealed":
            wire.from_revealed(message.revealed)


def _instruction(data: bytes) -> None:
    """What the coordinator sends, as hospital_node/release.py reads it."""
    message = pb.Instruction.FromString(data)
    match message.WhichOneof("order"):
        case "share":
            [wire.from_advert(item) for item in message.share.adverts]
        case "mask":
            [wire.from_share_set(item) for item in message.mask.sets]
        case "confirm":
            wire.from_uris(message.confirm.survivors)
            wire.from_seals(message.confirm.seals)
        case "reveal":
            [wire.from_confirmation(item) for item in message.reveal.confirmations]
        case "result":
            wire.from_uris(message.result.survivors)


def _journal(data: bytes) -> None:
    """A stored message of a session, of each kind."""
    for kind in PHASE_OF_KIND:
        try:
            body_of(Message(kind, "party", data))
        except JournalError:
            continue


def _ledger_row(data: bytes) -> None:
    """A body of a ledger, of each kind."""
    body = data.decode("utf-8", "replace")
    for seq, kind in enumerate(KINDS, start=1):
        try:
            decoded(Row(seq, "2026-11-21T08:00:00.000000+00:00", kind, body, bytes(32), bytes(32)))
        except ChainError:
            continue


def _content(message: Any) -> Any:
    """Of a bulk message of either kind, what its reader works on."""
    if hasattr(message, "data"):
        return bytes(message.data)
    return message if isinstance(message, pb.UploadChunk) and message.WhichOneof("part") != "words" else bytes(message.words)


def _like(parse: Callable[[bytes], Any], read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`read`, held against protobuf's own parser: another content or refusal is a finding."""

    def decode(data: bytes) -> Any:
        refused, found = None, []
        for one in (parse, read):
            try:
                found.append(_content(one(data)))
            except DecodeError as error:
                refused = error
        assert len(found) != 1, "one reads what the other refuses"
        if refused is not None:
            raise refused
        assert found[0] == found[1]

    return decode


def _on_disk(read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            return read(Path(file.name))

    return decode


DECODERS = {
    "answer": Decoder(_answer, (DecodeError, wire.WireError, SecaggError)),
    "certificate": Decoder(lambda data: party_named_in(parse_certificate(data, "x"), "x"), (CertificateError,)),
    "chunk": Decoder(_like(pb.Chunk.FromString, bulk.read_chunk), (DecodeError,)),
    "health": Decoder(service_of, (ValueError,)),
    "instruction": Decoder(_instruction, (DecodeError, wire.WireError, SecaggError)),
    "journal": Decoder(_journal, ()),
    "layout": Decoder(lambda data: Layout.from_json(data.decode("utf-8", "replace")), (LayoutError,)),
    "ledger": Decoder(_ledger_row, ()),
    "ledger_export": Decoder(_on_disk(read_export), (ExportError,)),
    "model": Decoder(_on_disk(read_model), (ModelFileError,)),
    "outline": Decoder(read_outline, (JournalError,)),
    "peers": Decoder(_on_disk(load_peers), (CertificateError,)),
    "plan": Decoder(from_canonical, (PlanError,)),
    "upload": Decoder(_like(pb.UploadChunk.FromString, bulk.read_part), (DecodeError,)),
}


def feed(name: str, data: bytes) -> None:
    """One input; whatever it raises is a finding."""
    decoder = DECODERS[name]
    try:
        decoder.decode(data)
    except decoder.errors:
        return


def corpus_of(name: str) -> list[bytes]:
    """What is kept for a decoder, in order of the names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
