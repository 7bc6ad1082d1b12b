"""Shared noise among real processes over mutual TLS: a hospital is killed, and what is opened is exact."""

import signal

import numpy as np
import pytest
from small_federation import HOSPITALS, SmallFederation

from hospital_node.ledger import Charge
from proto import shared_noise
from proto.plan import short_name
from secagg.discrete_gaussian import NoiseStream
from secagg.keystream import Door
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

KEY_BYTES = 16
PARTS = {
    "training": {"local_steps": 1, "patches_per_patient": 2, "optimizer": "sgd", "learning_rate": 1.0},
    "privacy": {
        "noise_mode": "shared",
        "noise_multiplier": 2.0,
        "inverse_sampling_rate": 2,
        "delta": 1e-3,
        "norm_steps": 2000,
        "may_drop": 1,
        "may_collude": 1,
    },
}


@pytest.fixture
def family():
    with Family(1) as processes:
        yield processes


def noise_of(federation, name: str, kept: int) -> np.ndarray:
    """The first `kept` components of a hospital's share, drawn again from its keys."""
    keys = (federation.folder / "updates" / name / "round-1.keys").read_bytes()
    variances = shared_noise.shares_of(federation.plan).components()
    assert len(keys) == KEY_BYTES * len(variances)
    length = len(federation.update(name, 1))
    total = np.zeros(length, dtype=np.int64)
    for number in range(kept):
        key = keys[KEY_BYTES * number : KEY_BYTES * (number + 1)]
        total += NoiseStream(key, variances[number], Door.CTR).values(length)
    return total


def opened_integers(federation, reader, survivors: int) -> np.ndarray:
    (file,) = federation.world.coordinator.rglob(f"{reader.means()[1]}.*")
    mean = np.fromfile(file, dtype="<f4").astype(np.float64)
    unit = federation.plan.privacy.clip_norm / shared_noise.scale(federation.plan, len(mean))
    exact = mean * survivors / unit
    assert np.abs(exact - np.rint(exact)).max() < 0.02
    return np.rint(exact).astype(np.int64)


@pytest.mark.parametrize(("phase", "lost"), [("mask", 0), ("share", 1)])
def test_whoever_is_killed_the_noise_that_stays_is_exact(tmp_path, family, phase, lost):
    """Killed after its upload, a hospital's surplus is taken out from others' shares; killed before, what was surplus stays."""
    masking = {"lanes": 2, "update_clip": 1.0}
    federation = SmallFederation(tmp_path, family, rounds=1, drill_pause_s=3.0, parts=PARTS, masking=masking)
    federation.approve()
    federation.start_all()
    with federation.store() as reader:
        federation.wait(lambda: any((e.kind, e.phase) == ("phase", phase) for e in reader.events()), 300, f"{phase} is over")
        victim = federation.nodes["east"]
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        federation.family.children.remove(victim)
        federation.wait(lambda: reader.rounds()[0].state == "opened", 300, "the round opens without the killed node")
        survivors = {short_name(uri) for uri in reader.rounds()[0].survivors}
        assert survivors == set(HOSPITALS) - ({"east"} if lost else set())
        total = opened_integers(federation, reader, len(survivors))
    sums = sum(federation.update(name, 1) for name in survivors)
    assert all(federation.update(name, 1).dtype == np.int64 for name in survivors)
    assert np.array_equal(total, sums + sum(noise_of(federation, name, 1 + lost) for name in survivors))
    assert not np.array_equal(total, sums + sum(noise_of(federation, name, 2 - lost) for name in survivors))
    charged = [event.entry for event in federation.ledger("north").events() if isinstance(event.entry, Charge)]
    assert [(charge.round, charge.shared.may_collude) for charge in charged] == [(1, 1)]
    assert federation.ledger("north").budget(federation.plan).relies.honest == 3
