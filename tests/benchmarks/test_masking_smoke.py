"""The masking benchmark runs, has a row for each target, and ends with status 1 where one falls short. Nothing is timed."""

import hashlib
import itertools

import numpy as np
import pytest

from benchmarks import masking, masking_round
from benchmarks.masking_memory import client_vectors, peak_bytes, server_vectors
from benchmarks.masking_round import Stopwatch, parameters, play, record, update_of
from benchmarks.primitives import Floor, Rates, floor_of, rates_here
from benchmarks.rows import Row, Verdict, status, table
from secagg import Door, UploadSeal

TARGETS = {  # figure begins with, target as the reference machine has it
    "mask made and added": ">= 0.650",
    "client, n=": "ms CPU",
    "server, n=4": "ms CPU",
    "server, n=6": "ms CPU",
    "server, n=30, 20,000 values, 2 lost, sparse graph": "ms CPU",
    "upload / float32, n=4, 40,000 values, 3 lanes": "<= 0.680",
    "upload / float32, n=4, 40,000 values, 8 lanes": "<= 0.260",
    "upload / float32, n=6, 20,000 values, 3 lanes": "<= 0.750",
    "client, peak memory, whole": "<= 1 vectors",
    "client, peak memory, streamed": "<= 0.100 vectors",
    "server, peak memory, n=4": "<= 2 vectors",
    "server, peak memory, n=6": "<= 2 vectors",
}


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_it_runs_and_has_a_row_for_each_target(capsys):
    assert masking.main(["--quick"]) == 0
    printed = capsys.readouterr()
    rows = rows_of(printed.out)
    assert len(rows) == len(TARGETS)
    for begin, target in TARGETS.items():
        (row,) = [row for row in rows if row[0].startswith(begin)]
        assert target in row[2]
        assert row[3] in {"holds", "falls short"}
    assert "no verdict" in printed.out
    assert "with the digest of its upload" in printed.err


FALLS = Row("a", 2.0, "ms", 1.0)
HOLDS = Row("b", 1.0, "ms", 1.0)
OPEN = Row("c: no such machine here", None, "ms", 1.0)


@pytest.mark.parametrize(("rows", "expected"), [([HOLDS, OPEN], 0), ([HOLDS, FALLS, OPEN], 1), ([FALLS], 1)])
def test_a_row_that_falls_short_is_a_failure(monkeypatch, capsys, rows, expected):
    monkeypatch.setattr(masking, "measure", lambda _: iter(rows))
    assert masking.main([]) == expected == status(rows)
    assert [row[3] for row in rows_of(capsys.readouterr().out)] == [row.verdict.value for row in rows]
    assert masking.main(["--quick"]) == 0


def test_verdicts():
    assert FALLS.verdict is Row("d", 0.64, "", 0.65, at_least=True).verdict is Verdict.FALLS_SHORT
    assert HOLDS.verdict is Row("d", 0.65, "", 0.65, at_least=True).verdict is Verdict.HOLDS
    assert OPEN.verdict is Verdict.NOT_MEASURED
    assert rows_of(table([Row("d", 0.6412, "", 0.65, at_least=True)])) == [["d", "0.641", ">= 0.650", "falls short"]]


def test_targets_follow_the_machine():
    bench = masking.Bench(masking.QUICK, Door.CTR, [6.0, 3.0, 5.0], print)
    assert bench.scaled(30.0) == 60.0  # half as fast as the reference, when it was fastest
    assert masking.Bench(masking.QUICK, Door.CTR, [24.0], print).scaled(30.0) == 15.0


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("lost", [0, 2])
def test_a_recorded_round_opens_as_often_as_it_is_played(trusting, lost):
    update = update_of(1000)
    recording = record(parameters(7, 1000), lost, update, Door.GCM, trusting=trusting)
    for threads in (1, 2):
        watch, opened = play(recording, Door.XTS, threads=threads)
        assert np.abs(opened.mean - np.clip(update, -1, 1)).max() < 1e-4
        assert {"adverts", "shares", "seals", "sum", "list", "reveals", "open", "(relay)", "(arrival)"} == {
            f"({label})" if label in masking.APART else label for label in watch.spent_s
        }
    assert len(recording.client_s()) == 7 - lost == len(recording.uploads)
    assert all(spent > 0 for spent in recording.client_s())


def test_a_stopwatch_keeps_transport_apart():
    watch = Stopwatch()
    watch.spent_s.update({"mask": 2.0, "arrival": 3.0, "relay": 5.0})
    assert watch.sum_s() == 2.0


def test_the_digest_of_an_upload_is_measured_once_more_apart(monkeypatch):
    """A clock that ticks once for each reading: two pieces and the seal are three spans, the digest is one."""

    class Upload:
        total_bytes = 5

        def pieces(self):
            return iter((b"abc", b"de"))

        def finish(self):
            return UploadSeal(hashlib.sha256(b"abcde").digest(), b"signature")

    ticks = itertools.count()
    monkeypatch.setattr(masking_round, "process_time", lambda: float(next(ticks)))
    watch = Stopwatch()
    assert masking_round._taken(watch, Upload())[0] == b"abcde"
    assert watch.spent_s == {"mask": 3.0, "arrival": 1.0}


def test_what_a_coordinator_cannot_do_without():
    recording = record(parameters(7, 1000), 2, update_of(1000), Door.GCM, trusting=True)
    floor = floor_of(recording)
    assert (floor.signatures, floor.agreements) == (7 + 7 + 5 + 5, 2 * 5)
    assert floor.mask_bytes == (5 + 10) * 8 * 334
    assert Floor(3, 2, 10**9).ms(Rates(40.0, 20.0, 10.0)) == pytest.approx(0.12 + 0.04 + 100)
    here = rates_here(5.0)
    assert here.ctr_gb_per_s == 5.0
    assert here.verify_us > 0 < here.agree_us


def test_peak_memory_is_what_was_held_at_once():
    megabyte = 1 << 20
    kept = np.ones(megabyte)

    def work():
        first = np.ones(megabyte, np.uint8)
        del first
        second, third = np.ones(2 * megabyte, np.uint8), bytearray(megabyte)
        return second, third, kept

    assert peak_bytes(work) == pytest.approx(3 * megabyte, rel=0.01)


def test_memory_stays_below_the_targets_where_a_vector_is_no_longer_small():
    """Three quarters of a million values; the buffers of fixed size weigh three times as much as at five million."""
    length = 750_000
    update = update_of(length)
    assert 0.67 < client_vectors(parameters(4, length), update, Door.XTS, streamed=False) <= 1.3
    assert client_vectors(parameters(4, length), update, Door.XTS, streamed=True) <= 0.64  # 0.093 at five million
    recording = record(parameters(4, length), 1, update, Door.XTS, summed=True)
    assert 1.67 < server_vectors(recording, Door.XTS, 1) <= 2.03
