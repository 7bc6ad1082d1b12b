"""The inference benchmark runs, has a row for each target, and ends with status 1 where one falls short. Nothing is timed."""

import numpy as np
import pytest
import torch

from benchmarks import inference
from benchmarks.inference import QUICK, apart, in_turns, naive, of_monai, ours, world
from benchmarks.rows import Row

TARGETS = {  # figure begins with, target
    "our sliding window / MONAI's": "<= 1",
    "1 - Dice of our labels against MONAI's": "<= 0.002",
    "naive loop / ours": ">= 3",
    "float32 / bfloat16": ">= 2",
    "1 - Dice of bfloat16's labels": "<= 0.002",
    "growth of the peak / of the logits": "<= 0.200",
}


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(inference, "memory", lambda sizes: Row("growth of the peak / of the logits", 0.1, "", 0.2))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_it_runs_and_has_a_row_for_each_target(capsys, monkeypatch, in_this_process, has_bfloat16):
    monkeypatch.setattr(inference, "computes_in_bfloat16", lambda: has_bfloat16)
    assert inference.main(["--quick"]) == 0
    printed = capsys.readouterr()
    rows = rows_of(printed.out)
    assert len(rows) == len(TARGETS)
    for begin, target in TARGETS.items():
        (row,) = [row for row in rows if row[0].startswith(begin)]
        assert row[2] == target
    open_ = [row for row in rows if row[3] == "not measured"]
    assert len(open_) == (0 if has_bfloat16 else 2)
    assert all("does not multiply bfloat16" in row[0] for row in open_)
    assert "no verdict" in printed.out


def test_a_target_that_falls_short_is_a_failure(capsys, monkeypatch):
    short = [Row("our sliding window / MONAI's, CPU", 1.2, "", 1.0)]
    monkeypatch.setattr(inference, "measure", lambda *_: iter(short))
    assert inference.main([]) == 1
    assert "falls short" in capsys.readouterr().out


def test_all_ways_say_the_same_of_a_scan_that_has_all_labels():
    made = world(QUICK, QUICK.scan)
    labels, seconds = in_turns({"ours": ours(made, "fp32"), "MONAI's": of_monai(made), "naive": naive(made)}, 1)
    assert set(np.unique(labels["naive"])) == {0, 1, 2}
    assert apart(labels["ours"], labels["naive"]) < 0.002
    assert apart(labels["MONAI's"], labels["naive"]) < 0.002
    assert {len(spent) for spent in seconds.values()} == {1}
    assert apart(1 - np.minimum(labels["naive"], 1), labels["naive"]) > 0.5
    assert torch.is_grad_enabled()
