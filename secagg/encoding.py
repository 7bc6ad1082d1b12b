"""One injective encoding for everything that is hashed, signed or fed to a key derivation (README, Encoding).

Every field carries its length, so no two different lists of fields give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

Field = bytes | str | int


def encode(*fields: Field) -> bytes:
    """Concatenate the fields, each as a 4-byte big-endian length and its bytes; an integer is 8 bytes big-endian."""
    return b"".join(_one(field) for field in fields)


def encode_list(items: Iterable[Field]) -> bytes:
    """A list as its count and its fields."""
    fields = tuple(items)
    return encode(len(fields), *fields)


def digest(label: str, *fields: Field) -> bytes:
    """SHA-256 of the encoded label and fields."""
    return hashlib.sha256(encode(label, *fields)).digest()


def _one(field: Field) -> bytes:
    if isinstance(field, int):
        data = field.to_bytes(8, "big")
    elif isinstance(field, str):
        data = field.encode()
    else:
        data = field
    return len(data).to_bytes(4, "big") + data
