"""The renderings of a report: one page without scripts or references, a PDF that carries the signed file, a registry entry."""

from __future__ import annotations

import builtins
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from node_world import make_plan
from report_world import changed_plan, entries_of, events_of, facts_of, with_evaluation, with_shared_noise

from hospital_node.ledger_schema import Hold
from hospital_node.reporting import charts, html, pdf, registry
from hospital_node.reporting.annexes import UNSTATED, annexes, assessment
from hospital_node.reporting.facts import Facts, report_of
from hospital_node.reporting.model import Governance, PrivacyReport, Publication, ReportError, bytes_of
from hospital_node.reporting.registry_fields import FIELDS, problems

PUBLISHED = Publication(region="Germany", intended_use="Finding nodules", curator_type="Nonprofit", registry_authors=("Dr K",))
NEVER = re.compile(r"anonym|匿名", re.IGNORECASE)  # a figure of differential privacy is not that, and no rendering says it is


def usual(**fields: Any) -> Facts:
    plan = make_plan()
    return facts_of(entries_of(plan, 2), plan, publication=PUBLISHED, **fields)


@cache
def made(which: str = "usual") -> tuple[PrivacyReport, bytes]:
    plans = {
        "usual": make_plan(),
        "no noise": make_plan(sigma=0),
        "evaluation": with_evaluation(make_plan()),
        "shared noise": with_shared_noise(make_plan()),
        "three hospitals": changed_plan(make_plan(), privacy__hospitals_per_patient=3),
    }
    plan = plans[which]
    report = report_of(facts_of(entries_of(plan, 2, verified=which != "no noise"), plan, publication=PUBLISHED))
    return report, bytes_of(report)


WHICH = ("usual", "no noise", "evaluation", "shared noise", "three hospitals")


