"""Tables of sentences as a reader sees them: the page's HTML, parsed."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from streamlit.testing.v1 import AppTest

Rows = list[dict[str, str]]


def readings(app: AppTest) -> list[Rows]:
    """Every table of sentences of a page, in order. What is not well formed is an error."""
    return list(_tables(app))


def as_lines(app: AppTest) -> list[str]:
    """Their heads and rows, a line each."""
    lines = []
    for rows in _tables(app):
        lines.append(" | ".join(rows[0]))
        lines += [" | ".join(row.values()) for row in rows]
    return lines


def _tables(app: AppTest) -> Iterator[Rows]:
    for part in app.get("html"):
        body: str = part.proto.body
        if body.startswith("<table"):
            table = ET.fromstring(body)
            names = [_said(cell) for cell in table.iterfind("thead/tr/th")]
            yield [dict(zip(names, map(_said, row.iterfind("td")), strict=True)) for row in table.iterfind("tbody/tr")]


def _said(cell: ET.Element) -> str:
    assert len(cell) == 0, "markup in a cell"
    return cell.text or ""
