"""The plan templates that come with the product: what each of them promises a hospital before anything runs."""

from __future__ import annotations

import pytest

from proto.plan import Hospital, Plan
from study import presets

FLOAT32_BITS = 32
WORD_BITS = 64
NAMES = sorted(path.stem for path in presets.PLANS.glob("*.toml"))


def plan_of(name: str) -> Plan:
    """For four hospitals of 33 patients."""
    hospitals = [Hospital(uri=f"secagg://any/hospital/h{at}", declared_patients=33) for at in range(4)]
    fields = presets.load(name).fields
    return presets.complete(fields, study="any", hospitals=hospitals, evaluators=(), start_digest=None, rounds=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_update_is_smaller_than_the_plain_one(name: str) -> None:
    assert WORD_BITS / plan_of(name).masking.lanes < FLOAT32_BITS
