"""`python -m tests.simulate`: seeded schedules of faults over the pure round engine; status 1 if a rule breaks in one of them.

Two in five hold any faults, as many only such as may cost nothing (kills of the coordinator, lost, late and repeated
messages), after which every round must have opened with everybody; one in five holds any faults under a buffered plan, with
hospitals of different speeds. A failing schedule is made short, printed, and kept in
tests/coordinator/kept_schedules.json, which the test suite plays from then on. `--processes` shares the work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parent / "coordinator"))

from fault_schedules import (
    FAULTLESS,
    HARMLESS,
    NODES,
    OPERATIONS,
    PACES,
    Broken,
    play,
    play_buffered,
    play_harmless,
    search,
)

KEPT = Path(__file__).parent / "coordinator" / "kept_schedules.json"
KINDS = {  # how to play, what may happen, hospitals, parts in five of all schedules
    "any": (play, OPERATIONS, NODES, 2),
    "harmless": (play_harmless, HARMLESS, NODES, 2),
    "buffered": (play_buffered, OPERATIONS, len(PACES), 1),
}
PARTS = 5
SHARE = 250  # schedules of one task


def play_share(kind: str, first: int, count: int) -> tuple[int, Counter[str], list[Broken]]:
    """Play the schedules of some seeds; how many, the operations in them, and what broke."""
    run, weights, nodes, _ = KINDS[kind]
    counts: Counter[str] = Counter()
    broken = []
    played = 0
    for schedule, found in search(range(first, first + count), run, weights, nodes):
        played += 1
        counts.update(name for name, _, _ in schedule)
        broken += [found] if found is not None else []
    return played, counts, broken


def keep(kind: str, found: Broken) -> None:
    """Add a failing schedule to those that the test suite plays."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else []
    kept.append({"kind": kind, "seed": found.seed, "rule": found.rule, "schedule": found.schedule})
    KEPT.write_text("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=10_000, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    began_s, played, broken, counts = monotonic(), 0, 0, Counter[str]()
    ends = {kind: chosen.seed - (-chosen.schedules * parts // PARTS) for kind, (*_, parts) in KINDS.items()}
    tasks = [(kind, at, min(SHARE, ends[kind] - at)) for kind in KINDS for at in range(chosen.seed, ends[kind], SHARE)]
    with ProcessPoolExecutor(chosen.processes) as pool:
        for (kind, _, _), (count, seen, found) in zip(tasks, pool.map(play_share, *zip(*tasks, strict=True)), strict=True):
            played, broken = played + count, broken + len(found)
            counts += seen
            for one in found:
                print(f"seed {one.seed} ({kind}): {one.rule}\n  {json.dumps(one.schedule)}")
                keep(kind, one)
    faults = sum(count for name, count in counts.items() if name not in FAULTLESS)
    print(f"{played} schedules, {counts.total()} operations, {faults} faults, {broken} broken; {monotonic() - began_s:.0f} s")
    for name, count in counts.most_common():
        print(f"  {count:8d}  {name}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
