"""What the privacy page says of receipts and of the log of rounds: a line each, whether they hold, in both languages."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from worlds import NAMES, World, make_plan, uri

from certs.identity import Identity
from certs.party import fingerprint_of, public_key_der_of
from hospital_node.evidence_shown import evidence_lines
from hospital_node.receipt_book import RECEIPTS_FILE, Known, ReceiptBook
from hospital_node.roundlog import KeptLog, LogForked, write_down
from proto.roundlog import next_entry
from ui.language import translate

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
NAME = NAMES[0]


def identity() -> Identity:
    key = ec.derive_private_key(7, ec.SECP256R1())
    der = public_key_der_of(key.public_key())
    return Identity(uri(NAME), key, b"", der, fingerprint_of(der), b"", b"", NOW)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, make_plan(6))
    made.start()
    made.approve_all()
    made.round(1)
    return made


def written(world: World) -> World:
    """One receipt and one entry of the log, as a node writes them."""
    state, plan = world.state(NAME), world.plan
    entry = next_entry(
        None,
        plan.digest(),
        round_number=1,
        state="aborted",
        session=b"",
        base=bytes(32),
        model=bytes(32),
        sum_digest=b"",
        survivors=(),
    )
    KeptLog(state, plan).append([entry])
    known = Known(round=1, log_head=entry.head)
    assert ReceiptBook(state).write(plan, [known], world.ledger(NAME).events(), identity(), NOW) == 1
    return world


def lines(world: World) -> tuple[str, ...]:
    return evidence_lines(world.state(NAME), world.plan, world.ledger(NAME).events())


def notes(app: Any) -> str:
    return " ".join(one.value for one in [*app.caption, *app.markdown])


def test_where_there_is_nothing_yet_nothing_is_said(world):
    assert lines(world) == ()


def test_receipts_and_log_are_said_in_a_line_each_on_the_page(world, open_page):
    receipts, log = lines(written(world))
    assert receipts == "1 receipts in an unbroken chain, every signature holds; the last one is of round 1."
    assert log.startswith("1 rounds in the kept log, head ")
    said = notes(open_page(world.arguments(), "privacy", hospital=NAME))
    assert receipts in said
    assert log in said


def test_a_damaged_book_and_a_fork_are_said(world):
    written(world)
    path = world.state(NAME) / RECEIPTS_FILE
    path.write_bytes(path.read_bytes().replace(b"counted", b"sat-out"))
    kept = KeptLog(world.state(NAME), world.plan)
    write_down(world.state(NAME), kept, LogForked("entry 1 is another one", None), NOW)
    receipts, log = lines(world)
    assert receipts.startswith("Receipts do not hold: receipt 1 ")
    assert log.endswith("Another history was shown on 2026-11-22 09:30 UTC and refused.")


def test_a_missing_tail_is_said(world):
    written(world)
    world.round(2)
    world.round(3)
    assert "Receipts do not hold: receipt 2 is missing: the ledger charged round 2" in lines(world)[0]


def test_they_are_said_in_chinese(world):
    written(world)
    write_down(world.state(NAME), KeptLog(world.state(NAME), world.plan), LogForked("entry 1", None), NOW)
    for line in (*lines(world), "Receipts do not hold: receipt 1 is missing."):
        said = translate(line, "中文")
        assert any("\u4e00" <= letter <= "\u9fff" for letter in said), line
    assert "已拒绝" in translate(lines(world)[1], "中文")
