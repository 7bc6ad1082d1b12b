"""AES, GCM, X25519, P-256 and HKDF in plain Python integers, from the standards' own text. Slow, and for tests only.

Nothing of `secagg` and no cryptographic library but hashlib and hmac is imported, so that an error in either shows.
"""

from __future__ import annotations

import hashlib
import hmac

# --- AES-128 (FIPS 197), encryption only ---------------------------------------------------------------------------


def _gf(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _sbox_entry(value: int) -> int:
    inverse = next((c for c in range(256) if _gf(value, c) == 1), 0)
    out = 0x63
    for shift in range(5):
        out ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
    return out


SBOX = [_sbox_entry(v) for v in range(256)]
DOUBLE = [_gf(v, 2) for v in range(256)]


def aes_round_keys(key: bytes) -> list[list[int]]:
    words = [list(key[i : i + 4]) for i in range(0, 16, 4)]
    rcon = 1
    for i in range(4, 44):
        word = list(words[i - 1])
        if i % 4 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= rcon
            rcon = DOUBLE[rcon]
        words.append([a ^ b for a, b in zip(words[i - 4], word, strict=True)])
    return [[byte for word in words[i : i + 4] for byte in word] for i in range(0, 44, 4)]


def aes_block(round_keys: list[list[int]], block: bytes) -> bytes:
    state = [a ^ b for a, b in zip(block, round_keys[0], strict=True)]
    for number in range(1, 11):
        state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]  # SubBytes and ShiftRows
        if number < 10:
            mixed = []
            for c in range(0, 16, 4):
                column = state[c : c + 4]
                every = column[0] ^ column[1] ^ column[2] ^ column[3]
                mixed += [column[i] ^ every ^ DOUBLE[column[i] ^ column[(i + 1) % 4]] for i in range(4)]
            state = mixed
        state = [a ^ b for a, b in zip(state, round_keys[number], strict=True)]
    return bytes(state)


def counter_stream(key: bytes, nonce: bytes, first: int, size: int) -> bytes:
    """AES-128 of nonce || 32-bit counter, `size` bytes."""
    round_keys = aes_round_keys(key)
    blocks = (aes_block(round_keys, nonce + (first + k).to_bytes(4, "big")) for k in range(-(-size // 16)))
    return b"".join(blocks)[:size]


# --- GCM (NIST SP 800-38D), 96-bit nonce ---------------------------------------------------------------------------


def _ghash_multiply(x: int, y: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = (y >> 1) ^ (0xE1 << 120 if y & 1 else 0)
    return product


def gcm_seal(key: bytes, nonce: bytes, plain: bytes, aad: bytes) -> bytes:
    """Ciphertext and 16-byte tag."""
    round_keys = aes_round_keys(key)
    hash_key = int.from_bytes(aes_block(round_keys, bytes(16)), "big")
    cipher = bytes(a ^ b for a, b in zip(plain, counter_stream(key, nonce, 2, len(plain)), strict=True))
    padded = b"".join(part + bytes(-len(part) % 16) for part in (aad, cipher))
    padded += (8 * len(aad)).to_bytes(8, "big") + (8 * len(cipher)).to_bytes(8, "big")
    state = 0
    for start in range(0, len(padded), 16):
        state = _ghash_multiply(state ^ int.from_bytes(padded[start : start + 16], "big"), hash_key)
    tag = state ^ int.from_bytes(counter_stream(key, nonce, 1, 16), "big")
    return cipher + tag.to_bytes(16, "big")


# --- X25519 (RFC 7748, section 5) ----------------------------------------------------------------------------------

FIELD = 2**255 - 19


def x25519(private: bytes, public: bytes) -> bytes:
    k = int.from_bytes(private, "little") & ~7 & ((1 << 254) - 1) | 1 << 254
    u = int.from_bytes(public, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a % FIELD, c * b % FIELD, a * a % FIELD, b * b % FIELD
        e = aa - bb
        x3, z3 = pow(da + cb, 2, FIELD), u * pow(da - cb, 2, FIELD) % FIELD
        x2, z2 = aa * bb % FIELD, e * (aa + 121665 * e) % FIELD
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, FIELD - 2, FIELD) % FIELD).to_bytes(32, "little")


def x25519_public(private: bytes) -> bytes:
    return x25519(private, (9).to_bytes(32, "little"))


# --- HKDF-SHA256 (RFC 5869) ----------------------------------------------------------------------------------------


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    block, out = b"", b""
    for number in range(1, -(-size // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), "sha256")
        out += block
    return out[:size]


# --- ECDSA on P-256 with SHA-256 (FIPS 186-5), nonces of RFC 6979 ---------------------------------------------------

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = tuple[int, int] | None
SPKI_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")


def _add(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P) % P
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def _times(k: int, point: Point) -> Point:
    result: Point = None
    while k:
        if k & 1:
            result = _add(result, point)
        point = _add(point, point)
        k >>= 1
    return result


def p256_public_der(scalar: int) -> bytes:
    x, y = _times(scalar, G)
    return SPKI_PREFIX + b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")


def p256_sign(scalar: int, message: bytes) -> bytes:
    hashed = hashlib.sha256(message).digest()
    z = int.from_bytes(hashed, "big")
    k = _rfc6979_nonce(scalar, (z % N).to_bytes(32, "big"))
    r = _times(k, G)[0] % N
    s = pow(k, -1, N) * (z + r * scalar) % N
    body = _der_integer(r) + _der_integer(s)
    return b"\x30" + bytes([len(body)]) + body


def _rfc6979_nonce(scalar: int, hashed: bytes) -> int:
    seed = scalar.to_bytes(32, "big") + hashed
    value, key = b"\x01" * 32, bytes(32)
    for mark in (b"\x00", b"\x01"):
        key = hmac.digest(key, value + mark + seed, "sha256")
        value = hmac.digest(key, value, "sha256")
    while True:
        value = hmac.digest(key, value, "sha256")
        if 0 < int.from_bytes(value, "big") < N:
            return int.from_bytes(value, "big")
        key = hmac.digest(key, value + b"\x00", "sha256")
        value = hmac.digest(key, value, "sha256")


def _der_integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return b"\x02" + bytes([len(data)]) + data
