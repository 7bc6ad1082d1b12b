"""`python -m benchmarks.soak --minutes 60`: whether any process of a federation grows from round to round.

A coordinator and three training nodes run as the installed commands, over mutual TLS, with real DP-SGD on a tiny network and
tiny synthetic scans, as fast as they can. Resident memory of every process (RSS, as the kernel counts it) is sampled against
the number of finished rounds; the slope is that of a least-squares line over what follows the first tenth of the rounds, when
pools and caches fill. Status 1 if a process grows by more than 1 MB per 1,000 rounds, or if too few rounds fit into the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.federation import PATIENTS, Federation, cpu_s, load_average, resident_mib, write_json
from benchmarks.rows import Row, status, table
from hospital_node.cap import Cap
from hospital_node.network import build, layout_of, vector_of
from proto.modelfile import Model
from study import synthetic
from study.processes import Child, Family

HOSPITALS = 3
MIB_PER_1000 = 1e6 / 2**20  # the target says MB
ENOUGH_ROUNDS = 2000
ENOUGH_MINUTES = 60.0
SETTLED_SHARE = 0.1  # of the rounds: pools and caches fill in the first
SAMPLED_EVERY_S = 2.0
MOST_ROUNDS = 20_000  # of the plan: more than any soak plays
FIELDS: dict[str, object] = {
    "rounds": MOST_ROUNDS,
    "network": {"architecture": "UNet", "channels": [2, 4], "labels": ["nodule"], "norm": "instance"},
    "preparation": {
        "modality": "CT",
        "spacing_xyz_mm": [16.0, 16.0, 16.0],
        "window_hu": [-1000.0, 400.0],
        "patch_zyx": [8, 8, 8],
    },
    "training": {"local_steps": 1, "patches_per_patient": 1, "learning_rate": 1e-4},
    "privacy": {"noise_multiplier": 12.0, "inverse_sampling_rate": 3, "delta": 1e-3},
    "masking": {"lanes": 3, "update_clip": 0.5},
    "timing": {"training_deadline_s": 300.0, "phase_deadline_s": 120.0, "lost_after_s": 120.0},
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at everybody: finished rounds, and resident MiB and CPU seconds by process."""

    at_s: float
    rounds: int
    resident_mib: dict[str, float]
    cpu_s: dict[str, float]


def watch(federation: Federation, family: Family, until_s: float, most_rounds: int) -> Iterator[Sample]:
    """Samples until the time or the rounds are over."""
    began_s = time.monotonic()
    with federation.store() as store:
        done = 0
        while time.monotonic() < until_s and done < most_rounds:
            family.raise_if_any_failed()
            done += sum(row.state == "opened" for row in store.rounds(after=done) if row.ended_at is not None)
            yield _sample(time.monotonic() - began_s, done, family.children)
            time.sleep(SAMPLED_EVERY_S)


def _sample(at_s: float, rounds: int, children: Sequence[Child]) -> Sample:
    resident = {child.name: resident_mib(child.process.pid) for child in children}
    return Sample(at_s, rounds, resident, {child.name: cpu_s(child.process.pid) for child in children})


def play(folder: Path, minutes: float, most_rounds: int) -> list[Sample]:
    """One soak in `folder`."""
    federation = Federation(folder, HOSPITALS, FIELDS, Cap(epsilon=100.0, delta=1e-3), study="soak")
    for index, role in enumerate(federation.world.cast.hospitals):
        synthetic.write_cohort(role.data, index, PATIENTS, 5)
    module = build(federation.plan.network)
    federation.begin_from(Model(layout_of(module), vector_of(module)))
    samples: list[Sample] = []
    with Family(1) as family:
        _, address = federation.coordinator(family)
        for role in federation.world.cast.hospitals:
            federation.node(family, role, address)
        for sample in watch(federation, family, time.monotonic() + 60 * minutes, most_rounds):
            samples.append(sample)
            write_json(folder / "samples.json", [asdict(one) for one in samples])
            _say(sample)
    return samples


