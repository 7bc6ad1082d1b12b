"""Discrete Gaussian noise drawn exactly from a seed: the value x has probability proportional to exp(-x**2 / (2 * variance)).

Rule: a value is a function of key, place and variance alone, on every machine, because a share of noise that has to be
taken out again is drawn a second time by somebody else. So no decision may hang on how a processor rounds.

Method: rejection from a staircase. The line is cut into blocks of equal width; a block is chosen with probability
proportional to an integer above scale * density everywhere in it, a place in the block evenly, and the place is kept with
probability scale * density / integer. Canonne, Kamath and Steinke (2020, arXiv 2004.00010, algorithm 3) reject from a discrete
Laplace distribution in the same way; here nearly every coin falls clear of the least chance in its block, so that no
exponential is needed. A coin too close to its chance for float64 is settled by rational bounds and as many further
bits as it takes. What is left out is the tail beyond noise_shares.TAIL_DEVIATIONS; its weight (`noise_shares.left_out`) is
the accountant's to add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg.errors import LocalError
from secagg.keystream import CHUNK_WORDS, Door, Stream, buffer_of
from secagg.noise_shares import BLOCKS_A_DEVIATION, block_width, blocks_a_side
from secagg.params import WORD_BYTES, Integers

Draws: TypeAlias = NDArray[np.int32]

SLOT_BITS = 14  # bits 0 to 13 of a word choose a block
SLOTS = 1 << SLOT_BITS
PLACE_BITS = 16  # bits 16 to 31 choose a place in a block
COIN_BITS = 32  # bits 32 to 63 are the coin
COINS = 1 << COIN_BITS
LARGEST_DEVIATION = BLOCKS_A_DEVIATION << PLACE_BITS  # a million steps: more than lanes of 32 bits leave room for
SMALLEST_VARIANCE = Fraction(1, 4)  # a share below it is mostly zeros
RUN_VALUES = CHUNK_WORDS  # values under one nonce: runs are drawn independently of each other
MORE_WORDS = 2048  # read at a time for the last values of a run
FLOAT_ERROR = 2.0**-40  # relative, of a chance in float64: exponents below 128 and four roundings keep to 2**-45
DIGITS = 60  # of the decimal numbers that the staircase is made from
_SLOT_MASK = np.uint64(SLOTS - 1)
BLOCK_BITS = 128  # a coin that is still open reads one cipher block more


@dataclass(frozen=True, slots=True, repr=False)
class Staircase:
    """Tables of one variance by slot, which is what a word's lowest bits choose; slots to spare belong to no block."""

    variance: Fraction
    width: int  # of a block, a power of two
    scale: int  # of the density at zero
    first: Draws  # the block's lowest value
    sure: NDArray[np.uint32]  # coins below it are good everywhere in the block
    last: NDArray[np.uint32]  # coins above it are good nowhere
    weight: Integers  # height of the stair; 0 in slots to spare


@lru_cache(maxsize=32)
def staircase(variance: Fraction) -> Staircase:
    """Tables for one variance; LocalError where words of 64 bits do not serve it."""
    if not SMALLEST_VARIANCE <= variance <= LARGEST_DEVIATION**2:
        raise LocalError(f"the variance of discrete noise lies between 1/4 and {LARGEST_DEVIATION}**2, got {float(variance):g}")
    width = block_width(variance)
    half = blocks_a_side(variance, width)
    starts = [block * width for block in range(-half, half)]
    highest = [density(max(start, -start - width + 1, 0), variance) for start in starts]
    lowest = [density(max(start + width - 1, -start), variance) for start in starts]
    scale = int((SLOTS - len(starts)) / sum(highest))
    weights = [int(scale * height) + 1 for height in highest]
    slots = [*weights, SLOTS - sum(weights)]
    sure = [int(COINS * scale * height / weight) for height, weight in zip(lowest, weights, strict=True)]
    last = [int(COINS * scale * height / weight) for height, weight in zip(highest, weights, strict=True)]
    return Staircase(
        variance,
        width,
        scale,
        np.repeat(np.array([*starts, 0], dtype=np.int32), slots),
        np.repeat(np.array([*sure, 0], dtype=np.uint32), slots),
        np.repeat(np.array([*last, 0], dtype=np.uint32), slots),
        np.repeat(np.array([*weights, 0], dtype=np.int64), slots),
    )


def density(value: int, variance: Fraction, digits: int = DIGITS) -> Decimal:
    """exp(-value**2 / (2 * variance)), off by less than 10**(3 - digits) of itself; the same on every machine."""
    context = Context(prec=digits)
    exponent = context.divide(Decimal(-value * value * variance.denominator), Decimal(2 * variance.numerator))
    return context.exp(exponent)


