"""The commands of studies: exit status, one sentence for bad input, and help that names every option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_world import STUDY, TASK
from typer.testing import CliRunner

from study.bench import asynchrony, engine, startfile
from study.bench.engine import Outcome
from study.bench.worker import Engine
from study.cli import APP


def invoke(*words: str) -> Any:
    return CliRunner().invoke(APP, list(words))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "task_named", lambda _name: TASK)
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome(done=4, failed=0, planned=0, interrupted=False), 0),
        (Outcome(done=3, failed=1, planned=0, interrupted=False), 1),
        (Outcome(done=3, failed=0, planned=1, interrupted=True), 130),
        (Outcome(done=2, failed=1, planned=1, interrupted=True), 130),
    ],
)
def test_the_exit_status_of_run(file: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, status: int) -> None:
    asked: dict[str, Any] = {}

    def run_study(study: Any, out: Path, **options: Any) -> Outcome:
        asked.update(options, name=study.name, out=out)
        return outcome

    monkeypatch.setattr(engine, "run_study", run_study)
    done = invoke("run", str(file), "--workers", "3", "--engine", "ray")
    assert (done.exit_code, asked["out"], asked["workers"], asked["engine"]) == (status, Path("studies/small"), 3, Engine.RAY)
    assert invoke("run", str(file), "--out", "there").exit_code == status
    assert (asked["out"], asked["workers"], asked["engine"]) == (Path("there"), None, Engine.PROCESSES)


def test_cells_are_listed_with_ids_states_and_the_estimate(file: Path, tmp_path: Path) -> None:
    done = invoke("cells", str(file), "--workers", "2")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(re.fullmatch(r"[0-9a-f]{16}  planned   (pooled|masked) · .*seed [12]", line) for line in lines[:4])
    assert lines[4] == "4 cells, 0 done already"
    assert lines[5].startswith("Estimate: ")
    assert "synthetic" in lines[6]
    assert not (tmp_path / "studies" / "small" / "results.db").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "none.toml"), "cannot read the study file none.toml"),
        (("cells", "none.toml"), "cannot read the study file none.toml"),
        (("processes", "none.toml"), "cannot read the study file none.toml"),
        (("processes", "study.toml"), "say task = 'segmentation', method = 'plain'"),
        (("report", "none"), "there are no results in none"),
        (("pretrain", "--plan", "none", "--out", "x.safetensors"), "none"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(file: Path, words: tuple[str, ...], said: str) -> None:
    done = invoke(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith("secagg-study: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_stop_before_anything_ran(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run_study", stopped)
    done = invoke("run", str(file))
    assert done.exit_code == 130
    assert "run the same command again" in done.stdout


def test_pretrain_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(startfile, "pretrain_to_file", lambda *words: asked.extend(words[:5]))
    line = "pretrain --plan hippocampus --out a.safetensors --seed 7 --steps 9 --volumes 8"
    assert invoke(*line.split()).exit_code == 0
    assert asked == ["hippocampus", Path("a.safetensors"), 7, 9, 8]


def test_processes_prints_a_row_for_each_cell_and_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(cells: Any, cache: Path, count: int) -> Any:
        assert (len(cells), cache, count) == (4, Path("there/work/cache"), 3)
        yield asynchrony.Together(asynchrony.Way.SHARED, 2, np.zeros(1, np.float32), 4.4, 8.6), 0.12345

    monkeypatch.setattr(asynchrony, "compare", compare)
    done = invoke("processes", str(file), "--out", "there", "--processes", "3")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[2:] == ["| shared | 2 | 0.123 | 4 | 9 |"]


@pytest.mark.parametrize("command", ["run", "cells", "report", "pretrain", "processes", "demo"])
def test_every_command_has_help(command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert len(done.stdout) > 300
