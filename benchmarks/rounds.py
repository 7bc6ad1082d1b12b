"""`python -m benchmarks.rounds`: what a round costs around training, and what a crowd costs the coordinator.

(1) Twenty nodes as processes, a model of 20 MB, no training. The wall time of a round is compared with what cannot be avoided:
its bytes at the rate of one gRPC stream over mutual TLS on this loopback (`loopback.py`), and the CPU of masking it as the
masking benchmark plays it, all members and the coordinator; both are the mean of what is measured before the rounds and after
them. Rounds after the first, which also connects; the fastest counts.
(2) A thousand simulated nodes (`crowd.py`) over as many connections, 100,000 values: the round opens with all of them, and the
coordinator's resident memory grows by no more than two vectors and a chunk for each connected hospital. Status 1 if a row
falls short.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import process_time

from benchmarks import loopback
from benchmarks.federation import Federation, cpu_s, load_average, peak_mib, resident_mib, zeros
from benchmarks.masking_round import parameters, play, record, update_of
from benchmarks.rows import Row, status, table
from coordinator.store import RoundRow
from hospital_node.cap import Cap
from proto.plan import Plan
from proto.wire import CHUNK_BYTES
from secagg import faster_door
from study import sites
from study.processes import Family

MIB = 2**20
FLOAT32_BYTES = 4
MOST_TIMES_FLOOR = 1.5
WITHIN_S = 900.0
FIELDS: dict[str, object] = {
    "network": {"architecture": "UNet", "channels": [4, 8], "labels": ["nodule"], "norm": "instance"},
    "preparation": {"modality": "CT", "spacing_xyz_mm": [8.0, 8.0, 8.0], "patch_zyx": [16, 16, 16]},
    "training": {"local_steps": 1},
    "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 2, "delta": 1e-3},
    "timing": {"training_deadline_s": 900.0, "phase_deadline_s": 900.0, "lost_after_s": 900.0},
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is; `quick` ones only show that everything runs."""

    nodes: int = 20
    values: int = 5_000_000
    rounds: int = 5
    crowd: int = 1000
    crowd_values: int = 100_000
    crowd_colluders: int = 10


FULL = Sizes()
QUICK = Sizes(3, 200_000, 2, 12, 20_000, 1)


def _fields(rounds: int, colluders: int = 1) -> dict[str, object]:
    return {**FIELDS, "rounds": rounds, "masking": {"lanes": 3, "update_clip": 1.0, "max_colluders": colluders}}


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _over(federation: Federation, family: Family) -> list[RoundRow]:
    """The rounds of the run, once it ended. Raises ProcessFailed."""
    until_s = time.monotonic() + WITHIN_S
    while family.is_running("coordinator"):
        family.raise_if_any_failed()
        if time.monotonic() > until_s:
            raise TimeoutError(f"the run was not over within {WITHIN_S:g} s")
        time.sleep(0.2)
    with federation.store() as store:
        return store.rounds()


def cost_of_masking_s(plan: Plan, values: int) -> float:
    """CPU seconds of one round's masking: every member and the coordinator, digests included."""
    door = faster_door(process_time)
    recording = record(parameters(len(plan.hospitals), values, plan.masking.lanes), 0, update_of(values), door)
    watch, _ = play(recording, door)
    clients, server = sum(recording.client_s()), sum(watch.spent_s.values())
    _say(f"masking alone: {1e3 * clients / len(plan.hospitals):.0f} ms CPU a member, {1e3 * server:.0f} ms the coordinator")
    return clients + server


@dataclass(frozen=True, slots=True)
class Floor:
    """What cannot be avoided, as measured at one moment."""

    rates: loopback.Rates
    masking_s: float


def _floor(family: Family, federation: Federation, sizes: Sizes, when: str) -> Floor:
    """Now: before the rounds and after them, so that other work on the machine slows both sides of the comparison."""
    home = federation.world.home(federation.world.cast.hospitals[0])
    identities = federation.world.coordinator / "identity", home / "identity"
    rates = loopback.rates(family, *identities, federation.folder / f"loopback-{when}.log")
    _say(f"loopback {when}: {rates.up / 1e6:.0f} MB/s up, {rates.down / 1e6:.0f} MB/s down")
    return Floor(rates, cost_of_masking_s(federation.plan, sizes.values))


