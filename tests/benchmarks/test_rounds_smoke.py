"""The benchmark of rounds runs with real processes, has a row for each target, and ends with status 1 where one falls short."""

import pytest

from benchmarks import rounds
from benchmarks.rows import Row

pytestmark = [pytest.mark.slow, pytest.mark.sockets]


def test_a_crowd_of_simulated_nodes_completes_a_round(capsys):
    assert rounds.main(["--quick", "--part", "crowd"]) == 0
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("| ")][
        1:
    ]
    assert lines[0][1:3] == ["12", ">= 12"]
    assert lines[1][3] == "holds"
    assert "no verdict" in printed


def test_rounds_of_nodes_that_do_not_train_are_measured(capsys):
    assert rounds.main(["--quick", "--part", "nodes"]) == 0
    printed = capsys.readouterr()
    assert "3 nodes, 0.8 MB" in printed.out
    for said in ("loopback", "masking alone", "round 2: train", "transport"):
        assert said in printed.err


@pytest.mark.parametrize(("value", "expected"), [(1.5, 0), (1.6, 1)])
def test_a_row_that_falls_short_is_a_failure(monkeypatch, capsys, value, expected):
    monkeypatch.setattr(rounds, "around_training", lambda *_: Row("a", value, "", 1.5))
    monkeypatch.setattr(rounds, "crowd_rows", lambda *_: iter(()))
    assert rounds.main([]) == expected
    capsys.readouterr()
