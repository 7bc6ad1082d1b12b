"""Where a study's training takes its secret randomness from.

Rule: seeded draws are for public and synthetic patients only. A seed that is written down lets anybody subtract the noise, so
on private patients every draw comes from the operating system and two runs of one cell differ.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from study.bench.cells import DataKind
from study.bench.task import Draws, Rand

SEED_LABEL = b"hospital-secagg study draws v1\n"


def draws_for(kind: DataKind, seed: int) -> Draws:
    """Seeded by (seed, hospital, round) on data that nobody has to protect; the operating system's otherwise."""
    if kind is DataKind.PRIVATE:
        return lambda _uri, _round: os.urandom
    return lambda uri, number: seeded(f"{seed}\n{uri}\n{number}")


def seeded(name: str) -> Rand:
    """An endless reproducible stream, AES-256-CTR under a key that follows from `name`."""
    key = hashlib.sha256(SEED_LABEL + name.encode()).digest()
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: stream.update(bytes(count))
