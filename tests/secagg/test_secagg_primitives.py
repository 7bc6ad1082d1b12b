"""Known answers from the standards, for the library's doors and for the plain implementation that judges it."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_primitives import aes_block, aes_round_keys, gcm_seal, hkdf, p256_public_der, p256_sign, x25519, x25519_public
from secagg_round import Federation, small_params

from secagg import Door, LocalError, RemoteError, faster_door, identity, keys
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


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("case", VECTORS["keystream"], ids=lambda case: case["source"])
def test_keystream_bytes_are_pinned(case, door):
    case = unhex(case)
    words = Stream(case["key"], case["segment"], case["lane"], door).words(len(case["stream"]) // 8)
    assert words.tobytes() == case["stream"]


@pytest.mark.parametrize("case", VECTORS["x25519"], ids=lambda case: case["source"])
def test_rfc_7748(case):
    case = unhex(case)
    assert keys.agree(keys.private_key(case["scalar"]), case["point"], blame="peer") == case["result"]
    assert x25519(case["scalar"], case["point"]) == case["result"]


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


def test_the_faster_door_is_chosen_by_the_given_clock():
    ticks = {"gcm": iter([0, 9, 0, 9, 0, 9]), "ctr": iter([0, 5, 0, 7, 0, 6])}
    readings = iter([*ticks["gcm"], *ticks["ctr"]])
    assert faster_door(lambda: next(readings)) is Door.CTR
    readings = iter([0, 4, 0, 9, 0, 9, 0, 5, 0, 7, 0, 6])
    assert faster_door(lambda: next(readings)) is Door.GCM
