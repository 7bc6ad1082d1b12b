"""The report as PDF/A-3 with the signed JSON inside, so that the two cannot part: WeasyPrint from the same HTML page.

An attachment is compressed and otherwise kept as it is, so whether a PDF carries given bytes is found without reading PDF: one
of its streams inflates to them.
"""

from __future__ import annotations

import re
import zlib
from datetime import UTC
from typing import Any, Final

from hospital_node.reporting.html import render as render_html
from hospital_node.reporting.kept import JSON_FILE
from hospital_node.reporting.model import PrivacyReport, ReportError

VARIANT: Final = "pdf/a-3a"
MISSING: Final = "WeasyPrint is not installed: run pip install '.[reports]' in the repository's folder"
LIBRARIES: Final = "WeasyPrint finds no Pango: install libpango-1.0-0, libpangoft2-1.0-0 and libharfbuzz-subset0"
STREAM: Final = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)


def render(report: PrivacyReport, data: bytes) -> bytes:
    """The PDF of `report`, with its file's bytes `data` attached. Raises ReportError where WeasyPrint is missing."""
    page = render_html(report, data)
    weasyprint = _library()
    issued = report.issued_at.astimezone(UTC)
    attached = weasyprint.Attachment(
        string=data,
        name=JSON_FILE,
        description="The signed report that this document shows",
        created=issued,
        modified=issued,
        relationship="Source",
    )
    try:
        made: bytes = weasyprint.HTML(string=page, url_fetcher=_fetching_nothing()).write_pdf(
            pdf_variant=VARIANT, attachments=[attached], pdf_identifier=report.report_id.encode()
        )
    except weasyprint.urls.FatalURLFetchingError as error:
        raise ReportError(f"the page of a report refers to something outside of it, and it may not: {error}") from error
    return made


def carries(document: bytes, data: bytes) -> bool:
    """Whether a stream of this PDF is exactly `data`."""
    for found in STREAM.finditer(document):
        if found[1] == data:
            return True
        try:
            inflated = zlib.decompressobj().decompress(found[1], len(data) + 1)
        except zlib.error:
            continue
        if inflated == data:
            return True
    return False


def _fetching_nothing() -> Any:
    """What refuses every address: a page that names one gives no PDF."""
    from weasyprint.urls import URLFetcher

    return URLFetcher(allowed_protocols=(), fail_on_errors=True)


def _library() -> Any:
    try:
        import weasyprint
    except ModuleNotFoundError as error:
        raise ReportError(MISSING) from error
    except OSError as error:
        raise ReportError(LIBRARIES) from error
    return weasyprint
