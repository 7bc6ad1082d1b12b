"""The training benchmark runs, has a row for each target, and ends with status 1 where one falls short. Nothing is timed."""

import mmap
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import dp_training, dp_training_memory
from benchmarks.dp_training import Bench, Sizes, Timed, take_turns
from benchmarks.dp_training_memory import NotMeasured, Request, measure, measure_apart
from benchmarks.dp_training_steps import Setting, equal_to_opacus, prepare, update_of
from benchmarks.rows import Row, Verdict, status
from hospital_node import train

SMALL = Setting(16, 4, batch=2)
MIB = 1 << 20
TARGETS = {  # figure begins with, target
    "fp32 step / plain, 16^3, 4 channels: time": "<= 1.15",
    "fp32 step / plain, 16^3, 4 channels: peak memory": "<= 0.350",
    "bf16 step / plain, 16^3, 4 channels: time": "<= 0.850",
    "bf16 step / plain, 16^3, 4 channels: peak memory": "<= 0.220",
    "Gaussian noise / ": "<= 0.050",
    "fp32 step without noise apart from Opacus' hooks": "<= 100 millionths",
    "one patient, 24^3, 4 channels, peak": "<= 4,096 MiB",
    "40 steps, growth": "<= 1 MiB / 1,000 steps",
}


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(dp_training_memory, "measure_apart", measure)


@pytest.fixture
def with_bfloat16(monkeypatch):
    monkeypatch.setattr(dp_training, "computes_in_bfloat16", lambda: True)


def test_it_runs_and_has_a_row_for_each_target(capsys, in_this_process, with_bfloat16):
    assert dp_training.main(["--quick"]) == 0
    printed = capsys.readouterr()
    rows = rows_of(printed.out)
    assert len(rows) == len(TARGETS)
    for begin, target in TARGETS.items():
        (row,) = [row for row in rows if row[0].startswith(begin)]
        assert row[2] == target
        assert row[3] in {"holds", "falls short"}
    assert rows[5][3] == "holds"
    assert "no verdict" in printed.out
    assert "Opacus' default hooks, 16^3, 4 channels" in printed.err


def test_every_setting_of_the_targets_is_measured():
    settings = {(one.side, one.channels, one.batch) for one in dp_training.FULL.settings}
    assert settings == {(side, channels, 8) for side in (32, 48, 64) for channels in (8, 16, 32)}
    assert dp_training.FULL.steps >= 15
    assert dp_training.FULL.long_steps == 2000
    assert (dp_training.FULL.large.side, dp_training.FULL.large.channels) == (96, 32)


@pytest.mark.parametrize(("rows", "expected"), [([Row("a", 2.0, "", 1.0)], 1), ([Row("a", 1.0, "", 1.0)], 0)])
def test_a_row_that_falls_short_is_a_failure(monkeypatch, capsys, rows, expected):
    monkeypatch.setattr(dp_training, "measure", lambda _: iter(rows))
    assert dp_training.main([]) == expected == status(rows)
    assert rows_of(capsys.readouterr().out)[0][3] == rows[0].verdict.value


@pytest.mark.usefixtures("in_this_process")
def test_a_cpu_without_bfloat16_and_a_machine_without_memory_are_rows_that_say_so(monkeypatch):
    def refused(_):
        raise NotMeasured("too little memory")

    monkeypatch.setattr(dp_training_memory, "measure_apart", refused)
    sizes = Sizes((SMALL,), (), Setting(24, 4, batch=1), steps=1, long_steps=20, seconds=0.0, processes=1)
    rows = list(dp_training.measure(Bench(sizes, lambda _: None, has_bfloat16=False)))
    open_rows = [row.figure for row in rows if row.verdict is Verdict.NOT_MEASURED]
    assert len(open_rows) == 4
    assert sum("does not multiply bfloat16" in figure for figure in open_rows) == 1
    assert sum(figure.endswith("too little memory") for figure in open_rows) == 3


def fake_steps(log):
    return {kind: SimpleNamespace(step=lambda kind=kind: log.append(kind)) for kind in ("plain", "fp32")}


def test_steps_are_taken_in_turn_and_the_first_turn_is_not_counted():
    log = []
    assert take_turns(fake_steps(log), wanted=3, seconds=1e9).turns == 3
    assert log == ["plain", "fp32"] * 4


def test_a_setting_whose_time_is_up_has_two_turns():
    log = []
    assert take_turns(fake_steps(log), wanted=15, seconds=0.0).turns == 2
    assert log == ["plain", "fp32"] * 2


def test_the_ratio_is_taken_turn_by_turn():
    timed = Timed({"plain": [1.0, 10.0, 2.0], "fp32": [2.0, 20.0, 1.0]})
    assert timed.ratio("fp32") == 2.0
    assert timed.median_s("plain") == 2.0


def test_steps_without_noise_are_those_of_opacus_and_not_the_ordinary_ones():
    silent = Setting(16, 4, batch=2, noise=0.0)
    assert equal_to_opacus(silent, "fp32") < 1e-4
    assert 1e-4 < equal_to_opacus(silent, "bf16") < 0.3
    assert equal_to_opacus(silent, "plain") > 0.1
    assert np.array_equal(update_of("fp32", silent), update_of("fp32", silent))


def test_a_private_step_is_noised_and_noise_alone_can_be_timed():
    prepared = prepare("fp32", SMALL)
    prepared.step()
    assert dp_training.noise_s(prepared) > 0
    with pytest.raises(TypeError, match="only a private step"):
        dp_training.noise_s(prepare("plain", SMALL))
    assert not np.array_equal(update_of("fp32", SMALL), update_of("fp32", SMALL))


def test_a_peak_is_what_a_step_held_beyond_what_was_there(monkeypatch):
    kept = torch.ones(30 << 18)

    def step():
        torch.ones(50 << 18)  # MiB as float32
        torch.ones(20 << 18)

    monkeypatch.setattr(dp_training_memory, "prepare", lambda *_: SimpleNamespace(step=step, kept=kept))
    assert measure(Request("fp32", SMALL)) == pytest.approx(50, abs=3)


def test_growth_is_the_slope_over_the_steps(monkeypatch):
    held = []

    def leaking(plan, *_, on_step):
        for step in range(1, plan.training.local_steps + 1):
            if step % 10 == 0:
                held.append(mmap.mmap(-1, MIB))  # no allocator between
                held[-1].write(b"x" * MIB)
            on_step(train.StepProgress(step, plan.training.local_steps))

    monkeypatch.setattr(train, "train_round", leaking)
    assert measure(Request("fp32", SMALL, steps=400)) == pytest.approx(100, rel=0.1)


def test_a_process_measures():
    assert 0 < measure_apart(Request("fp32", Setting(16, 4, batch=1))) < 200


def test_a_process_that_cannot_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(dp_training_memory, "CLEAR_REFS", tmp_path / "absent")
    reading, writing = multiprocessing.Pipe(duplex=False)
    dp_training_memory._report(Request("fp32", SMALL), writing)
    assert "which this system does not have" in reading.recv()


def test_a_process_that_dies_is_a_figure_that_is_missing():
    with pytest.raises(NotMeasured, match="its process ended with status 1"):
        measure_apart(Request("fp32", Setting(9, 4, batch=1)))  # no network halves nine voxels three times


def test_what_cannot_fit_is_not_begun(monkeypatch):
    monkeypatch.setattr(dp_training_memory, "available_mib", lambda: 1000.0)
    with pytest.raises(NotMeasured, match=r"it needs about 6\.2 GiB, and 1\.0 are free"):
        measure_apart(Request("plain", Setting(64, 32)))
