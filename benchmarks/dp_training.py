"""`python -m benchmarks.dp_training`: what a private step costs beside an ordinary one; status 1 if a target falls short.

Both kinds of step are taken turn by turn in one process on one core, on the same batch of 8 patches and the same network, so
that whatever else the machine does falls on both. A time is CPU seconds; a ratio is the median of the ratios of all turns. Each
peak of memory is measured in a process of its own. Opacus' default hooks are measured beside them and have no target.

With the settings of the largest grids a turn takes minutes. Each setting ends after `--seconds` of CPU, though not before two
turns; the table says how many were taken. `--seconds 10000` takes all `--steps` everywhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import torch

from benchmarks import dp_training_memory as memory
from benchmarks.dp_training_memory import NotMeasured, Request
from benchmarks.dp_training_steps import Kind, Prepared, Setting, equal_to_opacus, prepare
from benchmarks.rows import Row, status, table
from hospital_node.dp_optimizer import PatientOptimizer

TIME_TARGET: dict[Kind, float] = {"fp32": 1.15, "bf16": 0.85}  # of the ordinary step
MEMORY_TARGET: dict[Kind, float] = {"fp32": 0.35, "bf16": 0.22}
NOISE_TARGET = 0.05  # of the private step
MILLION = 1e6
EQUALITY_TARGET = 100.0  # millionths of the step
LARGE_TARGET_MIB = 4096.0
GROWTH_TARGET_MIB = 1.0
LEAST_TURNS = 2
NOISE_REPEATS = 9
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is; `quick` ones only show that everything runs."""

    settings: tuple[Setting, ...]
    beside: tuple[Setting, ...]  # for Opacus' hooks
    large: Setting
    steps: int = 15
    steps_beside: int = 3
    long_steps: int = 2000
    seconds: float = 45.0
    processes: int = 2


GRID = tuple(Setting(side, channels) for side in (32, 48, 64) for channels in (8, 16, 32))
FULL = Sizes(GRID, GRID[:2] + GRID[3:4], Setting(96, 32, batch=1))
TINY = Setting(16, 4, batch=2)
QUICK = Sizes((TINY,), (TINY,), Setting(24, 4, batch=1), steps=2, steps_beside=1, long_steps=40, seconds=1.0, processes=1)


@dataclass
class Bench:
    """One run: its sizes, which kinds this CPU can do, where to talk to, and what was seen so far."""

    sizes: Sizes
    say: Callable[[str], None]
    has_bfloat16: bool

    @property
    def private(self) -> tuple[Kind, ...]:
        """Kinds that have targets here."""
        return ("fp32", "bf16") if self.has_bfloat16 else ("fp32",)


@dataclass(frozen=True, slots=True)
class Timed:
    """CPU seconds of each turn."""

    seconds: Mapping[Kind, Sequence[float]]

    @property
    def turns(self) -> int:
        """How many were taken."""
        return len(self.seconds["plain"])

    def ratio(self, kind: Kind) -> float:
        """To the ordinary step of the same turn."""
        return statistics.median(one / other for one, other in zip(self.seconds[kind], self.seconds["plain"], strict=True))

    def median_s(self, kind: Kind) -> float:
        """Of one kind."""
        return statistics.median(self.seconds[kind])


