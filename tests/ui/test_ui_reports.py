"""Reports on the page Privacy budget: the node writes and signs, the app hands out what verifies, and holds no key."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deciding_world import node_of, running_node
from streamlit import config
from streamlit.testing.v1 import AppTest
from test_ui_pages import as_read, banner, text
from worlds import World, make_plan

from certs.audit_file import AuditLog
from hospital_node import people
from hospital_node.reporting import kept, pdf
from hospital_node.reporting.verify import verify
from hospital_node.reporting.write import write_report
from ui import reports, sources


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(people, "prv_epsilon", lambda *_: None)
    monkeypatch.setattr(pdf, "render", lambda _report, data: b"%PDF-1.7\nstream\n" + data + b"\nendstream")
    before = config.get_option("server.address")
    config.set_option("server.address", "127.0.0.1")
    yield
    config.set_option("server.address", before)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Lakeside with an approved plan and one charged round."""
    made = World(tmp_path, make_plan(6, names=("lakeside", "nordklinik", "st-anna")))
    made.approve("lakeside")
    made.charge("lakeside", 1)
    node_of(made, "lakeside")
    return made


def at_lakeside(world: World) -> list[str]:
    return world.arguments(coordinator=False, hospitals=["lakeside"])


def buttons(app: AppTest) -> list[str]:
    return [one.proto.label for one in app.get("download_button")]


def test_before_the_first_report_nothing_is_offered(open_page, world) -> None:
    app = open_page(at_lakeside(world), "privacy")
    assert "No report was written yet." in text(app)
    assert buttons(app) == []


def test_the_node_writes_one_when_it_is_asked_and_the_page_offers_it(open_page, world) -> None:
    with running_node(world, "lakeside"):
        app = open_page(at_lakeside(world), "privacy")
        app.text_input(key="report-by").input("Dr Keller")
        app.text_input(key="report-reason").input("for the board")
        next(one for one in app.button if one.label == "Write a new report").click().run()
    assert not app.exception
    assert "is written and signed" in banner(app)
    assert buttons(app) == ["Page (HTML)", "PDF", "JSON", "Signature", "Certificates", "All as zip"]
    folder = world.state("lakeside") / "reports" / "0001"
    assert verify(folder).report.subject.hospital == "lakeside"
    record = AuditLog.within(world.state("lakeside")).read()[-1].action
    assert (record.by, record.kind, record.reason) == ("Dr Keller", "write-report", "for the board")


def test_without_a_running_node_the_app_makes_none(open_page, world) -> None:
    app = open_page(at_lakeside(world), "privacy")
    assert next(one for one in app.button if one.label == "Write a new report").disabled
    assert "start it, or use `secagg-node report write`" in text(app)


def test_what_is_offered_is_what_the_node_kept(world) -> None:
    write_report(node_of(world, "lakeside"), datetime.now(UTC))
    found = sources.hospital(world.state("lakeside"))
    one = reports.offered(found, UTC)
    assert one is not None
    assert one.current
    assert one.problem == ""
    for name in one.files:
        assert reports.content(one, name) == (one.folder / name).read_bytes()
    packed = reports.zipped(one)
    assert packed == reports.zipped(one)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert {Path(name).name for name in archive.namelist()} == set(one.files)
        assert archive.read(f"{one.report_id}/{kept.JSON_FILE}") == reports.content(one, kept.JSON_FILE)
    world.charge("lakeside", 2)
    later = reports.offered(sources.hospital(world.state("lakeside")), UTC)
    assert later is not None
    assert not later.current


def test_a_report_that_does_not_verify_is_named_and_not_offered(open_page, world) -> None:
    folder = write_report(node_of(world, "lakeside"), datetime.now(UTC)).kept.folder
    (folder / kept.SIGNATURE_FILE).write_bytes(b"0")
    app = open_page(at_lakeside(world), "privacy")
    assert buttons(app) == []
    said = as_read(" ".join(box.value for box in app.error))
    assert "does not verify" in said
    assert "signature:" in said
