"""The soak's arithmetic: what a slope is taken of, and which run is judged. No process is started."""

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.rows import Verdict
from benchmarks.soak import Sample, draw, rows_of, settled, slope_mib


def samples_of(rounds, grown_mib_per_1000, begin_mib=100.0):
    """A run whose first tenth grows fast and whose rest grows evenly."""
    last = rounds[-1]
    settles = 0.1 * last

    def resident(done):
        return begin_mib + 50 * min(done, settles) / settles + grown_mib_per_1000 * max(0, done - settles) / 1000

    return [
        Sample(float(done), done, {"node": resident(done), "other": 7.0}, {"node": 0.1 * done, "other": 0.0}) for done in rounds
    ]


@pytest.mark.parametrize("grown", [0.0, 0.5, 3.0])
def test_the_slope_leaves_the_first_tenth_out(grown):
    samples = samples_of(range(0, 2500, 10), grown)
    assert slope_mib(samples, "node") == pytest.approx(grown, abs=1e-6)
    assert settled(samples)[0].rounds == 250


def test_a_process_that_grows_falls_short_and_so_do_too_few_rounds():
    rows = rows_of(samples_of(range(0, 2500, 10), 1.1))
    assert [row.verdict for row in rows] == [Verdict.FALLS_SHORT, Verdict.HOLDS, Verdict.HOLDS]
    rows = rows_of(samples_of(range(0, 1000, 10), 0.9))
    assert [row.verdict for row in rows] == [Verdict.HOLDS, Verdict.HOLDS, Verdict.FALLS_SHORT]
    assert rows_of([])[-1].verdict is Verdict.FALLS_SHORT


@pytest.mark.parametrize(
    ("rounds", "grown", "minutes", "status"), [(2500, 0.1, 60, 0), (2500, 2.0, 60, 1), (300, 9.0, 5, 0), (0, 0, 60, 1)]
)
def test_a_short_run_is_shown_and_not_judged(monkeypatch, tmp_path, capsys, rounds, grown, minutes, status):
    steps = range(0, rounds + 10, 10) if rounds else [0, 0]
    monkeypatch.setattr(
        soak, "play", lambda *_: samples_of(steps, grown) if rounds else [Sample(0.0, 0, {"node": 1.0}, {"node": 0.0})] * 2
    )
    assert soak.main(["--minutes", str(minutes), "--plot", str(tmp_path / "soak.png")]) == status
    printed = capsys.readouterr().out
    assert ("no verdict" in printed) == (minutes < 60)
    assert (tmp_path / "soak.png").exists() == bool(rounds)


def test_the_picture_shows_every_process(tmp_path):
    samples = samples_of(range(0, 500, 5), 0.4)
    draw(samples, tmp_path / "a.png")
    pixels = np.frombuffer((tmp_path / "a.png").read_bytes(), np.uint8)
    assert len(pixels) > 10_000