def _say(sample: Sample) -> None:
    resident = ", ".join(f"{name} {mib:.1f}" for name, mib in sample.resident_mib.items())
    print(f"  {sample.at_s:6.0f} s, {sample.rounds:5} rounds; MiB: {resident}", file=sys.stderr, flush=True)


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """What the slope is taken of."""
    begin = max(1, SETTLED_SHARE * samples[-1].rounds) if samples else 0
    return [sample for sample in samples if sample.rounds >= begin]


def slope_mib(samples: Sequence[Sample], name: str) -> float:
    """MiB per 1,000 rounds."""
    rounds, resident = zip(*((sample.rounds, sample.resident_mib[name]) for sample in settled(samples)), strict=True)
    return 1000 * float(np.polyfit(rounds, resident, 1)[0])


def rows_of(samples: Sequence[Sample]) -> list[Row]:
    """A row for each process and one for the rounds."""
    whole = len({sample.rounds for sample in settled(samples)}) > 1
    rows = [
        Row(f"{name}, growth per 1,000 rounds", slope_mib(samples, name) if whole else None, "MiB", MIB_PER_1000)
        for name in (samples[-1].resident_mib if samples else {})
    ]
    done = float(samples[-1].rounds) if samples else 0.0
    return [*rows, Row(f"rounds finished in {_minutes(samples):.0f} min", done, "", ENOUGH_ROUNDS, at_least=True)]


def _minutes(samples: Sequence[Sample]) -> float:
    return samples[-1].at_s / 60 if samples else 0.0


def details(samples: Sequence[Sample]) -> str:
    """Where each process began and ended, and what a round cost it."""
    first, last = settled(samples)[0], samples[-1]
    played = max(1, last.rounds - first.rounds)
    lines = ["| process | MiB at first | at the end | most | CPU ms a round |", "|---|--:|--:|--:|--:|"]
    for name, at_end in last.resident_mib.items():
        most = max(sample.resident_mib[name] for sample in samples)
        cost = 1e3 * (last.cpu_s[name] - first.cpu_s[name]) / played
        lines.append(f"| {name} | {first.resident_mib[name]:.1f} | {at_end:.1f} | {most:.1f} | {cost:.0f} |")
    seconds = (last.at_s - first.at_s) / played
    return "\n".join([*lines, "", f"{played} rounds from round {first.rounds} on, {seconds:.2f} s a round"])


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Resident memory against finished rounds, each process from where it settled."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    begin = settled(samples)[0]
    for name in samples[-1].resident_mib:
        grown = [sample.resident_mib[name] - begin.resident_mib[name] for sample in samples]
        label = f"{name}: {begin.resident_mib[name]:.0f} MiB"
        axes.plot([sample.rounds for sample in samples], grown, label=label, linewidth=1)
    rounds = np.array([begin.rounds, samples[-1].rounds])
    axes.plot(rounds, MIB_PER_1000 * (rounds - begin.rounds) / 1000, "k:", linewidth=1, label="1 MB per 1,000 rounds")
    axes.set(xlabel="finished rounds", ylabel="MiB beyond the first tenth", title="Resident memory of every process")
    most = max(one.resident_mib[name] - begin.resident_mib[name] for one in settled(samples) for name in begin.resident_mib)
    axes.set_ylim(-4, max(2.0, 1.1 * most))
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="small", title="process and where it stood", ncols=5)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, print, draw; the status says whether all targets hold. Runs shorter than an hour are shown and not judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=ENOUGH_MINUTES)
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS, help="end after so many")
    parser.add_argument("--plot", type=Path, default=Path("soak.png"), help="where the picture goes")
    parser.add_argument("--folder", type=Path, help="keep everything here instead of a folder that is removed")
    chosen = parser.parse_args(arguments)
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        samples = play(chosen.folder or Path(temporary), chosen.minutes, chosen.rounds)
    rows = rows_of(samples)
    print(f"load average {before:.1f} before, {load_average():.1f} after\n\n{table(rows)}")
    if any(row.value is None for row in rows):
        print("\ntoo few rounds for a slope")
        return 1
    print(f"\n{details(samples)}")
    draw(samples, chosen.plot)
    if chosen.minutes < ENOUGH_MINUTES and samples[-1].rounds < ENOUGH_ROUNDS:
        print("\na short run: no verdict")
        return 0
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