class NoiseStream:
    """Discrete Gaussian values under one key, which serves nothing else; for one thread.

    Run r are values r * RUN_VALUES onwards, and is a function of key, variance and r: word i stands for value i, and each
    that is not taken is replaced, in order, by the next of the words behind that is.
    """

    __slots__ = ("_coins", "_key", "_places", "_slots", "_stairs", "_stream", "_words")

    def __init__(self, key: bytes, variance: Fraction, door: Door = Door.GCM) -> None:
        self._key = key
        self._stairs = staircase(variance)
        self._stream = Stream(key, door=Door.GCM if door is Door.XTS else door)  # a run is read once from its beginning
        self._words = buffer_of(RUN_VALUES, 0)
        self._slots = buffer_of(RUN_VALUES, 1)
        self._coins = np.empty(RUN_VALUES, dtype=np.uint32)
        self._places = np.empty(RUN_VALUES, dtype=np.int32)

    def values(self, count: int) -> Draws:
        """The first `count` values."""
        return np.concatenate([*(run.copy() for run in self.runs(count)), np.empty(0, dtype=np.int32)])

    def runs(self, count: int) -> Iterator[Draws]:
        """The same, run by run, each valid until the next is asked for."""
        out: Draws = np.empty(RUN_VALUES, dtype=np.int32)
        for number in range(-(-count // RUN_VALUES)):
            self.run_into(number, out)
            yield out[: count - number * RUN_VALUES]

    def run_into(self, number: int, out: Draws) -> None:
        """Write all values of one run."""
        self._stream.seek(number)
        missing = np.flatnonzero(~self._propose(RUN_VALUES, (number, 0), out))
        spare: Draws = np.empty(MORE_WORDS, dtype=np.int32)
        read = RUN_VALUES
        while len(missing):
            taken = spare[self._propose(MORE_WORDS, (number, read), spare)][: len(missing)]
            out[missing[: len(taken)]] = taken
            missing, read = missing[len(taken) :], read + MORE_WORDS

    def _propose(self, count: int, place: tuple[int, int], values: Draws) -> NDArray[np.bool_]:
        """A value for each of the next words, and whether it is taken."""
        stairs, words, slots = self._stairs, self._words[:count], self._slots[:count]
        self._stream.fill(words.data.cast("B"))
        np.bitwise_and(words, _SLOT_MASK, out=slots)
        chosen = slots.view(np.int64)
        stairs.first.take(chosen, out=values, mode="wrap")
        if stairs.width > 1:
            within = self._places[:count]
            np.copyto(within, words.view("<u2")[1::4])
            np.bitwise_and(within, np.int32(stairs.width - 1), out=within)
            np.add(values, within, out=values)
        coins = words.view("<u4")[1::2]
        good = coins < stairs.sure.take(chosen, out=self._coins[:count], mode="wrap")
        unsure = np.flatnonzero(~good)
        unsure = unsure[coins[unsure] <= stairs.last[chosen[unsure]]]
        good[unsure] = self._tossed(values[unsure], coins[unsure], stairs.weight[chosen[unsure]], place, unsure)
        return good

    def _tossed(
        self, values: Draws, coins: NDArray[np.uint32], weights: Integers, place: tuple[int, int], unsure: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Whether each coin is below its value's chance; those that float64 cannot tell are settled exactly."""
        chances = np.square(values.astype(np.float64)) * (-0.5 / float(self._stairs.variance))
        np.exp(chances, out=chances)
        with np.errstate(divide="ignore", invalid="ignore"):  # slots to spare
            chances *= COINS * self._stairs.scale / weights
        chances[weights == 0] = -1.0
        good = coins + 1.0 <= chances * (1 - FLOAT_ERROR)
        run, first_word = place
        for at in np.flatnonzero(~good & (coins < chances * (1 + FLOAT_ERROR))):
            bits = self._further_bits(run, first_word + int(unsure[at]))
            good[at] = below_chance(int(coins[at]), bits, int(values[at]), int(weights[at]), self._stairs)
        return good

    def _further_bits(self, run: int, word: int) -> Iterator[int]:
        """Blocks of a coin beyond its first bits, from lanes that no words come from."""
        lane = 1
        while True:
            stream = Stream(self._key, door=Door.CTR)
            stream.seek(run, lane, word)
            yield int.from_bytes(stream.words(BLOCK_BITS // (8 * WORD_BYTES)).tobytes(), "big")
            lane += 1


def below_chance(coin: int, further: Iterator[int], value: int, weight: int, stairs: Staircase) -> bool:
    """Whether the number 0.coin further... in binary is below scale * density(value) / weight; exact."""
    bits, digits = COIN_BITS, DIGITS
    while True:
        chance = Fraction(density(value, stairs.variance, digits)) * stairs.scale / weight
        error = chance / 10 ** (digits - 3)
        if Fraction(coin + 1, 1 << bits) <= chance - error:
            return True
        if Fraction(coin, 1 << bits) >= chance + error:
            return False
        coin = coin << BLOCK_BITS | next(further)
        bits, digits = bits + BLOCK_BITS, digits + DIGITS