def computes_in_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself, as Linux tells."""
    return CPU_INFO.exists() and bool(BFLOAT16_FLAGS & set(CPU_INFO.read_text(encoding="utf-8").split()))


def take_turns(steps: Mapping[Kind, Prepared], wanted: int, seconds: float) -> Timed:
    """Each step once a turn; the first turn compiles and is not counted where others follow the least number."""
    turns: list[dict[Kind, float]] = []
    while len(turns) < LEAST_TURNS or (len(turns) <= wanted and sum(sum(turn.values()) for turn in turns) < seconds):
        turns.append({kind: _cpu_s(prepared.step) for kind, prepared in steps.items()})
    counted = turns[1:] if len(turns) > LEAST_TURNS else turns
    return Timed({kind: [turn[kind] for turn in counted] for kind in steps})


def noise_s(prepared: Prepared) -> float:
    """CPU seconds of the noise of one step: making it and adding it."""
    optimizer = prepared.optimizer
    if not isinstance(optimizer, PatientOptimizer):
        raise TypeError("only a private step has noise of its own")

    def once() -> float:
        optimizer.zero_grad(set_to_none=True)
        for parameter in optimizer.params:
            parameter.summed_grad = torch.zeros_like(parameter)
        return _cpu_s(optimizer.add_noise)

    return statistics.median(once() for _ in range(NOISE_REPEATS))


def _cpu_s(work: Callable[[], object]) -> float:
    start = process_time()
    work()
    return process_time() - start


def measure(bench: Bench) -> Iterator[Row]:
    """All rows; what has no target goes to `say`."""
    sizes = bench.sizes
    peaks = _peaks(bench)
    bench.say(f"{'setting':<20} {'turns':>5} {'plain':>9} {'fp32':>6} {'bf16':>6}   peak MiB: plain, fp32, bf16")
    for setting in sizes.settings:
        yield from _setting_rows(bench, setting, peaks)
    for setting in sizes.beside:
        _say_beside(bench, setting, peaks)
    same = replace(sizes.settings[0], noise=0.0)
    for kind in bench.private:
        bench.say(f"{kind} step without noise apart from Opacus' hooks, {same}: {equal_to_opacus(same, kind):.2g} of it")
    apart = MILLION * equal_to_opacus(same, "fp32")
    yield Row(f"fp32 step without noise apart from Opacus' hooks, {same}", apart, "millionths", EQUALITY_TARGET)
    yield _memory_row(f"one patient, {sizes.large}, peak beyond the model", peaks[_large(sizes)], "MiB", LARGE_TARGET_MIB)
    yield _memory_row(f"{sizes.long_steps:,} steps, growth", peaks[_long(sizes)], "MiB / 1,000 steps", GROWTH_TARGET_MIB)


def _setting_rows(bench: Bench, setting: Setting, peaks: Mapping[Request, float | str]) -> Iterator[Row]:
    kinds: tuple[Kind, ...] = ("plain", *bench.private)
    steps = {kind: prepare(kind, setting) for kind in kinds}
    timed = take_turns(steps, bench.sizes.steps, bench.sizes.seconds)
    _say_setting(bench, setting, timed, peaks)
    for kind, target in TIME_TARGET.items():
        figure = f"{kind} step / plain, {setting}"
        if kind in bench.private:
            yield Row(f"{figure}: time, {timed.turns} turns", timed.ratio(kind), "", target)
            yield _memory_row(f"{figure}: peak memory", _share(peaks, kind, setting), "", MEMORY_TARGET[kind])
        else:
            yield Row(f"{figure}: this CPU does not multiply bfloat16", None, "", target)
    if setting.side == bench.sizes.settings[0].side:  # the fewer voxels, the larger the share of the noise
        fastest = min(bench.private, key=timed.median_s)
        share = noise_s(steps[fastest]) / timed.median_s(fastest)
        yield Row(f"Gaussian noise / {fastest} step, {setting}", share, "", NOISE_TARGET)


def _peaks(bench: Bench) -> dict[Request, float | str]:
    """MiB of each request, or why there is none."""
    sizes = bench.sizes
    requests = [Request(kind, setting) for setting in sizes.settings for kind in ("plain", *bench.private)]
    requests += [Request("opacus", setting) for setting in sizes.beside]
    requests += [_large(sizes), _long(sizes)]
    bench.say(f"peaks of memory in {len(requests)} processes, {sizes.processes} at a time")
    with ThreadPoolExecutor(sizes.processes) as pool:
        return dict(zip(requests, pool.map(_peak, requests), strict=True))


def _peak(request: Request) -> float | str:
    try:
        return memory.measure_apart(request)
    except NotMeasured as reason:
        return str(reason)


def _large(sizes: Sizes) -> Request:
    return Request("fp32", sizes.large)


def _long(sizes: Sizes) -> Request:
    return Request("fp32", Setting(memory.TINY_SIDE, 4, batch=2), steps=sizes.long_steps)


def _memory_row(figure: str, measured: float | str, unit: str, target: float) -> Row:
    if isinstance(measured, str):
        return Row(f"{figure}: {measured}", None, unit, target)
    return Row(figure, measured, unit, target)


def _share(peaks: Mapping[Request, float | str], kind: Kind, setting: Setting) -> float | str:
    """Of the ordinary step's peak, or why it is not known."""
    peak, plain = peaks[Request(kind, setting)], peaks[Request("plain", setting)]
    if isinstance(peak, str):
        return peak
    return plain if isinstance(plain, str) else peak / plain


def _say_setting(bench: Bench, setting: Setting, timed: Timed, peaks: Mapping[Request, float | str]) -> None:
    ratios = " ".join(f"{timed.ratio(kind):6.2f}" for kind in bench.private)
    shown = ", ".join(_mib(peaks[Request(kind, setting)]) for kind in ("plain", *bench.private))
    bench.say(f"{setting!s:<20} {timed.turns:5} {1e3 * timed.median_s('plain'):6.0f} ms {ratios}   {shown}")


def _say_beside(bench: Bench, setting: Setting, peaks: Mapping[Request, float | str]) -> None:
    steps: dict[Kind, Prepared] = {kind: prepare(kind, setting) for kind in ("plain", "opacus")}
    timed = take_turns(steps, bench.sizes.steps_beside, bench.sizes.seconds)
    peak = _mib(peaks[Request("opacus", setting)])
    bench.say(f"Opacus' default hooks, {setting}: {timed.ratio('opacus'):.1f} times the plain step, peak {peak} MiB")


def _mib(peak: float | str) -> str:
    return f"{peak:.0f}" if isinstance(peak, float) else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the status whether all targets hold; `--quick` ones are shown and not judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dp_training", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that everything runs, no verdict")
    parser.add_argument("--steps", type=int, default=FULL.steps, help="turns of each setting at most (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=FULL.seconds, help="CPU seconds of each setting (%(default)s)")
    given = parser.parse_args(arguments)
    sizes = QUICK if given.quick else replace(FULL, steps=given.steps, seconds=given.seconds)
    torch.set_num_threads(1)
    bench = Bench(sizes, lambda line: print(f"  {line}", file=sys.stderr, flush=True), computes_in_bfloat16())
    rows = list(measure(bench))
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread\n\n{table(rows)}")
    if given.quick:
        print("\nquick: the sizes are not those of the targets, no verdict")
        return 0
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
