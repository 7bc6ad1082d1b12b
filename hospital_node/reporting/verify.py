"""Checks a report that somebody was given: needs no node, no ledger and no network. It names the first bad item.

Order: the schema of the file, the digest of each section, the certificate, the signature, then whatever renderings lie beside
it (each is made again from the signed bytes, or must carry them). Whose the key is no report can say: a reader compares it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from certs.party import CertificateError, parse_certificates
from certs.signed_file import check_chain
from hospital_node.reporting import html, kept, pdf, registry
from hospital_node.reporting.model import PrivacyReport, ReportError, ReportTampered, read_report


@dataclass(frozen=True, slots=True)
class Checked:
    """A report that verifies. `trusted_root`: the root that the reader named signed the certificate; None without one."""

    report: PrivacyReport
    sha256: str
    compared: tuple[str, ...]  # renderings that belong to it
    not_compared: tuple[str, ...]  # and why
    trusted_root: bool | None


def verify(place: Path, root: Path | None = None) -> Checked:
    """Check the report in a folder, or the one whose JSON file is named. Raises ReportError, ReportTampered."""
    folder = place if place.is_dir() else place.parent
    path = folder / kept.JSON_FILE if place.is_dir() else place
    data = kept.read_file(path)
    report = read_report(data)
    kept.check_signed(folder, data, report)
    trusted = None if root is None else _signed_by(root, kept.read_file(folder / kept.CHAIN_FILE), report.issued_at)
    compared, skipped = [], []
    for name, problem in _renderings(folder, report, data):
        if problem:
            skipped.append(problem)
        else:
            compared.append(name)
    return Checked(report, hashlib.sha256(data).hexdigest(), tuple(compared), tuple(skipped), trusted)


def _signed_by(root: Path, chain: bytes, at: datetime) -> bool:
    """True where the certificate in `root` signed the report's. Raises ReportTampered."""
    try:
        leaf = parse_certificates(chain, kept.CHAIN_FILE)[0].public_bytes(Encoding.PEM)  # written anew: without any other
        check_chain(leaf + kept.read_file(root), at, kept.CHAIN_FILE)
    except CertificateError as error:
        raise ReportTampered("certificate", f"{root} did not sign the certificate beside the report: {error}") from error
    return True


def _renderings(folder: Path, report: PrivacyReport, data: bytes) -> Iterator[tuple[str, str]]:
    """(name, why it could not be compared) of each rendering that is there. Raises ReportTampered."""
    sha256 = hashlib.sha256(data).hexdigest()
    for name, make in ((kept.HTML_FILE, html.render), (kept.REGISTRY_FILE, registry.render)):
        if not (folder / name).exists():
            continue
        found = kept.read_file(folder / name)
        try:
            again = make(report, data).encode()
        except ReportError as error:
            yield name, f"{name}: {error}"
            continue
        if found != again:
            if _made_elsewhere(report) and sha256.encode() in found:
                yield name, f"{name}: version {report.software.version} of this software made it, and this is another one"
                continue
            raise ReportTampered(name, "it is not what the signed file says: it is of another report, or was changed")
        yield name, ""
    document = folder / kept.PDF_FILE
    if document.exists():
        if not pdf.carries(kept.read_file(document), data):
            raise ReportTampered(
                kept.PDF_FILE, f"it does not carry the bytes of {kept.JSON_FILE}: it is of another report, or was changed"
            )
        yield kept.PDF_FILE, f"{kept.PDF_FILE} carries the signed file; its pages were not compared"


def _made_elsewhere(report: PrivacyReport) -> bool:
    """Whether another version of this software made the report: its pages may look different."""
    from hospital_node.reporting.write import software

    made, here = report.software, software()
    return (made.version, made.commit) != (here.version, here.commit)
