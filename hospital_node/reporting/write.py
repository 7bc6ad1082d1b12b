"""Writes a report: gathers what a node knows, has it signed by the node's key, renders it, and keeps it.

The one place of the reports that opens a ledger and a key. A ledger that does not verify is refused with its own sentence,
which names the first bad row; nothing is written then, and no number is used up.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cryptography import x509

from certs.audit_file import AuditLog
from certs.identity import Identity, load_identity
from certs.party import parse_certificate
from certs.signed_file import chain_of, sign_file
from certs.words import words_of
from hospital_node.accounting import Mechanism, accountant_version
from hospital_node.budget import budget_view
from hospital_node.config import NodeConfig
from hospital_node.ledger import Ledger
from hospital_node.ledger_rules import releases
from hospital_node.progress import read_leaves
from hospital_node.releases import counted
from hospital_node.reporting import html, kept, pdf, registry
from hospital_node.reporting import model as parts
from hospital_node.reporting.facts import Facts, report_of
from hospital_node.state import StateFolder, ledger_to_read

DISTRIBUTION: Final = "hospital-secagg"

SecondReading = Callable[[tuple[Mechanism, ...], float], float | None]


@dataclass(frozen=True, slots=True)
class Written:
    """A report that was made and kept. `left_out`: renderings that could not be made, each with the sentence that says why."""

    kept: kept.Kept
    left_out: Mapping[str, str]


def write_report(node: NodeConfig, at: datetime, second: SecondReading | None = None) -> Written:
    """Make, sign and keep the next report. Raises LedgerError, CertificateError, ReportError, AuditError, PlanError."""
    identity = load_identity(node.identity)
    ledger = Ledger.open_readonly(ledger_to_read(node.state, node.ledger), witness=node.ledger_counter)
    events, folder = ledger.events(), StateFolder(node.state)
    plan, chain = folder.read_plan(), chain_of(identity, node.identity)
    reading = None if second is None else second(counted(releases(events)), budget_view(events, plan).delta)
    left_out: dict[str, str] = {}

    def make(number: int, before: kept.Kept | None) -> kept.Files:
        facts = Facts(
            events=events,
            plan=plan,
            leaves=read_leaves(folder.leaves),
            prv=reading,
            number=number,
            at=at,
            security=_security(node, identity),
            software=software(),
            signer=signer_of(identity),
            governance=node.report.governance,
            publication=node.report.publication,
            previous=None if before is None else before.report,
            previous_sha256=None if before is None else before.sha256,
        )
        report = report_of(facts)
        data = parts.bytes_of(report)
        signed = {kept.JSON_FILE: data, kept.SIGNATURE_FILE: sign_file(identity.key, data), kept.CHAIN_FILE: chain}
        return signed | renderings(report, data, left_out)

    return Written(kept.keep(node.state, make), left_out)


def renderings(report: parts.PrivacyReport, data: bytes, left_out: dict[str, str]) -> dict[str, bytes]:
    """Everything but the signed file, as far as the libraries for it are installed; what is missing goes into `left_out`."""
    made: dict[str, bytes] = {}
    makers: dict[str, Callable[[], bytes]] = {
        kept.HTML_FILE: lambda: html.render(report, data).encode(),
        kept.PDF_FILE: lambda: pdf.render(report, data),
        kept.REGISTRY_FILE: lambda: registry.render(report, data).encode(),
    }
    for name, make in makers.items():
        try:
            made[name] = make()
        except parts.ReportError as error:
            left_out[name] = str(error)
    return made


def signer_of(identity: Identity) -> parts.Signer:
    """Who signs."""
    return parts.Signer(uri=identity.uri, key_sha256=identity.fingerprint.hex(), key_words=words_of(identity.fingerprint))


def software() -> parts.Software:
    """What makes the report, as it is installed."""
    try:
        release = version(DISTRIBUTION)
    except PackageNotFoundError:
        release = "from its source"
    return parts.Software(version=release, commit=_commit(), accountant=accountant_version(), python=platform.python_version())


def _security(node: NodeConfig, identity: Identity) -> parts.Security:
    records = AuditLog.within(node.state).read()
    certificate = parse_certificate(identity.certificate_pem, str(node.identity))
    return parts.Security(
        transport="TLS 1.3, both sides by certificate; the node only dials out",
        certificate_issuer=_common_name(certificate.issuer),
        certificate_until=identity.not_after,
        key_at_rest="file of mode 0600, which the node refuses to use where others may read it",
        audit_records=len(records),
        audit_head=records[-1].digest.hex() if records else None,
    )


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _commit() -> str | None:
    """The commit of the source that runs, where it runs from a checkout of its own."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None
