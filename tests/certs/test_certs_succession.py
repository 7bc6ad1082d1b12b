"""Renewed keys: what a statement of the old key is worth, where chains lead, and that no crash leaves a folder unusable."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from enrolled_study import LAKESIDE, ST_ANNA, Study
from hypothesis import given
from hypothesis import strategies as st

from certs import renewal
from certs.authority import Leaf, issue, sign_leaf
from certs.enrol import read_request
from certs.identity import Identity, load_identity
from certs.party import CertificateError, fingerprint_of, public_key_der_of
from certs.peers import Peer, PeerList
from certs.succession import (
    Succession,
    append_succession,
    chain_from,
    load_successions,
    new_statements,
    parse_succession,
    present_keys,
    sign_succession,
)

START = datetime(2026, 11, 21, tzinfo=UTC)
LIFE = timedelta(days=90)
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(5)]


def sha(number: int) -> bytes:
    return fingerprint_of(public_key_der_of(KEYS[number].public_key()))


def step(old: int, new: int, day: int = 60, uri: str = ST_ANNA) -> Succession:
    return sign_succession(uri, KEYS[old], KEYS[new].public_key(), START + timedelta(days=day), LIFE)


CONFIRMED = Peer(ST_ANNA, sha(0), "Dr. Adler", START)
CHAIN = (step(0, 1, 60), step(1, 2, 120), step(2, 3, 180))


def test_a_chain_leads_from_the_confirmed_key_to_the_present_one() -> None:
    for length in range(4):
        assert chain_from(CONFIRMED, CHAIN[:length]) == CHAIN[:length]
    assert present_keys(PeerList((CONFIRMED,)), CHAIN) == {ST_ANNA: sha(3)}
    assert present_keys(PeerList((CONFIRMED,)), CHAIN[1:]) == {ST_ANNA: sha(0)}, "a gap ends the chain before it"


@given(st.permutations(CHAIN))
def test_the_order_of_the_records_does_not_matter_where_no_key_branches(records: list[Succession]) -> None:
    assert chain_from(CONFIRMED, records) == CHAIN


def test_the_first_of_two_statements_of_one_key_counts() -> None:
    assert chain_from(CONFIRMED, (step(0, 1), step(0, 4))) == (step(0, 1),)


def test_statements_of_others_and_of_the_time_before_the_confirmation_do_not_count() -> None:
    assert chain_from(CONFIRMED, (step(0, 1, uri=LAKESIDE),)) == ()
    confirmed_again = replace(CONFIRMED, confirmed_at=START + timedelta(days=61))
    assert chain_from(confirmed_again, (step(0, 1, 60),)) == ()


def test_a_circle_ends() -> None:
    assert len(chain_from(CONFIRMED, (step(0, 1), step(1, 0, 61), step(0, 2, 62)))) == 2


def test_a_statement_is_worth_nothing_without_the_old_keys_signature() -> None:
    good = step(0, 1)
    impostor = public_key_der_of(KEYS[4].public_key())
    for change in (
        {"new_key": impostor},
        {"uri": LAKESIDE},
        {"not_after": good.not_after - timedelta(days=1)},
        {"not_before": good.not_before + timedelta(days=1)},
        {"old_key": impostor},
    ):
        with pytest.raises(CertificateError, match="is not signed by its old one"):
            replace(good, **change)  # type: ignore[arg-type]
    with pytest.raises(CertificateError, match="at most 91 days"):
        sign_succession(ST_ANNA, KEYS[0], KEYS[1].public_key(), START, timedelta(days=400))
    with pytest.raises(CertificateError, match="its own key"):
        sign_succession(ST_ANNA, KEYS[0], KEYS[0].public_key(), START, LIFE)


def test_what_is_offered_must_lead_from_the_pin_to_the_key_now() -> None:
    now = START + timedelta(days=200)
    assert new_statements(sha(0), CHAIN, sha(3), now) == CHAIN
    assert new_statements(sha(1), CHAIN, sha(3), now) == CHAIN[1:], "what is known already is passed over"
    for pinned, offered, key in (
        (sha(4), CHAIN, sha(3)),
        (sha(0), CHAIN[:2], sha(3)),
        (sha(0), CHAIN, sha(4)),
        (sha(3), (), sha(3)),
    ):
        with pytest.raises(CertificateError, match="do not lead from the confirmed key"):
            new_statements(pinned, offered, key, now)
    for late in (START + timedelta(days=300), START + timedelta(days=150)):
        with pytest.raises(CertificateError, match="announced for another time"):
            new_statements(sha(0), CHAIN, sha(3), late)


@given(st.binary(max_size=60) | st.just(b"[]") | st.just(b"{}"))
def test_any_other_bytes_are_one_sentence(line: bytes) -> None:
    with pytest.raises(CertificateError, match="no readable statement"):
        parse_succession(line, "it")


@pytest.mark.parametrize("field", ["uri", "old_key", "new_key", "not_before", "not_after", "signature"])
def test_a_changed_field_is_refused(field: str) -> None:
    fields = json.loads(step(0, 1).encoded())
    was = fields[field]
    fields[field] = was + 1 if isinstance(was, int) else was[:-1] + ("1" if was.endswith("0") else "0")
    with pytest.raises(CertificateError):
        parse_succession(json.dumps(fields).encode(), "it")


def test_statements_are_kept_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "successions.jsonl"
    assert load_successions(path) == ()
    for one in (*CHAIN, CHAIN[0]):
        append_succession(path, one)
    assert load_successions(path) == CHAIN
    path.write_text(path.read_text().replace(ST_ANNA, LAKESIDE))
    with pytest.raises(CertificateError, match="is not signed by its old one"):
        load_successions(path)


# ---- the folder ----


@pytest.fixture
def folder(enrolled: Study, tmp_path: Path) -> Path:
    return Path(shutil.copytree(enrolled.st_anna, tmp_path / "identity"))


def signed(enrolled: Study, asked: renewal.Asked) -> bytes:
    leaf = read_request(asked.request_pem, "it")
    return sign_leaf(enrolled.authority, Leaf(leaf.uri, leaf.public_key), datetime.now(UTC))


def now() -> datetime:
    return datetime.now(UTC)


def test_a_certificate_is_renewed_from_day_60_with_another_key(enrolled: Study, folder: Path) -> None:
    old = load_identity(folder)
    issued = old.not_after - LIFE
    assert [renewal.is_due(old.not_after, issued + timedelta(days=day)) for day in (0, 59, 60, 89)] == [
        False,
        False,
        True,
        True,
    ]
    asked = renewal.ask(folder, old, now())
    assert renewal.ask(folder, old, now()).request_pem == asked.request_pem, "a lost answer is asked for again, not a third key"
    renewal.keep(folder, old, signed(enrolled, asked), now())
    assert load_identity(folder).fingerprint == old.fingerprint, "nothing changes before the change"
    assert renewal.finish(folder)
    new = load_identity(folder)
    assert (new.uri, new.fingerprint) == (old.uri, asked.succession.new_sha256)
    assert (folder / "node.key").stat().st_mode & 0o777 == 0o600
    assert not (folder / "next").exists()
    assert not renewal.finish(folder)


@pytest.mark.parametrize("moved", [(), ("node.key",), ("node.key", "node.crt"), ("node.key", "node.crt", "node.csr")])
def test_a_crash_in_the_middle_of_the_change_is_finished_at_the_next_start(
    enrolled: Study, folder: Path, moved: tuple[str, ...]
) -> None:
    old = load_identity(folder)
    asked = renewal.ask(folder, old, now())
    renewal.keep(folder, old, signed(enrolled, asked), now())
    for name in moved:
        (folder / "next" / name).replace(folder / name)
    renewal.finish(folder)
    assert load_identity(folder).fingerprint == asked.succession.new_sha256
    assert renewal.ask(folder, load_identity(folder), now()).succession.old_sha256 == asked.succession.new_sha256


def test_another_answer_than_was_asked_for_changes_nothing(enrolled: Study, folder: Path, tmp_path: Path) -> None:
    old: Identity = load_identity(folder)
    asked = renewal.ask(folder, old, now())
    other = issue(enrolled.ca, ST_ANNA, tmp_path / "other").certificate_pem
    foreign = sign_leaf(enrolled.authority, Leaf(LAKESIDE, read_request(asked.request_pem, "it").public_key), now())
    for answer in (other, foreign):
        with pytest.raises(CertificateError, match="another party or key"):
            renewal.keep(folder, old, answer, now())
    with pytest.raises(CertificateError, match="no readable certificate"):
        renewal.keep(folder, old, b"", now())
    assert not renewal.is_ready(folder)


@pytest.mark.parametrize(("days", "says"), [(45, None), (29, "in 29 days"), (6, "in 6 days"), (-1, "expired on")])
def test_the_end_is_announced(days: int, says: str | None) -> None:
    warning = renewal.expiry_warning(START + timedelta(days=days), START)
    assert (warning is None) if says is None else (warning is not None and says in warning)
