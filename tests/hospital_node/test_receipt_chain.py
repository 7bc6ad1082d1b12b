"""The chain of receipts: any single change is named at its number, and keys follow each other by statements alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.party import fingerprint_of, public_key_der_of
from certs.succession import Succession, sign_succession
from hospital_node.receipts import (
    BEFORE_FIRST,
    ChargeFact,
    EpsilonFact,
    Receipt,
    ReceiptError,
    Signed,
    parse,
    sign,
    verify,
)
from hospital_node.reporting.model import PrivacyReport
from hospital_node.withdrawing import Certificate

ME = "secagg://lidc/hospital/h0"
KEYS = [ec.derive_private_key(number, ec.SECP256R1()) for number in (11, 12, 13)]
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return public_key_der_of(key.public_key())


def receipt(number: int, previous: str, key: ec.EllipticCurvePrivateKey, **more: object) -> Receipt:
    fields: dict[str, object] = {
        "number": number,
        "previous": previous,
        "hospital": ME,
        "key": fingerprint_of(der(key)).hex(),
        "at": NOW.isoformat(),
        "study": "lidc",
        "plan": "ab" * 32,
        "round": number,
        "outcome": "counted",
        "in_sum": True,
        "sent_bytes": {"mask": 1000 + number},
        "received_bytes": {"broadcast": 5},
        "charge": ChargeFact(entry=number + 2, digest="cd" * 32),
        "epsilon": EpsilonFact(of_round=0.1, spent=0.1 * number, left=8 - 0.1 * number, cap=8.0, delta=1e-5),
        "ledger_entries": number + 2,
        "ledger_head": "ef" * 32,
    }
    return Receipt.model_validate({**fields, **more})


def chain(keys: Sequence[ec.EllipticCurvePrivateKey]) -> list[Signed]:
    """One receipt by each key."""
    made: list[Signed] = []
    for number, key in enumerate(keys, start=1):
        previous = made[-1].digest if made else BEFORE_FIRST
        made.append(sign(receipt(number, previous, key), key, der(key)))
    return made


chains = st.integers(1, 5).map(lambda size: chain(KEYS[:1] * size))


def first_bad(signed: Sequence[Signed], **more: object) -> int:
    with pytest.raises(ReceiptError) as error:
        verify(signed, **more)
    return error.value.number


@given(chains)
def test_a_chain_holds_and_its_bytes_are_the_same_again(signed):
    receipts = verify(signed, trusted={fingerprint_of(der(KEYS[0]))})
    assert [one.canonical() for one in receipts] == [one.body for one in signed]
    assert [sign(one, KEYS[0], der(KEYS[0])) for one in receipts] == signed


@settings(deadline=None, max_examples=150)
@given(chains, st.data())
def test_any_changed_byte_is_named_at_its_number(signed, data):
    place = data.draw(st.integers(0, len(signed) - 1))
    name = data.draw(st.sampled_from(["body", "signature", "public_key"]))
    value = getattr(signed[place], name)
    at = data.draw(st.integers(0, len(value) - 1))
    other = data.draw(st.integers(0, 127).filter(lambda code: code != value[at]))
    changed = [*signed]
    changed[place] = dataclasses.replace(signed[place], **{name: value[:at] + bytes([other]) + value[at + 1 :]})
    assert first_bad(changed) == place + 1


@given(st.integers(2, 6).map(lambda size: chain(KEYS[:1] * size)), st.data())
def test_a_missing_doubled_or_moved_receipt_is_named(signed, data):
    place = data.draw(st.integers(0, len(signed) - 2))
    assert first_bad(signed[:place] + signed[place + 1 :]) == place + 1
    assert first_bad(signed[: place + 1] + signed[place:]) == place + 2
    assert first_bad([*signed[:place], signed[place + 1], signed[place], *signed[place + 2 :]]) == place + 1


def resigned(signed: list[Signed], place: int, **change: object) -> list[Signed]:
    """What a holder of the key can do: change one, and sign it and all that follow again."""
    made = signed[:place]
    for one in signed[place:]:
        fields = json.loads(one.body) | {"previous": made[-1].digest if made else BEFORE_FIRST} | change
        made.append(sign(Receipt.model_validate_json(json.dumps(fields)), KEYS[0], der(KEYS[0])))
        change = {}
    return made


def test_a_round_left_out_is_a_gap_although_all_was_signed_again():
    signed = resigned(chain(KEYS[:1] * 3), 1, round=3)
    assert first_bad(signed) == 2
    with pytest.raises(ReceiptError, match="round 2 has no receipt"):
        verify(signed)


def test_another_hospitals_receipt_is_named():
    assert first_bad(resigned(chain(KEYS[:1] * 3), 2, hospital="secagg://lidc/hospital/h1")) == 3


def test_a_second_plan_counts_its_rounds_from_one():
    signed = resigned(chain(KEYS[:1] * 2), 1, plan="ba" * 32, round=1)
    assert [one.round for one in verify(signed)] == [1, 1]


@pytest.mark.parametrize("spelling", [json.dumps, lambda fields: json.dumps(fields, separators=(",", ":"))[::1] + " "])
def test_a_second_spelling_of_the_same_receipt_is_refused(spelling):
    (one,) = chain(KEYS[:1])
    with pytest.raises(ReceiptError, match="canonical"):
        parse(spelling(json.loads(one.body)).encode(), 1)


# ---- keys ----


def renewal(old: int, new: int, uri: str = ME) -> Succession:
    return sign_succession(uri, KEYS[old], KEYS[new].public_key(), NOW, timedelta(days=30))


def test_a_renewed_key_is_followed_through_its_statements():
    signed = chain([KEYS[0], KEYS[0], KEYS[2]])
    assert len(verify(signed, [renewal(1, 2), renewal(0, 1)])) == 3
    assert len(verify(signed, [renewal(0, 1), renewal(1, 2)], {fingerprint_of(der(KEYS[0]))})) == 3
    assert len(verify(signed, [], {fingerprint_of(der(KEYS[2]))})) == 3, "people confirmed the new one"


@pytest.mark.parametrize(
    "statements",
    [
        [],
        [renewal(0, 1)],
        [renewal(1, 2)],
        [renewal(0, 2, "secagg://lidc/hospital/h1")],
        [renewal(2, 0)],
        [renewal(0, 1), renewal(1, 0)],
    ],
    ids=["none", "to another", "from another", "of another party", "backwards", "in a circle"],
)
def test_a_key_that_nobody_vouched_for_is_named(statements):
    signed = chain([KEYS[0], KEYS[0], KEYS[2]])
    assert first_bad(signed, successions=statements) == 3


def test_keys_that_nobody_confirmed():
    with pytest.raises(ReceiptError, match="a key that nobody confirmed"):
        verify(chain(KEYS[:1]), trusted={fingerprint_of(der(KEYS[1]))})


def test_a_signature_of_the_right_key_under_another_name_is_refused():
    (one,) = chain(KEYS[:1])
    other = sign(receipt(1, BEFORE_FIRST, KEYS[0]), KEYS[1], der(KEYS[1]))
    with pytest.raises(ReceiptError, match="another key than it names"):
        verify([other])
    with pytest.raises(ReceiptError, match="does not verify"):
        verify([dataclasses.replace(one, signature=other.signature)])


def test_everything_that_a_node_signs_as_json_names_its_own_format():
    """One key signs receipts, reports and certificates of withdrawal: none may be read as another."""
    kinds = (Receipt, PrivacyReport, Certificate)
    assert len({kind.model_fields["format"].default for kind in kinds}) == len(kinds)
    assert all(kind.model_config["extra"] == "forbid" for kind in kinds)
