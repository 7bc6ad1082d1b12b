"""`python -m benchmarks.masking`: what masking costs, one row for each target; status 1 if one falls short.

Targets in milliseconds are for a machine whose AES-128 counter mode, the library's own, gives 12 GB/s; they are scaled by
what it gives here, measured in the same run. Times are CPU seconds of one process, the smallest of several, as in the
measurements that the targets come from: whatever else runs on a machine only ever adds to them. The fastest counter mode of
the run is what scales. Left out, as there: training, transport, the making of messages, and SHA-256 over uploads, which costs
as much as their transport and is printed beside the rows. For the coordinator's rows a second target is printed, which
decides nothing: scaled by what its signatures, key agreements and counter mode alone cost here, over what they cost where the
targets were set (`primitives.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np

from benchmarks.masking_memory import client_vectors, server_vectors
from benchmarks.masking_round import APART, Recording, Stopwatch, parameters, play, record, update_of
from benchmarks.primitives import REFERENCE, floor_of, rates_here
from benchmarks.rows import Row, status, table
from secagg import Door, faster_door
from secagg.bounds import choose
from secagg.keystream import CHUNK_BYTES, CHUNK_WORDS, Streams, buffer_of
from secagg.params import WORD_BYTES
from secagg.rehearse import run_round
from secagg.upload import Masks, SignedMask

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is; `quick` ones only show that everything runs."""

    cohort: tuple[int, int] = (20, 4)  # members, of whom so many are lost
    crowd: tuple[int, int] = (100, 10)
    multitude: tuple[int, int] = (1000, 100)
    long: int = 5_000_000  # values
    middle: int = 1_000_000
    short: int = 100_000
    repeats: int = 5
    rates: tuple[float, float] = (0.1, 0.15)  # corrupt and dropping out, for which the sparse graph is chosen


FULL = Sizes()
QUICK = Sizes((4, 1), (6, 1), (30, 2), 60_000, 40_000, 20_000, 1, (0.0, 0.1))


@dataclass
class Bench:
    """One run: the sizes, the door, and how fast this machine's AES was each time it was asked."""

    sizes: Sizes
    door: Door
    ctr_gb_per_s: list[float]
    say: Callable[[str], None]

    def scaled(self, target_ms: float) -> float:
        """A target of the reference machine for this one."""
        return target_ms * REFERENCE.ctr_gb_per_s / max(self.ctr_gb_per_s)

    def watch_aes(self) -> None:
        """Measure counter mode once more."""
        self.ctr_gb_per_s.append(keystream_gb_per_s(Door.CTR))


def keystream_gb_per_s(door: Door, rounds: int = 24) -> float:
    """Keystream alone, in calls of 256 KiB, one core."""
    streams, view = Streams([os.urandom(16) for _ in range(8)], door), buffer_of(CHUNK_WORDS, 1).data.cast("B")

    def every_key() -> None:
        source, encryptors = streams.step(len(view))
        for encryptor in encryptors:
            encryptor.update_into(source, view)

    return max(_gb_per_s(8 * CHUNK_BYTES, every_key) for _ in range(rounds))


def mask_gb_per_s(door: Door, masks: int, words: int) -> float:
    """Keystream added to a vector, as members and coordinator do it; gigabytes of mask."""
    keys = [SignedMask(os.urandom(16), subtract=bool(number % 2)) for number in range(masks)]
    vector, bank = np.zeros(words, dtype=np.uint64), Masks(keys, door)

    def whole() -> None:
        for start in range(0, words, CHUNK_WORDS):
            bank.apply(vector[start : start + CHUNK_WORDS], start)

    whole()
    return max(_gb_per_s(masks * words * WORD_BYTES, whole) for _ in range(5))


def _gb_per_s(size: int, work: Callable[[], object]) -> float:
    start = process_time()
    work()
    return size / 1e9 / max(process_time() - start, 1e-9)


def measure(bench: Bench) -> Iterator[Row]:
    """All rows, as they are measured."""
    sizes = bench.sizes
    yield _share_row(bench)
    yield from _cohort_rows(bench)
    yield _server_row(bench, sizes.crowd, sizes.short, 60.0)
    yield _sparse_row(bench)
    yield from _upload_rows(sizes)
    yield from _memory_rows(bench)


def _share_row(bench: Bench) -> Row:
    """Both rates are taken turn by turn, since a shared machine is not equally fast all the time."""
    members, words = bench.sizes.cohort[0], bench.sizes.long // 3
    pairs = [(mask_gb_per_s(bench.door, members, words), keystream_gb_per_s(bench.door)) for _ in range(bench.sizes.repeats)]
    bench.watch_aes()
    made, alone = (max(rates) for rates in zip(*pairs, strict=True))
    bench.say(f"mask made and added {made:.1f} GB/s, keystream alone {alone:.1f} GB/s ({bench.door.value})")
    return Row("mask made and added, share of the keystream rate of the same door", made / alone, "", 0.65, at_least=True)


def _cohort_rows(bench: Bench) -> Iterator[Row]:
    (members, lost), length = bench.sizes.cohort, bench.sizes.long
    update, title = update_of(length), f"n={members}, {length:,} values, {lost} lost, 3 lanes"
    clients, digests, servers = [], [], []
    for repeat in range(bench.sizes.repeats + 1):
        recording = record(parameters(members, length), lost, update, bench.door)
        played = [play(recording, bench.door)[0] for _ in range(2)]
        bench.watch_aes()
        if repeat:  # the first one warms up
            clients += recording.client_s()
            digests += recording.digest_s()
            servers += played
    bench.say(f"client, {title}: {_parts(list(recording.members.values()))}")
    bench.say(f"client, with the digest of its upload: {1e3 * min(clients):.1f} ms")
    yield Row(f"client, {title}", 1e3 * (min(clients) - min(digests)), "ms CPU", bench.scaled(30))
    yield _server_figure(bench, servers, title, 90.0, recording)
    _, one = _wall_s(lambda: play(recording, bench.door))
    cpu, two = _wall_s(lambda: play(recording, bench.door, threads=2))
    bench.say(f"server on two threads: {cpu / two:.2f} cores busy, wall {two / one:.2f} of that on one")


