"""Secret randomness of local training: Gaussian noise, Poisson coins, and one generator for each patient.

Rule: nothing here takes a seed from a plan or a study. Every value comes from a key drawn from the operating system
(`rand`, os.urandom in a node), through AES-256-CTR (noise) or HMAC-SHA256 (coins). Whoever could predict either could
subtract the noise or undo the sampling, so numpy's and torch's own generators are not used for them.

Normals: Box and Muller (1958) on two uniforms of 53 bits in float64. The largest value is sqrt(2 * 53 * ln 2) = 8.57;
what the tail beyond it would weigh, 1e-17 per value, belongs to the stated assumptions on floating point (TRAINING.md).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32  # AES-256, HMAC-SHA256
BLOCK_VALUES = 1 << 16  # normals made at a time: 512 KiB of keystream, stays in the second-level cache
ZEROS = memoryview(bytes(8 * BLOCK_VALUES))  # counter mode turns them into keystream
UNIFORM_STEP = 2.0**-53  # spacing of the uniforms: all that a float64 in [0, 1) resolves
ROUNDING_KEY_BYTES = 16  # AES-128: secagg.keystream
DIGEST_RANGE = 1 << 64  # a coin reads 64 bits of one digest

Rand = Callable[[int], bytes]
Normals = NDArray[np.float64]


class NormalStream:
    """Endless standard normals under one secret key; a fresh key for each stream, a stream for each round."""

    def __init__(self, rand: Rand) -> None:
        key = rand(KEY_BYTES)
        if len(key) != KEY_BYTES:
            raise ValueError(f"the random source gave {len(key)} of {KEY_BYTES} bytes: it must return what it is asked for")
        # A zero counter block is safe because the key is used for this stream alone.
        self._keystream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def draw(self, count: int) -> Normals:
        """The next `count` independent standard normals."""
        return np.concatenate([*self.blocks(count), np.empty(0)])

    def blocks(self, count: int) -> Iterator[Normals]:
        """The same, a block at a time."""
        for start in range(0, count, BLOCK_VALUES):
            wanted = min(BLOCK_VALUES, count - start)
            block = np.empty(wanted + wanted % 2, dtype=np.float64)
            self._fill(block)
            yield block[:wanted]

    def _fill(self, out: Normals) -> None:
        pairs = len(out) // 2
        words = np.frombuffer(self._keystream.update(ZEROS[: 16 * pairs]), dtype="<u8") >> np.uint64(11)
        uniform = words.astype(np.float64)  # integers below 2**53, exact
        radius, angle = uniform[:pairs], uniform[pairs:]
        radius += 1.0
        radius *= UNIFORM_STEP  # (0, 1]: the logarithm is finite
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= 2.0 * np.pi * UNIFORM_STEP
        for function, half in ((torch.cos, out[:pairs]), (torch.sin, out[pairs:])):  # numpy's are four times slower
            function(torch.from_numpy(angle), out=torch.from_numpy(half))
            np.multiply(half, radius, out=half)


@dataclass(frozen=True, slots=True)
class StepCoins:
    """All secret choices of one step, by patient.

    Each is a function of the step's key and the patient's name alone, so that adding or removing another patient
    changes none of them.
    """

    key: bytes = field(repr=False)

    @classmethod
    def fresh(cls, rand: Rand) -> StepCoins:
        """Coins under a new key."""
        return cls(rand(KEY_BYTES))

    def drawn(self, patient: str, inverse_rate: int) -> bool:
        """True with probability exactly 1 / inverse_rate: 64-bit values past the last whole multiple are drawn again."""
        limit = DIGEST_RANGE - DIGEST_RANGE % inverse_rate
        attempt = 0
        while True:
            value = int.from_bytes(self._digest(f"draw {attempt}", patient)[:8], "little")
            if value < limit:
                return value % inverse_rate == 0
            attempt += 1

    def generator(self, patient: str) -> np.random.Generator:
        """The patient's own generator for patches and augmentation; it hides nothing that the noise must cover."""
        return np.random.Generator(np.random.PCG64(int.from_bytes(self._digest("patches", patient), "little")))

    def rounding_key(self, patient: str) -> bytes:
        """Key of the random bits that round this patient's gradient to whole numbers; it serves nothing else."""
        return self._digest("rounding", patient)[:ROUNDING_KEY_BYTES]

    def _digest(self, purpose: str, patient: str) -> bytes:
        return hmac.new(self.key, f"hospital-secagg {purpose}\n{patient}".encode(), hashlib.sha256).digest()
