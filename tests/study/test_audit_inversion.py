"""Scans drawn from updates: the attack works where nothing protects the update, and finds nothing behind masks or noise."""

from __future__ import annotations

import numpy as np
import pytest

from study.audit import inversion, victims
from study.audit.inversion import attempts, masked
from study.bench.draws import seeded

STEPS = 100  # of the search; the command line takes three times as many


@pytest.fixture(scope="module")
def likeness() -> dict[tuple[str, str], float]:
    found = attempts(seeded("inversion"), steps=STEPS)
    return {(one.network, one.update): one.likeness for one in found}


def test_a_plain_update_of_a_dense_layer_is_the_scan(likeness: dict[tuple[str, str], float]) -> None:
    assert likeness["dense layer", "plain"] > 0.999


def test_a_plain_update_of_the_segmentation_network_shows_the_body(likeness: dict[tuple[str, str], float]) -> None:
    assert likeness["segmentation network", "plain"] > 0.35


@pytest.mark.parametrize("network", ["dense layer", "segmentation network"])
@pytest.mark.parametrize("update", ["masked", "noised"])
def test_behind_a_mask_or_noise_there_is_nothing(likeness: dict[tuple[str, str], float], network: str, update: str) -> None:
    assert abs(likeness[network, update]) < 0.15


def test_the_masked_update_is_the_upload_of_a_real_session() -> None:
    update = victims.dense().update(0.0, seeded("x"))
    first, second = masked(update, seeded("a")), masked(update, seeded("b"))
    assert first.shape == update.shape
    assert np.abs(first).max() <= inversion.CLIP
    assert first.std() == pytest.approx(1 / np.sqrt(3), rel=0.02)  # uniform over the whole range, whatever the update
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first, update)[0, 1]) < 0.03


def test_noise_is_all_that_protects_in_the_noised_case() -> None:
    whom = victims.dense()
    silent = inversion.divide(whom, whom.update(0.0, seeded("y")))
    assert np.corrcoef(silent.reshape(-1), whom.scan.reshape(-1))[0, 1] > 0.999
    assert inversion.cost() == pytest.approx(4.38, abs=0.01)
