"""The benchmark of shared noise runs, has a row for each target, and ends with status 1 where one falls short."""

import pytest

from benchmarks import shared_noise
from benchmarks.rows import Row


def test_it_runs_and_has_a_row_for_each_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert shared_noise.main(["--quick"]) in {0, 1}
    printed = capsys.readouterr().out
    assert ">= 5 M/s" in printed
    assert "| <= 3 " in printed
    assert printed.count("holds") + printed.count("falls short") == 2


def test_a_row_that_falls_short_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for measured, wanted in ((2.0, 0), (4.0, 1)):
        row = Row("a member's masking", measured, "", 3.0)
        monkeypatch.setattr(shared_noise, "rows", lambda *_, row=row: [row])
        assert shared_noise.main(["--quick"]) == wanted
