"""The reports that a hospital's node has kept, for its own app to hand out: read, checked, zipped, and never made here.

The app holds no key: a report is written and signed by the node, which is asked over its control socket. What the app offers is
what verifies; what does not is named and not offered.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Final

from hospital_node.reporting import kept
from hospital_node.reporting.model import ReportError
from ui.sources import Hospital
from ui.words import moment

LABELS: Final = {
    kept.HTML_FILE: "Page (HTML)",
    kept.PDF_FILE: "PDF",
    kept.JSON_FILE: "JSON",
    kept.SIGNATURE_FILE: "Signature",
    kept.CHAIN_FILE: "Certificates",
    kept.REGISTRY_FILE: "Registry entry (YAML)",
}
KINDS: Final = {".html": "text/html", ".pdf": "application/pdf", ".json": "application/json", ".yaml": "application/yaml"}
ANY_KIND: Final = "application/octet-stream"
EARLIEST_IN_A_ZIP: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Offered:
    """The newest report of a hospital. `problem` says why it is not offered; `current`: it is of the ledger as it is now."""

    report_id: str = ""
    folder: Path | None = None
    written: str = ""
    current: bool = False
    files: tuple[str, ...] = ()
    problem: str = ""


def offered(found: Hospital, zone: tzinfo) -> Offered | None:
    """The newest kept report, checked; None where none was ever written."""
    numbers = kept.numbers(found.folder)
    if not numbers:
        return None
    try:
        newest = kept.kept(found.folder, numbers[-1])
    except ReportError as error:
        return Offered(problem=str(error))
    report = newest.report
    return Offered(
        report_id=report.report_id,
        folder=newest.folder,
        written=moment(report.issued_at, zone),
        current=report.as_of.ledger_head == f"sha256:{found.head}",
        files=tuple(name for name in LABELS if (newest.folder / name).exists()),
    )


def said(one: Offered) -> str:
    """Of when the report is, and that it verifies."""
    state = "of the ledger as it is now" if one.current else "the ledger has grown since"
    return f"Report {one.report_id}, written {one.written} · signed by the node, verified on loading · {state}"


def content(one: Offered, name: str) -> bytes:
    """One file of the report."""
    assert one.folder is not None, "only a report that verifies is offered"
    return (one.folder / name).read_bytes()


def kind(name: str) -> str:
    """Media type of a file."""
    return KINDS.get(Path(name).suffix, ANY_KIND)


def zipped(one: Offered) -> bytes:
    """All files of the report in one archive, the same bytes each time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in one.files:
            archive.writestr(
                zipfile.ZipInfo(f"{one.report_id}/{name}", EARLIEST_IN_A_ZIP), content(one, name), zipfile.ZIP_DEFLATED
            )
    return packed.getvalue()