def _server_row(bench: Bench, cohort: tuple[int, int], length: int, target_ms: float) -> Row:
    (members, lost), title = cohort, f"n={cohort[0]}, {length:,} values, {cohort[1]} lost"
    recording = record(parameters(members, length), lost, update_of(length), bench.door, trusting=True)
    played = [play(recording, bench.door)[0] for _ in range(bench.sizes.repeats + 1)][1:]
    bench.watch_aes()
    return _server_figure(bench, played, title, target_ms, recording)


def _sparse_row(bench: Bench) -> Row:
    (members, lost), length = bench.sizes.multitude, bench.sizes.short
    figure = f"n={members}, {length:,} values, {lost} lost, sparse graph"
    corrupt, dropping = bench.sizes.rates
    graph = choose(members, corrupt, dropping)
    params = parameters(members, length, graph=graph, max_colluders=int(corrupt * members))
    recording = record(params, lost, update_of(length), bench.door, trusting=True)
    played = [play(recording, bench.door)[0] for _ in range(min(3, bench.sizes.repeats))]
    bench.watch_aes()
    bench.say(f"sparse graph of {members}: {graph}")
    return _server_figure(bench, played, figure, 1000.0, recording)


def _server_figure(bench: Bench, played: Sequence[Stopwatch], title: str, target_ms: float, recording: Recording) -> Row:
    bench.say(f"server, {title}: {_parts(played)}")
    floor, rates = floor_of(recording), rates_here(max(bench.ctr_gb_per_s))
    here_ms, there_ms = floor.ms(rates), floor.ms(REFERENCE)
    bench.say(
        f"  {floor.signatures} signatures at {rates.verify_us:.0f} us, {floor.agreements} agreements at {rates.agree_us:.0f} "
        f"us and counter mode alone: {here_ms:.1f} ms here, {there_ms:.1f} where the targets were set: by that, the target is "
        f"{target_ms * here_ms / there_ms:.1f} ms"
    )
    return Row(f"server, {title}", 1e3 * min(watch.sum_s() for watch in played), "ms CPU", bench.scaled(target_ms))


def _upload_rows(sizes: Sizes) -> Iterator[Row]:
    """Of the member that sends most, all phases and framing."""
    for members, length, lanes, target in (
        (sizes.cohort[0], sizes.middle, 3, 0.68),
        (sizes.cohort[0], sizes.middle, 8, 0.26),
        (sizes.crowd[0], sizes.short, 3, 0.75),
    ):
        params = parameters(members, length, lanes)
        update = update_of(length)
        sent = run_round(params, dict.fromkeys(params.participants, update), rand=os.urandom).upload_bytes
        share = max(sent.values()) / (FLOAT32_BYTES * length)
        yield Row(f"upload / float32, n={members}, {length:,} values, {lanes} lanes", share, "", target)


def _memory_rows(bench: Bench) -> Iterator[Row]:
    length, update = bench.sizes.long, update_of(bench.sizes.long)
    for streamed, target in ((False, 1.0), (True, 0.1)):
        vectors = client_vectors(parameters(bench.sizes.cohort[0], length), update, bench.door, streamed=streamed)
        yield Row(f"client, peak memory, {'streamed' if streamed else 'whole upload kept'}", vectors, "vectors", target)
    for members, lost in (bench.sizes.cohort, bench.sizes.crowd):
        recording = record(parameters(members, length), lost, update, bench.door, trusting=True, summed=True)
        yield Row(f"server, peak memory, n={members}, two threads", server_vectors(recording, bench.door, 2), "vectors", 2.0)


def _parts(watches: Sequence[Stopwatch]) -> str:
    """The smallest of each label, those kept apart in brackets."""
    labels = dict.fromkeys(label for watch in watches for label in watch.spent_s)
    least = {label: 1e3 * min(w.spent_s[label] for w in watches if label in w.spent_s) for label in labels}
    return ", ".join(f"({label} {ms:.1f})" if label in APART else f"{label} {ms:.1f}" for label, ms in least.items()) + " ms"


def _wall_s(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    wall, cpu = perf_counter(), process_time()
    work()
    return process_time() - cpu, perf_counter() - wall


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the status whether all targets hold; `--quick` ones are shown and not judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masking", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that everything runs, no verdict")
    quick = parser.parse_args(arguments).quick
    sizes, door = QUICK if quick else FULL, faster_door(process_time)
    bench = Bench(sizes, door, [], say=lambda line: print(f"  {line}", file=sys.stderr, flush=True))
    bench.watch_aes()
    rates = {each.value: round(keystream_gb_per_s(each), 1) for each in Door}
    ahead = rates[door.value] / rates[Door.CTR.value]
    bench.say(f"keystream in GB/s: {rates}; the fastest here is {door.value}, {ahead:.2f} times as fast as counter mode")
    rows = list(measure(bench))
    factor = bench.scaled(1.0)
    here = REFERENCE.ctr_gb_per_s / factor
    print(f"AES-128 counter mode gives {here:.1f} GB/s here: target times are those of 12 GB/s x {factor:.2f}\n")
    print(table(rows))
    if quick:
        print("\nquick: the sizes are not those of the targets, no verdict")
        return 0
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
