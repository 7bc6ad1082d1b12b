"""Known answers from the standards, for the library's doors and for the plain implementation that judges it."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_primitives import (
    aes_block,
    aes_round_keys,
    counter_stream,
    gcm_seal,
    hkdf,
    p256_public_der,
    p256_sign,
    x25519,
    x25519_public,
)
from secagg_round import Federation, small_params

from secagg import Door, LocalError, RemoteError, faster_door, identity, keys, keystream
from secagg.encoding import encode
from secagg.keystream import Stream

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "primitives.json").read_text())
CONTEXT = bytes(range(32))


def unhex(case):
    return {name: bytes.fromhex(value) if isinstance(value, str) else value for name, value in case.items() if name != "source"}


@pytest.mark.parametrize("case", VECTORS["aes_ctr"], ids=lambda case: case["source"])
def test_nist_counter_mode(case):
    case = unhex(case)
    encryptor = Cipher(algorithms.AES128(case["key"]), modes.CTR(case["counter"])).encryptor()
    assert encryptor.update(case["plain"]) == case["cipher"]
    round_keys, first = aes_round_keys(case["key"]), int.from_bytes(case["counter"], "big")
    blocks = b"".join(aes_block(round_keys, (first + k).to_bytes(16, "big")) for k in range(len(case["plain"]) // 16))
    assert bytes(a ^ b for a, b in zip(blocks, case["plain"], strict=True)) == case["cipher"]


@pytest.mark.parametrize("case", VECTORS["aes_block"], ids=lambda case: case["source"])
def test_fips_197(case):
    case = unhex(case)
    assert aes_block(aes_round_keys(case["key"]), case["plain"]) == case["cipher"]
    xts = Cipher(algorithms.AES(case["key"] + keystream.TWEAK_KEY), modes.XTS(keystream.NO_TWEAK)).encryptor()
    assert xts.update(case["plain"]) == case["cipher"]


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("case", VECTORS["keystream"], ids=lambda case: case["source"])
def test_keystream_bytes_are_pinned(case, door):
    case = unhex(case)
    stream = Stream(case["key"], case["segment"], case["lane"], door)
    stream.seek(case["segment"], case["lane"], case["block"])
    assert stream.words(len(case["stream"]) // 8).tobytes() == case["stream"]


@pytest.mark.parametrize("case", VECTORS["x25519"], ids=lambda case: case["source"])
def test_rfc_7748(case):
    case = unhex(case)
    assert keys.agree(keys.private_key(case["scalar"]), case["point"], blame="peer") == case["result"]
    assert x25519(case["scalar"], case["point"]) == case["result"]


@pytest.mark.parametrize("case", VECTORS["x25519_iterated"], ids=lambda case: case["source"])
def test_rfc_7748_iterated(case):
    """Each result is the next scalar, and the scalar before it the next point."""
    case = unhex(case)
    scalar, point = case["start"], case["start"]
    for _ in range(case["iterations"]):
        scalar, point = keys.agree(keys.private_key(scalar), point, blame="peer"), scalar
    assert scalar == case["result"]


@pytest.mark.parametrize("case", VECTORS["hkdf"], ids=lambda case: case["source"])
def test_rfc_5869(case):
    case = unhex(case)
    library = HKDF(algorithm=hashes.SHA256(), length=len(case["output"]), salt=case["salt"], info=case["info"])
    assert library.derive(case["input"]) == case["output"]
    assert hkdf(case["input"], case["salt"], case["info"], len(case["output"])) == case["output"]


@pytest.mark.parametrize("case", VECTORS["ecdsa"], ids=lambda case: case["source"])
def test_rfc_6979(case):
    message = case["message"].encode()
    scalar, expected = int(case["scalar"], 16), (int(case["r"], 16), int(case["s"], 16))
    library = ec.derive_private_key(scalar, ec.SECP256R1())
    assert decode_dss_signature(library.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))) == expected
    assert decode_dss_signature(p256_sign(scalar, message)) == expected
    assert identity.public_der(library) == p256_public_der(scalar)


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=40), st.binary(max_size=40))
@settings(max_examples=15)
def test_plain_gcm_is_gcm(key, plain, aad):
    assert gcm_seal(key, bytes(12), plain, aad) == AESGCM(key).encrypt(bytes(12), plain, aad)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
@settings(max_examples=5)
def test_plain_x25519_is_x25519(one, other):
    public = keys.public_of(keys.private_key(other))
    assert public == x25519_public(other)
    assert keys.agree(keys.private_key(one), public, blame="peer") == x25519(one, public)


LOW_ORDER = [0, 1, 325606250916557431795983626356110631294008115727848805560023387167927233504, 2**255 - 20]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_keys_that_everybody_can_agree_with_are_refused(point):
    with pytest.raises(RemoteError) as caught:
        keys.agree(keys.private_key(bytes(range(32))), point.to_bytes(32, "little"), blame="peer")
    assert (caught.value.party, caught.value.code) == ("peer", "weak-key")


@pytest.mark.parametrize("point", [2**255 - 19, 2**255 - 1, 2**255 + 9])
def test_second_spellings_of_a_key_are_refused(point):
    keys.check_public((2**255 - 20).to_bytes(32, "little"), blame="peer")
    with pytest.raises(RemoteError, match="canonical"):
        keys.check_public(point.to_bytes(32, "little"), blame="peer")


def test_every_use_and_party_has_its_own_key():
    params = Federation(small_params()).params
    other = Federation(small_params(session=bytes(16))).params
    seed = bytes(32)
    derived = {
        keys.self_key(params, seed, "anna"),
        keys.self_key(params, seed, "bern"),
        keys.self_key(other, seed, "anna"),
        keys.rounding_key(params, seed, "anna"),
        *(keys.derive(seed, params.context(), use, 16) for use in keys.Use),
    }
    assert len(derived) == 4 + len(keys.Use)
    with pytest.raises(LocalError):
        keys.private_key(bytes(31))


def test_box_keys_have_a_direction_and_pair_keys_have_none():
    federation = Federation(small_params()).advertise()
    one, other = federation.adverts[:2]
    params, secret = federation.params, bytes(32)
    assert keys.box_key(params, secret, one, other) != keys.box_key(params, secret, other, one)
    assert keys.pair_key(params, secret, one, other) == keys.pair_key(params, secret, other, one)


@pytest.mark.parametrize("change", ["purpose", "context", "statement", "signature", "key"])
def test_a_signature_fits_one_statement_only(change):
    signer, stranger = (ec.derive_private_key(scalar, ec.SECP256R1()) for scalar in (7, 8))
    signature = identity.sign(signer, identity.Purpose.ADVERT, CONTEXT, b"statement")
    given_args = [identity.public_der(signer), identity.Purpose.ADVERT, CONTEXT, b"statement", signature]
    identity.verify(*given_args, blame="peer")
    place, value = {
        "key": (0, identity.public_der(stranger)),
        "purpose": (1, identity.Purpose.CONFIRM),
        "context": (2, bytes(32)),
        "statement": (3, b"statemenT"),
        "signature": (4, signature[:-1] + bytes([signature[-1] ^ 1])),
    }[change]
    given_args[place] = value
    with pytest.raises(RemoteError) as caught:
        identity.verify(*given_args, blame="peer")
    assert (caught.value.party, caught.value.code) == ("peer", "bad-signature")


def test_a_tls_signature_is_never_a_protocol_signature():
    signer = ec.derive_private_key(7, ec.SECP256R1())
    bare = signer.sign(encode(CONTEXT, b"statement"), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(RemoteError):
        identity.verify(identity.public_der(signer), identity.Purpose.ADVERT, CONTEXT, b"statement", bare, blame="peer")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), None])
def test_only_p256_keys_are_loaded(curve):
    der = b"no key" if curve is None else identity.public_der(ec.derive_private_key(7, curve))
    with pytest.raises(LocalError):
        identity.load_public_key(der)


def clock_of(spent):
    """A clock that is read before and after each trial of each door; trials of one door take the given times."""
    return iter([reading for times in spent for taken in times for reading in (0, taken)]).__next__


@pytest.mark.parametrize("fastest", list(Door))
def test_the_fastest_door_is_chosen_by_the_given_clock(fastest):
    """By its best trial: another process may have had the core during the others."""
    spent = [[9, 9, 5 if door is fastest else 6, 9] for door in Door]
    assert faster_door(clock_of(spent)) is fastest


def test_a_door_that_gives_other_bytes_or_none_is_left_out(monkeypatch):
    spent = [[5] * keystream.TRIALS for _ in Door]
    monkeypatch.setattr(keystream, "_XTS", modes.XTS(bytes(16)))
    assert Stream(bytes(16), door=Door.XTS).words(2).tolist() != Stream(bytes(16), door=Door.CTR).words(2).tolist()
    assert faster_door(clock_of([spent[0], spent[1]])) is Door.CTR  # no reading is taken for the third

    class NotBuiltIn(modes.XTS):
        def validate_for_algorithm(self, algorithm):
            raise UnsupportedAlgorithm("not in this build")

    monkeypatch.setattr(keystream, "_XTS", NotBuiltIn(keystream.NO_TWEAK))
    assert faster_door(clock_of([spent[0], [4] * keystream.TRIALS])) is Door.GCM


def test_the_tweak_of_xts_is_zero():
    """With it XTS is the cipher itself: AES(key, P ^ 0) ^ 0, block by block, whatever came before."""
    assert Cipher(algorithms.AES128(keystream.TWEAK_KEY), modes.ECB()).encryptor().update(keystream.NO_TWEAK) == bytes(16)
    key, blocks = bytes(range(16)), bytes(range(64))
    xts = Cipher(algorithms.AES(key + keystream.TWEAK_KEY), modes.XTS(keystream.NO_TWEAK)).encryptor()
    plain = b"".join(aes_block(aes_round_keys(key), blocks[start : start + 16]) for start in range(0, 64, 16))
    assert xts.update(blocks) == plain
    assert xts.update(blocks) == plain


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("block", [0, 1, 16_382, 16_384, 3 * 16_384, 4 * 16_384 - 1, 8 * 16_384 - 3])
def test_any_block_of_a_segment_is_found(door, block):
    """At chunk borders counters carry from byte to byte."""
    key, segment, lane = bytes(range(16)), 2**33 + 5, 3
    stream = Stream(key, segment, lane, door)
    stream.seek(segment, lane, block)
    nonce = lane.to_bytes(4, "big") + segment.to_bytes(8, "big")
    assert stream.words(6).tobytes() == counter_stream(key, nonce, block + 2, 48)
    stream.seek(segment, lane, block // 16_384 * 16_384)
    words = stream.words(2 * 16_384)
    assert words[-4:].tobytes() == counter_stream(key, nonce, block // 16_384 * 16_384 + 16_384, 32)


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("count", [1, 2, 3, 32_767, 32_769])
def test_odd_ends_of_a_vector_have_the_same_words(door, count):
    assert np.array_equal(
        Stream(bytes(16), 7, 0, door).words(count), Stream(bytes(16), 7, 0, Door.CTR).words(count + 1)[:count]
    )
