"""What sparse sessions add to the wire: it comes back as it went, and a complete session's bytes know nothing of it."""

from __future__ import annotations

import pytest

from proto import federation_pb2 as pb
from proto import wire
from proto.wire import WireError
from secagg import Advert, Box, BoxDigests, RemoteError, Revealed, RevealedShare, ShareKind, ShareSet, UploadSeal
from secagg.messages import NO_DIGESTS

KEYS = (b"1" * 32, b"2" * 32, b"3" * 32)
SIGNATURE = b"s" * 70


def test_neighbours_come_back() -> None:
    advert = Advert("secagg://s/hospital/a", *KEYS, SIGNATURE, (0, 5, 127, 128, 16_383))
    data = wire.to_advert(advert).SerializeToString()
    assert wire.from_advert(pb.Advert.FromString(data)) == advert
    assert len(data) == len(wire.to_advert(Advert(advert.party, *KEYS, SIGNATURE)).SerializeToString()) + 2 + 3 + 2 + 2


def test_a_summary_comes_back_in_place_of_boxes() -> None:
    stub = ShareSet("secagg://s/hospital/a", (), NO_DIGESTS, SIGNATURE, b"d" * 32)
    assert wire.from_share_set(pb.ShareSet.FromString(wire.to_share_set(stub).SerializeToString())) == stub
    with pytest.raises(RemoteError, match="not 32 bytes"):
        wire.from_share_set(pb.ShareSet(party="a", signature=SIGNATURE, summary=b"d" * 31))


def test_seals_come_back_by_name() -> None:
    seals = {"a": UploadSeal(b"d" * 32, SIGNATURE), "b": UploadSeal(b"e" * 32, SIGNATURE)}
    messages = [wire.to_seal(party, seal) for party, seal in seals.items()]
    assert wire.from_seals(pb.Confirm.FromString(pb.Confirm(seals=messages).SerializeToString()).seals) == seals
    for bad in ([messages[0], messages[0]], [pb.Seal(party="", digest=b"d" * 32)], [pb.Seal(party="a", digest=b"d")]):
        with pytest.raises((WireError, RemoteError)):
            wire.from_seals(bad)


def test_a_complete_session_sends_the_bytes_it_always_sent() -> None:
    """Field by field as protobuf encodes them: number and type, length, bytes."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    advert = wire.to_advert(Advert("a", *KEYS, SIGNATURE)).SerializeToString()
    assert advert == b"".join(field(number, data) for number, data in enumerate((b"a", *KEYS, SIGNATURE), 1))
    digest = field(1, b"b") + field(2, b"d" * 32)
    share_set = ShareSet("a", (Box("b", b"x" * 90),), BoxDigests(("b",), b"d" * 32), SIGNATURE)
    box = field(1, b"b") + field(2, b"x" * 90)
    expected = field(1, b"a") + field(2, box) + field(3, digest) + field(4, SIGNATURE)
    assert wire.to_share_set(share_set).SerializeToString() == expected
    confirm = pb.Confirm(session=b"i" * 16, survivors=["a", "b"], seals=[]).SerializeToString()
    assert confirm == field(1, b"i" * 16) + field(2, b"a") + field(2, b"b")


def test_what_shared_noise_adds_comes_back() -> None:
    advert = Advert("secagg://s/hospital/a", *KEYS, SIGNATURE, (), (b"4" * 32, b"5" * 32))
    assert wire.from_advert(pb.Advert.FromString(wire.to_advert(advert).SerializeToString())) == advert
    shares = (
        RevealedShare("a", ShareKind.SELF_MASK_SEED, b"6" * 33, b"7" * 33),
        RevealedShare("b", ShareKind.MASK_KEY, b"8" * 33),
    )
    message = wire.to_revealed(Revealed(shares)).SerializeToString()
    assert wire.from_revealed(pb.RevealedShares.FromString(message)).shares == shares


def test_noise_of_the_wrong_kind_is_refused_on_arrival() -> None:
    with pytest.raises(WireError, match="noise commitment has 31 bytes"):
        wire.from_advert(
            pb.Advert(
                party="a",
                seal_key=KEYS[0],
                mask_key=KEYS[1],
                seed_commitment=KEYS[2],
                signature=b"s",
                noise_commitments=[b"4" * 31],
            )
        )
    with pytest.raises(RemoteError, match="not in the sum"):
        wire.from_revealed(pb.RevealedShares(shares=[pb.RevealedShare(peer="b", mask_key=b"8" * 33, noise=b"7" * 33)]))