class Page(HTMLParser):
    """Tags and attributes of a page, and the text of each element by tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("which", WHICH)
def test_the_page_runs_nothing_and_refers_to_nothing(which: str) -> None:
    text = html.render(*made(which))
    page = Page(text)
    assert page.open == []
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "section", "footer", "div", "h1", "h2", "h3", "p", "ul"),
        *("li", "table", "thead", "tbody", "tr", "th", "td", "strong", "code", "pre", "figure", "figcaption"),
        *("svg", "line", "text", "rect", "circle", "polyline"),
    }
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in {"href", "src", "action", "srcset", "data"}}
    assert not re.search(r"url\(|@import|https?:", text)


@pytest.mark.parametrize("which", WHICH)
def test_the_page_says_what_the_report_says(which: str) -> None:
    report, data = made(which)
    text = Page(html.render(report, data)).text
    assert report.statement.paragraph in text
    for row in report.leaves:
        assert row.item in text
        assert row.why in text
    for one in report.assumptions:
        assert one.text in text
    for annex in annexes(report):
        for head, words in annex.rows:
            assert head in text
            assert words in text
    assert report.signer.key_words in text
    assert report.report_id in text


def test_what_people_wrote_cannot_become_part_of_the_page() -> None:
    facts = usual()
    entries = [event.entry for event in facts.events]
    evil = '<script>alert(1)</script><img src="x">'
    report = report_of(replace(facts, events=events_of([*entries, Hold(by=evil, reason=evil)])))
    page = Page(html.render(report, bytes_of(report)))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert evil in page.text


def test_the_page_is_a_function_of_the_signed_bytes() -> None:
    report, data = made()
    page = html.render(report, data)
    assert html.render(report, data) == page
    assert html.render(report, data + b" ") != page


@pytest.mark.parametrize("which", WHICH)
def test_no_rendering_calls_anything_anonymous(which: str) -> None:
    report, data = made(which)
    for text in (data.decode(), html.render(report, data), registry.render(report, data)):
        assert not NEVER.search(text)


def test_no_text_from_which_reports_are_made_calls_anything_anonymous_in_any_language() -> None:
    root = Path(__file__).resolve().parents[2]
    sources = [
        *(root / "hospital_node").rglob("*.py"),
        *(root / "hospital_node").rglob("templates/*"),
        root / "ui/static/chinese.json",
    ]
    assert [path.name for path in sources if NEVER.search(path.read_text(encoding="utf-8"))] == []


def test_charts_hold_the_cap_and_every_round() -> None:
    report, _ = made()
    drawn = str(charts.spending(report))
    assert "cap 8" in drawn
    assert drawn.count("<circle") == len(report.course.spent) == 2
    assert f"spent {report.guarantee.stated_epsilon}" in drawn
    places = [float(y) for y in re.findall(r' y\d?="(-?[\d.]+)"', drawn)]
    assert 0 <= min(places) <= max(places) <= charts.HEIGHT
    assert charts.spending(made("no noise")[0]) is None
    assert charts.attacker(made("no noise")[0]) is None


def test_ticks_end_at_or_above_what_they_carry() -> None:
    for value in (0.003, 0.7, 1.0, 5.0, 8.4, 99.0, 12345.0):
        assert value <= charts.nice(value) <= 2.5 * value
    assert charts.nice(0) == 1.0


# ---- PDF ----


def test_the_pdf_carries_the_signed_file(tmp_path: Path) -> None:
    report, data = made()
    document = pdf.render(report, data)
    assert document.startswith(b"%PDF-1.7")
    assert pdf.carries(document, data)
    assert not pdf.carries(document, data[:-1])
    assert not pdf.carries(document, made("evaluation")[1])
    assert b"pdfaid" in document or b"/Metadata" in document
    if shutil.which("pdfdetach"):
        (tmp_path / "report.pdf").write_bytes(document)
        subprocess.run(["pdfdetach", "-saveall", "-o", str(tmp_path), str(tmp_path / "report.pdf")], check=True)
        assert (tmp_path / "privacy-report.json").read_bytes() == data


def test_a_page_that_refers_to_something_gives_no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "render_html", lambda *_: '<img src="http://192.0.2.1/x.png">')
    with pytest.raises(ReportError, match="refers to something outside"):
        pdf.render(*made())


@pytest.mark.parametrize(
    ("library", "render", "sentence"),
    [
        ("jinja2", html.render, "Jinja2 is not installed"),
        ("weasyprint", pdf.render, "WeasyPrint is not installed"),
        ("yaml", registry.render, "PyYAML is not installed"),
    ],
)
def test_without_a_library_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, library: str, render: Any, sentence: str
) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == library:
            raise ModuleNotFoundError(f"No module named '{library}'", name=library)
        return real(name, *rest)

    html._environment.cache_clear()
    if library != "jinja2":
        html.render(*made())
    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ReportError, match=rf"{sentence}.*pip install '\.\[reports\]'"):
        render(*made())


# ---- the registry's entry ----


@pytest.mark.parametrize("which", WHICH)
def test_the_entry_is_what_the_registrys_schema_admits(which: str) -> None:
    report, data = made(which)
    found = yaml.safe_load(registry.render(report, data))
    assert problems(found) == []
    assert found["deployment"]["administrative"]["status"] == "Draft"
    loss = found["deployment"]["privacy_loss"]
    if which == "no noise":
        assert "privacy_parameters" not in loss
    else:
        assert loss["privacy_parameters"] == {"epsilon": float(report.guarantee.stated_epsilon), "delta": 1e-5}
    for item in report.unprotected_quantities:
        assert item in found["deployment"]["dp_variant"]["unprotected_quantities"]


def test_what_only_the_hospital_can_say_is_asked_for_by_name() -> None:
    plan = make_plan()
    report = report_of(facts_of(entries_of(plan, 1), plan))
    with pytest.raises(ReportError, match=r"intended_use, region, curator_type, registry_authors under \[report.publication\]"):
        registry.render(report, bytes_of(report))


WRONG: Sequence[tuple[tuple[str, ...], Any, str]] = (
    (("deployment", "basic", "author"), "x", "the schema has no such field"),
    (("deployment", "basic", "publication_date"), "1.1.2026", "is no date"),
    (("deployment", "basic", "data_product_type"), "Model", "is none of"),
    (("deployment", "basic", "data_curators"), [{"data_curator_name": "x"}], "is no curators"),
    (("deployment", "privacy_loss", "privacy_parameters", "epsilon"), "8", "is no number"),
    (("deployment", "privacy_loss", "number_of_privacy_units"), True, "is no whole"),
    (("deployment", "administrative", "tier"), 4, "is none of 1, 2, 3"),
    (("deployment", "administrative", "registry_authors"), [], "is no texts"),
    (("deployment", "administrative", "status"), "Done", "is none of"),
)


@pytest.mark.parametrize(("path", "value", "sentence"), WRONG, ids=[".".join(path[1:]) for path, *_ in WRONG])
def test_an_entry_that_the_schema_would_not_admit_is_found(path: tuple[str, ...], value: Any, sentence: str) -> None:
    found = yaml.safe_load(registry.render(*made()))
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (problem,) = problems(found)
    assert problem.startswith(".".join(path))
    assert sentence in problem


@pytest.mark.parametrize("field", [path for path, field in FIELDS.items() if field.required])
def test_a_required_field_that_is_missing_is_found(field: str) -> None:
    found = yaml.safe_load(registry.render(*made()))
    place = found
    *steps, last = field.split(".")
    for step in steps:
        place = place[step]
    del place[last]
    assert problems(found) == [f"{field}: is required"]


# ---- the assessment ----


def test_the_assessment_follows_the_article_and_invents_nothing() -> None:
    report, _ = made()
    heads = [head[:3] for head, _ in assessment(report).rows if head.startswith("(")]
    assert heads == sorted(heads)
    assert set(heads) == {"(a)", "(b)", "(c)", "(d)"}
    rows = dict(assessment(report).rows)
    assert rows["(a) Interests pursued, legal basis"] == UNSTATED
    assert rows["Review"] == UNSTATED
    stated = report_of(usual(governance=Governance(legal_basis="Article 6(1)(e)", contact="privacy office")))
    rows = dict(assessment(stated).rows)
    assert rows["(a) Interests pursued, legal basis"] == "Article 6(1)(e)"
    assert rows["Contact and incidents"] == "privacy office"
    assert rows["(d) Measures: limits of what can be learned"] == stated.statement.paragraph
