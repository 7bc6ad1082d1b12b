"""Federations with shared noise in one process: what the coordinator opens, to the integer, and what ledgers say of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction

import numpy as np
import pytest
from memory_world import LAYOUT, Trained, Ward, make_plan, update_of

from coordinator.export import export_run
from coordinator.replay import replay
from coordinator.store import open_store
from hospital_node.accounting import Mechanism, epsilon, outsider_epsilon
from hospital_node.cap import Cap, stated
from hospital_node.ledger import Ledger
from hospital_node.release import ReleaseDesk
from hospital_node.session import SessionRefused
from hospital_node.shared_accounting import Shares
from proto import shared_noise
from proto.layout import model_digest
from proto.plan import short_name
from secagg import node
from secagg.discrete_gaussian import NoiseStream
from secagg.noised import add_shares
from study.bench.federation import run_federation
from study.bench.readings import readings_of

SHARED = {"noise_mode": "shared", "noise_multiplier": 4.0, "norm_steps": 200, "may_drop": 1, "may_collude": 1}
PRIVACY = {"inverse_sampling_rate": 2, "delta": 1e-3, "clip_norm": 0.5, **SHARED}
PLAIN = {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0}


def shared_plan(hospitals: int = 4, rounds: int = 1, **fields):
    parts = {"training": PLAIN, "privacy": PRIVACY, "masking": {}, "aggregation": {"learning_rate": 0.5}}
    return make_plan(hospitals, rounds, **{**parts, **fields})


def sums_of(uri: str, number: int) -> np.ndarray:
    return np.rint(800 * update_of(uri, number, LAYOUT.length)).astype(np.int64)


class IntegerWard(Ward):
    """Hospitals whose sums are known."""

    def train(self, plan, uri, base, patients, *, threads=1, round=1, on_step=lambda _: None):  # noqa: A002
        super().train(plan, uri, base, patients, threads=threads, round=round, on_step=on_step)
        return Trained(sums_of(uri, round), model_digest(base))


@dataclass
class Watched:
    """What every hospital's noise came from: keys of its components, by (session, sums)."""

    shares: list[tuple[int, bytes, tuple[bytes, ...], tuple[Fraction, ...]]]

    def noise_of(self, number: int, uri: str, kept: int) -> np.ndarray:
        """The first `kept` components of one hospital's noise in one round, drawn again."""
        sums = sums_of(uri, number).astype(np.int32).tobytes()
        (found,) = [one for one in self.shares if one[:2] == (number, sums)]
        total = np.zeros(LAYOUT.length, dtype=np.int64)
        for key, variance in list(zip(*found[2:], strict=True))[:kept]:
            total += NoiseStream(key, variance).values(LAYOUT.length)
        return total


@pytest.fixture
def watched(monkeypatch):
    seen = Watched([])

    def recording(params, shared, sums, noise, door):
        variances = shared.shares(len(params.participants)).components()
        seen.shares.append((params.round, sums.tobytes(), tuple(noise), variances))
        return add_shares(params, shared, sums, noise, door)

    monkeypatch.setattr(node, "add_shares", recording)
    return seen


@pytest.fixture
def leaving(monkeypatch):
    """Names of hospitals that leave when they are asked to mask."""
    names, original = set(), ReleaseDesk.mask

    def mask(self, order):
        if short_name(self._member.uri) in names:
            raise SessionRefused("out-of-place", "left by the test")
        return original(self, order)

    monkeypatch.setattr(ReleaseDesk, "mask", mask)
    return names


def play(folder, plan, cap=None):
    ward = IntegerWard()
    stop = threading.Event()
    return run_federation(
        folder, plan, ward.start(), ward.seats(plan), cap=cap, data_is_public=True, on_round=lambda _: None, stop=stop
    )


