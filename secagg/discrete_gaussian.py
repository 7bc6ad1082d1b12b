"""Discrete Gaussian noise drawn exactly from a seed: the value x has probability proportional to exp(-x**2 / (2 * variance)).

Rule: a value is a function of key, place and variance alone, on every machine, because a share of noise that has to be
taken out again is drawn a second time by somebody else. So no decision may hang on how a processor rounds.

Method: rejection from a staircase. The line is cut into blocks of equal width, and slots are dealt to them: to each the whole
part of scale * least density in it, whose every place is taken, and as many more as lift it above scale * largest density,
where a place is taken with the probability that is missing. Canonne, Kamath and Steinke (2020, arXiv 2004.00010, algorithm 3)
reject from a discrete Laplace distribution in the same way; here few values need a coin and an exponential at all. A coin too
close to its chance for float64 is settled by rational bounds and as many further bits as it takes. What is left out is the
tail beyond noise_shares.TAIL_DEVIATIONS; its weight (`noise_shares.left_out`) is the accountant's to add.
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
from secagg.noise_shares import LARGEST_DEVIATION, block_width, blocks_a_side, is_drawable
from secagg.params import WORD_BYTES, Integers

Draws: TypeAlias = NDArray[np.int32]

SLOT_BITS = 15  # bits 0 to 14 of a word choose a slot
SLOTS = 1 << SLOT_BITS
COIN_BITS = 32  # bits 32 to 63 are the coin
COINS = 1 << COIN_BITS
RUN_VALUES = CHUNK_WORDS  # values under one nonce: runs are drawn independently of each other
MORE_WORDS = 2048  # read at a time for the last values of a run
FLOAT_ERROR = 2.0**-40  # relative, of a density in float64: exponents below 128 and three roundings keep to 2**-45
DIGITS = 60  # of the decimal numbers that the staircase is made from
_SLOT_MASK = np.uint64(SLOTS - 1)
BLOCK_BITS = 128  # a coin that is still open reads one cipher block more


@dataclass(frozen=True, slots=True, repr=False)
class Staircase:
    """Tables of one variance by slot, which is what a word's lowest bits choose; the last slots belong to no block."""

    variance: Fraction
    width: int  # of a block, a power of two
    scale: int  # slots that a place at zero would have if its block had one
    first: Draws  # the block's lowest value
    sure: int  # slots below it take every place
    floor: Integers  # behind them: slots of the block that do
    weight: Integers  # and slots of the block that toss a coin; 0 for slots of no block


@lru_cache(maxsize=32)
def staircase(variance: Fraction) -> Staircase:
    """Tables for one variance; LocalError where words of 64 bits do not serve it."""
    if not is_drawable(variance):
        raise LocalError(f"the variance of discrete noise lies between 1/4 and {LARGEST_DEVIATION}**2, got {float(variance):g}")
    width = block_width(variance)
    half = blocks_a_side(variance, width)
    starts = np.arange(-half, half, dtype=np.int32) * np.int32(width)
    highest = [density(max(start, -start - width + 1, 0), variance) for start in starts.tolist()]
    lowest = [density(max(start + width - 1, -start), variance) for start in starts.tolist()]
    scale = int((SLOTS - len(starts)) / sum(highest))
    floors = np.array([int(scale * height) for height in lowest])
    tossed = np.array([int(scale * height) + 1 for height in highest]) - floors
    sure, coins = int(floors.sum()), int(tossed.sum())
    first: Draws = np.zeros(SLOTS, dtype=np.int32)
    first[: sure + coins] = np.concatenate([np.repeat(starts, floors), np.repeat(starts, tossed)])
    floor, weight = np.zeros(SLOTS, dtype=np.int64), np.zeros(SLOTS, dtype=np.int64)
    floor[sure : sure + coins] = np.repeat(floors, tossed)
    weight[sure : sure + coins] = np.repeat(tossed, tossed)
    return Staircase(variance, width, scale, first, sure, floor, weight)


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

    __slots__ = ("_key", "_places", "_slots", "_stairs", "_stream", "_words")

    def __init__(self, key: bytes, variance: Fraction, door: Door = Door.GCM) -> None:
        self._key = key
        self._stairs = staircase(variance)
        self._stream = Stream(key, door=Door.GCM if door is Door.XTS else door)  # a run is read once from its beginning
        self._words = buffer_of(RUN_VALUES, 0)
        self._slots = buffer_of(RUN_VALUES, 1)
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
        good = slots < np.uint64(stairs.sure)
        unsure = np.flatnonzero(~good)
        good[unsure] = self._tossed(values[unsure], words.view("<u4")[1::2][unsure], chosen[unsure], place, unsure)
        return good

    def _tossed(
        self, values: Draws, coins: NDArray[np.uint32], slots: Integers, place: tuple[int, int], unsure: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Whether each coin is below its value's chance; those that float64 cannot tell are settled exactly."""
        stairs = self._stairs
        floors, weights = stairs.floor[slots], stairs.weight[slots]
        heights = np.square(values.astype(np.float64)) * (-0.5 / float(stairs.variance))
        np.exp(heights, out=heights)
        per_slot = COINS / np.maximum(weights, 1)
        chances = (heights * stairs.scale - floors) * per_slot
        error = FLOAT_ERROR * stairs.scale * per_slot
        chances[weights == 0] = -np.inf
        good = coins + 1.0 <= chances - error
        run, first_word = place
        for at in np.flatnonzero(~good & (coins < chances + error)):
            bits = self._further_bits(run, first_word + int(unsure[at]))
            good[at] = below_chance(int(coins[at]), bits, int(values[at]), (int(floors[at]), int(weights[at])), stairs)
        return good

    def _further_bits(self, run: int, word: int) -> Iterator[int]:
        """Blocks of a coin beyond its first bits, from lanes that no words come from."""
        lane = 1
        while True:
            stream = Stream(self._key, door=Door.CTR)
            stream.seek(run, lane, word)
            yield int.from_bytes(stream.words(BLOCK_BITS // (8 * WORD_BYTES)).tobytes(), "big")
            lane += 1


def below_chance(coin: int, further: Iterator[int], value: int, slots: tuple[int, int], stairs: Staircase) -> bool:
    """Whether the number 0.coin further... in binary is below (scale * density(value) - floor) / weight; exact.

    `slots` are floor and weight of the value's block.
    """
    bits, digits = COIN_BITS, DIGITS
    floor, weight = slots
    while True:
        height = Fraction(density(value, stairs.variance, digits)) * stairs.scale
        chance, error = (height - floor) / weight, height / weight / 10 ** (digits - 3)
        if Fraction(coin + 1, 1 << bits) <= chance - error:
            return True
        if Fraction(coin, 1 << bits) >= chance + error:
            return False
        coin = coin << BLOCK_BITS | next(further)
        bits, digits = bits + BLOCK_BITS, digits + DIGITS
