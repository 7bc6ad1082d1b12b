"""A made-up study on disk for the app's tests: the cells of tests/study/bench_world.py, written by the study's own writer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "study"))
from bench_world import STUDY, result, row, written

from study.bench.cells import Cell
from study.results import StudyRow
from study.results_write import ResultsWriter

HEAD = STUDY.partition("[[grid]]")[0]
GRID = """
[[grid]]
method = ["pooled", "local", "plain", "masked"]
[[grid]]
method = "masked"
"masking.lanes" = [4, 8]
"""


def cells_of(folder: Path, seeds: int) -> list[Cell]:
    """Two epsilons of every masked cell that has none, written in by hand: reckoning their noise would take seconds."""
    cells = written(folder, HEAD.replace("[1, 2]", str(list(range(1, seeds + 1)))) + GRID).cells()
    noisy = [
        cell.model_copy(update={"epsilon": epsilon, "settings": {**cell.settings, "epsilon": epsilon}})
        for cell in cells
        if cell.settings.get("masking.lanes") == 3
        for epsilon in (2.0, 8.0)
    ]
    return [*cells, *noisy]


def write(folder: Path, cells: list[Cell], *, done: int | None = None, failed: str = "") -> Path:
    out = folder / "study"
    with ResultsWriter.create(out) as writer:
        writer.begin(StudyRow("small", "fake", "Dice", "Nobody is charged.", "text"), cells)
        for place, cell in enumerate(cells):
            if done is not None and place >= done:
                break
            rounds = [row(cell, number) for number in range(int(cell.plan["rounds"]) + 1)]
            smaller = 4.0 if cell.settings.get("masking.lanes", 3) > 3 else 1.0
            rounds = [one.model_copy(update={"upload_bytes": int(one.upload_bytes / smaller)}) for one in rounds]
            writer.started(cell.id, 1.0)
            writer.finished(result(cell, rounds), 2.0)
        if failed:
            writer.started(cells[-1].id, 1.0)
            writer.failed(cells[-1].id, failed, 2.0)
    return out