def opened(folder, plan, number: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The integers of the opened sum, and whose they are."""
    with open_store(next(folder.rglob("store.db"))) as store:
        (row,) = [row for row in store.rounds() if row.number == number]
        (file,) = folder.rglob(f"{store.means()[number]}.*")
    mean = np.fromfile(file, dtype="<f4").astype(np.float64)
    unit = plan.privacy.clip_norm / shared_noise.scale(plan, LAYOUT.length)
    exact = mean * len(row.survivors) / unit
    assert np.abs(exact - np.rint(exact)).max() < 0.01  # float32 of integers below 2**20
    return np.rint(exact).astype(np.int64), row.survivors


@pytest.mark.parametrize("lost", [[], ["h2"]])
def test_the_opened_sum_is_the_integers_and_the_noise_that_must_stay_and_nothing_else(tmp_path, watched, leaving, lost):
    leaving.update(lost)
    plan = shared_plan()
    play(tmp_path, plan)
    total, survivors = opened(tmp_path, plan, 1)
    assert [short_name(uri) for uri in survivors] == [f"h{n}" for n in range(4) if f"h{n}" not in lost]
    kept = 1 + len(lost)  # what is kept beyond the first component makes up for whom was lost
    expected = sum(sums_of(uri, 1) + watched.noise_of(1, uri, kept) for uri in survivors)
    assert np.array_equal(total, expected)
    assert not np.array_equal(total, sum(sums_of(uri, 1) for uri in survivors))


def test_the_server_step_goes_by_the_expected_patients_and_an_export_replays_to_the_bit(tmp_path):
    plan = shared_plan(rounds=2, aggregation={"rule": "adam", "learning_rate": 0.01, "momentum": 0.9})
    done = play(tmp_path / "run", plan)
    total, survivors = opened(tmp_path / "run", plan, 1)
    gradient = total * plan.privacy.clip_norm / shared_noise.scale(plan, LAYOUT.length) / (len(survivors) * 10 / 2)
    first = 0.1 * gradient
    second = 0.99 * 1e-6 + 0.01 * gradient**2
    model = IntegerWard().start().vector + 0.01 * first / (np.sqrt(second) + 1e-3)
    with open_store(next((tmp_path / "run").rglob("store.db"))) as store:
        models = next((tmp_path / "run").rglob("models"))
        assert export_run(store, models, tmp_path / "out", datetime.now(UTC)) == 2
        digests = [row.model_digest for row in store.rounds()]
    published = np.fromfile(tmp_path / "out" / "models" / f"{digests[0]}.f32", dtype="<f4")
    assert published == pytest.approx(model, abs=1e-6)
    replayed = list(replay(tmp_path / "out"))
    assert [one.model for one in replayed] == digests
    assert model_digest(done.model).hex() == digests[1]


def test_more_lost_than_the_noise_allows_ends_the_session_in_words_although_the_threshold_holds(tmp_path, leaving):
    leaving.update(["h1", "h4"])
    plan = shared_plan(7)
    assert plan.threshold_of(7) == 5
    play(tmp_path, plan)
    with open_store(next(tmp_path.rglob("store.db"))) as store:
        (row,) = store.rounds()
        texts = [event.text for event in store.events()]
    assert row.state == "aborted"
    assert any(
        "5 of 7 members remain, 6 are needed: the noise is shared so that at most 1 may be lost" in text for text in texts
    )


def test_the_ledger_charges_the_reading_against_colluders_and_says_the_other(tmp_path):
    plan = shared_plan(rounds=3)
    done = play(tmp_path, plan, cap=Cap(epsilon=50.0, delta=1e-3))
    rows = done.rounds
    ledgers = list(tmp_path.rglob("ledger.db"))
    shares = Shares(200, 4, 1, 1)
    spent = Mechanism(4.0, 0.5, 3, shares)
    for path in ledgers:
        ledger = Ledger.open_readonly(path)
        charges = [event.entry for event in ledger.events() if type(event.entry).__name__ == "Charge"]
        assert [charge.shared.shares for charge in charges] == [shares] * 3
        view = ledger.budget(plan)
        assert view.spent == stated([spent], 1e-3)
        assert view.read_by == "orders"
        assert view.relies.outsider == outsider_epsilon([spent], 0.99e-3)
        assert view.relies.outsider < view.spent
    assert len(ledgers) == 4
    assert rows[-1].epsilon == stated([spent], 1e-3)
    assert readings_of(done.charged, 1e-3) == readings_of([[spent]], 1e-3)
    assert len(done.charged) == 4
    assert view.spent < epsilon([Mechanism(4.0, 0.5, 3)], 0.99e-3) * 1.3  # whole orders are near the tightest reading
