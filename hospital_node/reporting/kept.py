"""The reports that a node keeps: numbered folders in its state folder, written whole, never replaced.

A number is given once, under a lock, so that a command and a running node never write one report over the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from certs.party import CertificateError
from certs.signed_file import check_chain, check_signature
from certs.words import words_of
from hospital_node.durable import sync_folder, write_whole
from hospital_node.reporting.model import PrivacyReport, ReportError, ReportTampered, Signer, read_report

REPORTS_FOLDER: Final = "reports"  # in the node's state folder
JSON_FILE: Final = "privacy-report.json"
SIGNATURE_FILE: Final = "privacy-report.json.sig"
CHAIN_FILE: Final = "privacy-report.crt"
HTML_FILE: Final = "privacy-report.html"
PDF_FILE: Final = "privacy-report.pdf"
REGISTRY_FILE: Final = "registry.yaml"
OWNER_ONLY: Final = 0o700
DIGITS: Final = 4

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept report. `folder` holds its files."""

    number: int
    folder: Path
    report: PrivacyReport
    sha256: str  # of the JSON file


def numbers(state: Path) -> tuple[int, ...]:
    """Numbers of the reports of a state folder, in order."""
    top = state / REPORTS_FOLDER
    if not top.is_dir():
        return ()
    return tuple(sorted(int(one.name) for one in top.iterdir() if one.name.isdigit() and one.is_dir()))


def kept(state: Path, number: int) -> Kept:
    """One kept report, its signature checked. Raises ReportError, ReportTampered."""
    folder = state / REPORTS_FOLDER / f"{number:0{DIGITS}d}"
    data = read_file(folder / JSON_FILE)
    report = read_report(data)
    check_signed(folder, data, report)
    return Kept(number, folder, report, hashlib.sha256(data).hexdigest())


def newest(state: Path) -> Kept | None:
    """The report before the next one. Raises ReportError, ReportTampered: people have to look before it is passed over."""
    found = numbers(state)
    if not found:
        return None
    try:
        return kept(state, found[-1])
    except ReportTampered as error:
        folder = state / REPORTS_FOLDER / f"{found[-1]:0{DIGITS}d}"
        raise ReportTampered(
            error.item,
            f"the last kept report, {folder}, does not verify ({error}): keep it for whoever looks into it, and move it away",
        ) from error


def keep(state: Path, make: Callable[[int, Kept | None], Files]) -> Kept:
    """Make and keep the next report: `make` is given its number and the one before. Raises ReportError."""
    top = state / REPORTS_FOLDER
    try:
        top.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        with _locked(top):
            before = newest(state)
            number = 1 if before is None else before.number + 1
            write_folder(top / f"{number:0{DIGITS}d}", make(number, before))
    except OSError as error:
        raise ReportError(
            f"cannot write a report into {top}: {error.strerror}: free some space, or correct its permissions"
        ) from error
    return kept(state, number)


def write_folder(folder: Path, files: Files) -> None:
    """A new folder with these files, whole or not at all. Raises OSError, ReportError where it exists."""
    if folder.exists():
        raise ReportError(f"{folder} exists already and is not overwritten: name another folder")
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    aside.mkdir(mode=OWNER_ONLY, parents=True)
    try:
        for name, data in files.items():
            write_whole(aside / name, data)
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def read_file(path: Path) -> bytes:
    """A file of a report. Raises ReportError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReportError(
            f"cannot read {path}: {error.strerror}: name the file or the folder that `report write` wrote"
        ) from error


def check_signed(folder: Path, data: bytes, report: PrivacyReport) -> str:
    """`check_signed_by` of a report."""
    return check_signed_by(folder, (JSON_FILE, SIGNATURE_FILE, CHAIN_FILE), data, report.signer, report.issued_at)


def check_signed_by(folder: Path, names: tuple[str, str, str], data: bytes, signer: Signer, at: datetime) -> str:
    """Certificate, signer and signature of a signed file, in this order; SHA-256 of the root beside it. Raises ReportTampered.

    `names`: of the file, of its signature, of the certificates.
    """
    _, signature_file, chain_file = names
    chain, signature = read_file(folder / chain_file), read_file(folder / signature_file)
    try:
        by = check_chain(chain, at, chain_file)
    except CertificateError as error:
        raise ReportTampered("certificate", str(error)) from error
    if (by.party.uri, by.party.fingerprint.hex()) != (signer.uri, signer.key_sha256):
        raise ReportTampered("certificate", f"it is of {by.party.uri}, the file names {signer.uri} and another key")
    if signer.key_words != words_of(by.party.fingerprint):
        raise ReportTampered("certificate", "the words of the key are not those of this key")
    try:
        check_signature(data, signature, chain, signature_file)
    except CertificateError as error:
        raise ReportTampered("signature", str(error)) from error
    return by.root_sha256


@contextmanager
def _locked(top: Path) -> Iterator[None]:
    descriptor = os.open(top / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
