"""`python -m benchmarks.shared_noise`: what shared noise costs a hospital, a row for each target; status 1 if one falls short.

Times are CPU seconds of one thread, the smallest of several turns; the two kinds of round take turns in one run. A round's
masking is what a member does between its update and the last byte of its upload: for local noise quantizing and masking, for
shared noise drawing its components, packing and masking. The Gaussian noise of a local round is drawn in training and is
printed beside the rows, on nobody's account.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from time import perf_counter, process_time

import numpy as np

from benchmarks.rows import Row, status, table
from hospital_node.noise import NormalStream
from secagg import Door, Quantizer, RoundParams, faster_door, node
from secagg.discrete_gaussian import NoiseStream
from secagg.identity import public_der
from secagg.noise_shares import SharedNoise
from secagg.params import Integers, Vector
from secagg.policy import policy_of
from secagg.rehearse import _draw_signing_key

LANES = 2
MAY_DROP = 2
DEVIATION = 4096  # steps, of the whole sum
LARGEST_SUM = 1 << 20
DEVIATIONS = (4, 300, 20_000)  # of one component


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is; `quick` ones only show that everything runs."""

    members: int = 20
    values: int = 1_000_000
    drawn: int = 4_000_000
    turns: int = 5


FULL = Sizes()
QUICK = Sizes(7, 20_000, 40_000, 1)


def ready(params: RoundParams, me: str) -> node.MaskReady:
    """One member of a session, after the share phase; the others do only what it needs of them."""
    keys = {party: _draw_signing_key(os.urandom) for party in params.participants}
    params = _with_keys(params, tuple(public_der(keys[party]) for party in params.participants))
    policy = policy_of(params)
    advertised = {party: node.advertise(params, party, keys[party], policy, os.urandom) for party in params.participants}
    adverts = [advert for _, advert in advertised.values()]
    shared = {party: node.share(state, adverts, os.urandom) for party, (state, _) in advertised.items()}
    sets = [share_set.with_digests().for_receiver(me) for _, share_set in shared.values()]
    return node.ready_to_mask(shared[me][0], sets)


def _with_keys(params: RoundParams, keys: tuple[bytes, ...]) -> RoundParams:
    fields = ("session", "participants", "threshold", "length", "quantizer", "noise_mode", "max_colluders", "shared")
    return RoundParams(**{name: getattr(params, name) for name in fields}, public_keys=keys)


def session(sizes: Sizes, noise: SharedNoise | None) -> RoundParams:
    """The parameters of both kinds of round."""
    names = tuple(f"hospital-{number:02d}" for number in range(sizes.members))
    clip = 1.0 if noise is None else float(noise.offset(sizes.members))
    threshold = 2 * sizes.members // 3 + 1
    mode = "local" if noise is None else "shared"
    quantizer = Quantizer(clip, LANES)
    return RoundParams(
        os.urandom(16), names, threshold, sizes.values, quantizer, noise_mode=mode, max_colluders=1, shared=noise
    )


def masking_s(sizes: Sizes, noise: SharedNoise | None, door: Door) -> float:
    """CPU seconds of one member's upload."""
    state = ready(session(sizes, noise), "hospital-00")
    rng = np.random.default_rng(0)
    update: Vector | Integers
    if noise is None:
        update = rng.uniform(-1, 1, sizes.values).astype(np.float32)
    else:
        update = rng.integers(-1000, 1000, sizes.values, dtype=np.int64)
    start = process_time()
    _, upload = node.mask(state, update, door)
    for _ in upload.pieces():
        pass
    return process_time() - start


def rate_m_per_s(deviation: int, sizes: Sizes) -> float:
    """Millions of discrete Gaussian values a second on one core."""
    stream, best = NoiseStream(os.urandom(16), Fraction(deviation) ** 2), float("inf")
    for _ in range(sizes.turns):
        start = process_time()
        for _ in stream.runs(sizes.drawn):
            pass
        best = min(best, process_time() - start)
    return sizes.drawn / best / 1e6


def rows(sizes: Sizes, say: Callable[[str], None]) -> list[Row]:
    """Measure everything."""
    door = faster_door(perf_counter)
    rates = {deviation: rate_m_per_s(deviation, sizes) for deviation in DEVIATIONS}
    for deviation, rate in rates.items():
        say(f"deviation {deviation:,}: {rate:.1f} million values/s")
    noise = SharedNoise(Fraction(DEVIATION) ** 2, MAY_DROP, 1, LARGEST_SUM)
    turns = [(masking_s(sizes, None, door), masking_s(sizes, noise, door)) for _ in range(sizes.turns)]
    local, shared = (min(column) for column in zip(*turns, strict=True))
    normals, start = NormalStream(os.urandom), process_time()
    normals.draw(sizes.values)
    say(f"local noise of {sizes.values:,} values, drawn in training: {1e3 * (process_time() - start):.1f} ms")
    say(f"masking: local {1e3 * local:.1f} ms, shared {1e3 * shared:.1f} ms with {MAY_DROP + 1} components")
    slowest = min(rates, key=rates.__getitem__)
    who = f"{sizes.members} members, {sizes.values:,} values"
    return [
        Row(f"discrete Gaussian values, slowest of three deviations ({slowest:,})", rates[slowest], "M/s", 5.0, at_least=True),
        Row(f"a member's masking, shared / local noise, {who}, {MAY_DROP} may drop", shared / local, "", 3.0),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the rows, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_noise", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs, its figures mean nothing")
    options = parser.parse_args(arguments)
    found = rows(QUICK if options.quick else FULL, print)
    print(table(found))
    return status(found)


if __name__ == "__main__":
    sys.exit(main())
