"""The app's benchmark runs on a short run and has a row for each target. Nothing is timed."""

import pytest

from benchmarks import app
from benchmarks.app_world import add_round, write_run
from benchmarks.rows import Verdict
from coordinator.store import open_store


def test_what_was_not_measured_says_so():
    rows = app.rows_of({"first": 2.0, "tabs": 0.4})
    assert [row.verdict for row in rows[:3]] == [Verdict.HOLDS, Verdict.NOT_MEASURED, Verdict.FALLS_SHORT]
    assert len(rows) == 3 + len(app.PAGES)


def test_a_new_round_is_measured_on_every_page(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["app.py"])
    plan = write_run(tmp_path, 4, 3)
    add_round(tmp_path, plan, 5)  # as the tabs left it
    found = app.refreshes(tmp_path, plan, app.Sizes(rounds=4, hospitals=3, refreshes=1))
    assert list(found) == list(app.PAGES)
    with open_store(tmp_path / "store.db") as store:
        assert store.rounds()[-1].number == 5 + len(app.PAGES)


def test_the_written_run_is_what_a_coordinator_leaves(tmp_path):
    write_run(tmp_path, 17, 3)
    with open_store(tmp_path / "store.db") as store:
        rounds = store.rounds()
        assert [row.number for row in rounds] == list(range(1, 18))
        assert rounds[6].dropped
        assert len(store.scores()) == 2 * 18
        assert store.newest_events(1)[0].kind == "opened"


def test_without_a_browser_nothing_is_claimed(monkeypatch, capsys):
    monkeypatch.setattr(app, "browser_path", lambda: None)
    assert app.main([]) == 0
    printed = capsys.readouterr()
    assert "chromium is absent" in printed.err
    assert printed.out.count("not measured") == 3 + len(app.PAGES)


@pytest.mark.parametrize("text", ["1 (a b) R 1 1", "77 (python (x)) S 3"])
def test_cpu_seconds_are_read_whatever_the_process_is_called(monkeypatch, text):
    line = text + " 0" * 8 + " 250 150 0 0"
    monkeypatch.setattr(app.Path, "read_text", lambda _: line)
    monkeypatch.setattr(app.os, "sysconf", lambda _: 100)
    assert app.cpu_s(1) >= 0
