"""Reading and writing keys, certificates and lists: whole or not at all, and closed to other users from the first byte."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from certs.party import CertificateError

PRIVATE = 0o600  # readable by its owner only, like an ssh key
PUBLIC = 0o644


def read_bytes(path: Path, what: str, origin: str) -> bytes:
    """The content of a file; CertificateError naming `what` and the path, and where it is missing its `origin`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, what, origin, error) from error


def read_private(path: Path, what: str, origin: str) -> bytes:
    """Like `read_bytes`, and refuses a file that other users of the machine may read."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise _unreadable(path, what, origin, error) from error
    if mode & 0o077:
        raise CertificateError(
            f"{what} {path} is open to other users (mode {mode:04o}): run chmod 600 on it, and renew it if shared"
        )
    return read_bytes(path, what, origin)


def make_folder(folder: Path) -> None:
    """Create `folder` (closed to other users where new)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CertificateError(f"cannot create the folder {folder}: {error.strerror}") from error


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet. Readers see nothing or all of it, also after a crash."""
    temporary = _write_temporary(path, content, mode)
    try:
        os.link(temporary, path)  # unlike rename, link refuses to replace
    except FileExistsError as error:
        raise CertificateError(
            f"{path} exists already and is not overwritten: move it away or choose another folder"
        ) from error
    except OSError as error:
        raise CertificateError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink()
    sync_folder(path.parent)


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file, replacing an older one in one step."""
    temporary = _write_temporary(path, content, mode)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink()
        raise CertificateError(f"cannot write {path}: {error.strerror}") from error
    sync_folder(path.parent)


def refuse_existing(folder: Path, *names: str) -> None:
    """CertificateError if one of the files is there, so that nothing is written when not everything can be."""
    for name in names:
        if (folder / name).exists():
            raise CertificateError(
                f"{folder / name} exists already and is not overwritten: move it away or choose another folder"
            )


def _unreadable(path: Path, what: str, origin: str, error: OSError) -> CertificateError:
    remedy = origin if isinstance(error, FileNotFoundError) else "let this user read it"
    return CertificateError(f"cannot read {what} {path}: {error.strerror}; {remedy}")


def _write_temporary(path: Path, content: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CertificateError(f"cannot write {path}: {error.strerror}") from error
    return temporary


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