def around_training(folder: Path, sizes: Sizes) -> Row:
    """The first row."""
    federation = Federation(folder, sizes.nodes, _fields(sizes.rounds), Cap(epsilon=1.0, delta=1e-3))
    federation.begin_from(zeros(sizes.values))
    roles = federation.world.cast.hospitals
    command = [sys.executable, "-m", "benchmarks.untrained_node", str(federation.start)]
    with Family(1) as family:
        floors = [_floor(family, federation, sizes, "before")]
        _, address = federation.coordinator(family)
        for role in roles:
            federation.node(family, role, address, command)
        costs = {child.name: child.process.pid for child in family.children}
        rounds = _watched(federation, family, costs)
    with Family(1) as family:
        floors.append(_floor(family, federation, sizes, "after"))
    best = min(rounds[1:], key=_wall_s)
    _say_phases(best)
    up, down = _moved(federation, best.number)
    transports_s = [floor.rates.seconds(up, down) for floor in floors]
    transport_s, masking_s = mean(transports_s), mean(floor.masking_s for floor in floors)
    _say(f"{up / 1e6:.0f} MB up, {down / 1e6:.0f} MB down: transport {' and '.join(f'{one:.2f}' for one in transports_s)} s")
    _say(f"floor: transport {transport_s:.2f} s, masking {masking_s:.2f} s CPU")
    _say(f"rounds: {', '.join(f'{_wall_s(row):.2f}' for row in rounds)} s")
    model_mb = FLOAT32_BYTES * sizes.values / 1e6
    title = f"{sizes.nodes} nodes, {model_mb:.3g} MB: a round without training / transport and masking"
    return Row(title, _wall_s(best) / (transport_s + masking_s), "", MOST_TIMES_FLOOR)


def _watched(federation: Federation, family: Family, processes: dict[str, int]) -> list[RoundRow]:
    """The rounds of the run; says what one cost after the first, which also starts and connects everybody."""
    first: dict[str, float] = {}
    spent: dict[str, float] = {}
    until_s = time.monotonic() + WITHIN_S
    with federation.store() as store:
        while family.is_running("coordinator") and time.monotonic() < until_s:
            spent |= {name: used for name, pid in processes.items() if (used := cpu_s(pid))}
            if not first and any(row.ended_at is not None for row in store.rounds()):
                first = dict(spent)
            time.sleep(0.2)
    rounds = _over(federation, family)
    each_s = {name: (used - first.get(name, 0.0)) / max(1, len(rounds) - 1) for name, used in spent.items()}
    coordinator_s = each_s.pop("coordinator")
    _say(f"CPU a round after the first: coordinator {coordinator_s:.2f} s, a node {mean(each_s.values()):.2f} s")
    return rounds


def _wall_s(row: RoundRow) -> float:
    assert row.ended_at is not None
    return (row.ended_at - row.started_at).total_seconds()


def _say_phases(row: RoundRow) -> None:
    _say(f"round {row.number}: " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row.phase_seconds.items()) + " s")


def _moved(federation: Federation, number: int) -> tuple[int, int]:
    """Bytes up and down of one round."""
    with federation.store() as store:
        rows = store.traffic(number)
    up, down = (sum(row.bytes for row in rows if row.direction == way) for way in ("up", "down"))
    return up, down


def crowd_rows(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """The rows of many simulated nodes."""
    federation = Federation(folder, sizes.crowd, _fields(1, sizes.crowd_colluders), Cap(epsilon=1.0, delta=1e-3), study="crowd")
    federation.begin_from(zeros(sizes.crowd_values), approved=False)
    with Family(1) as family:
        coordinator, address = federation.coordinator(family)
        before = resident_mib(coordinator.process.pid)
        for role in federation.world.cast.hospitals:
            sites.write_node(federation.world, role, address)
        configs = [str(federation.world.config(role)) for role in federation.world.cast.hospitals]
        family.start("crowd", [sys.executable, "-m", "benchmarks.crowd", str(federation.start), *configs], folder / "crowd.log")
        peak = 0.0
        while family.is_running("coordinator"):
            family.raise_if_any_failed()
            peak = max(peak, peak_mib(coordinator.process.pid))
            time.sleep(0.1)
        (row,) = _over(federation, family)
    _say_phases(row)
    _say(f"crowd of {sizes.crowd}: round {_wall_s(row):.1f} s, coordinator {before:.0f} MiB before, {peak:.0f} at most")
    survivors = float(len(row.survivors)) if row.state == "opened" else 0.0
    title = f"{sizes.crowd} simulated nodes, {sizes.crowd_values:,} values: in the sum"
    yield Row(title, survivors, "", sizes.crowd, at_least=True)
    stated = (2 * FLOAT32_BYTES * sizes.crowd_values + CHUNK_BYTES * sizes.crowd) / MIB
    yield Row("coordinator's memory beyond what it had; two vectors and a chunk each", peak - before, "MiB", stated)


def _more_files() -> None:
    """A connection and a certificate's files for everybody."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the status whether all targets hold; `--quick` ones are shown and not judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that everything runs, no verdict")
    parser.add_argument("--part", choices=("nodes", "crowd"), help="one part only")
    chosen = parser.parse_args(arguments)
    sizes = QUICK if chosen.quick else FULL
    _more_files()
    rows: list[Row] = []
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="rounds-") as temporary:
        if chosen.part != "crowd":
            rows.append(around_training(Path(temporary) / "nodes", sizes))
        if chosen.part != "nodes":
            rows += crowd_rows(Path(temporary) / "crowd", sizes)
    print(f"load average {before:.1f} before, {load_average():.1f} after\n\n{table(rows)}")
    if chosen.quick:
        print("\nquick: the sizes are not those of the targets, no verdict")
        return 0
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
