"""The prepared cache: one folder for each preparation plan, three files for each scan, trusted only after a checksum.

`<case>.image.npy` and `<case>.label.npy` are memory-mapped; `<case>.json` is their index entry: SHA-256 of both arrays, and
of the source files they were made from. The entry is written last and every file is written aside and renamed, so an
interrupted run leaves whole scans or none and the next run carries on; what a power cut tears fails its checksum and is made
again. File names are keyed hashes of patient and path under a secret of this cache: they mean nothing elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from hospital_node.cohort import Case, LabelImage, UnreadableStudy
from hospital_node.dicom_header import series_files
from hospital_node.metaimage import data_file
from hospital_node.prepared import PreparedCase
from proto.plan import Frozen, Preparation, written

FORMAT = "prepared v2"  # raise it when the same plan and files give other voxels
SECRET_BYTES = 32
ENDINGS = ("json", "image.npy", "label.npy")  # the index entry goes first: without it the arrays are nothing
SECRET_NAME = "patient-key.secret"  # noqa: S105 - the name of the file


class Made(Protocol):
    """One scan on the plan's grid, as it is made: the image in slabs, so that it need not be whole in memory."""

    @property
    def label(self) -> NDArray[np.uint8]:
        """(z, y, x), of the shape of the image."""
        ...

    def slabs(self) -> Iterator[NDArray[np.float32]]:
        """The image (y, x) by (y, x), z rising."""
        ...


class CacheError(RuntimeError):
    """The cache folder cannot be used; one sentence that says why."""


class SourceFile(Frozen):
    """One source file as it was read. Size and time spare re-hashing gigabytes at every start; the digest decides."""

    size_bytes: int
    mtime_ns: int
    sha256: str


class Entry(Frozen):
    """Index entry of one scan."""

    sources: tuple[SourceFile, ...]
    spheres_sha256: str
    image_sha256: str
    label_sha256: str


@dataclass(slots=True)
class PreparedCache:
    """Prepared scans of one preparation plan. `rebuilt` counts entries that were found damaged and made anew."""

    folder: Path
    secret: bytes = field(repr=False)
    rebuilt: int = 0
    _counting: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def open(cls, cache: Path, preparation: Preparation, labels: int, secret: Path | None = None) -> PreparedCache:
        """Open or create the cache of this plan below `cache`. Raises CacheError.

        `secret`: where the secret of the keys lies if they are to outlive the cache; one found in the cache moves there.
        """
        fields = written(preparation, "preparation")
        drawn = {name: value for name, value in fields.items() if name not in {"patch_zyx", "max_skipped_share"}}
        recipe = f"{FORMAT}\n{labels}\n{json.dumps(drawn, sort_keys=True)}"
        folder = cache / hashlib.sha256(recipe.encode()).hexdigest()[:16]
        with _sentences(cache):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            cache.chmod(0o700)
            if secret is not None and not secret.exists() and (cache / SECRET_NAME).exists():
                (cache / SECRET_NAME).rename(secret)
            return cls(folder, _secret(secret or cache / SECRET_NAME))

    def patient_key(self, patient: str) -> str:
        """Opaque key of a patient: 128 bits of HMAC-SHA-256, equal for all scans of one person."""
        return self._keyed("patient", patient)

    def get(self, case: Case, make: Callable[[], Made]) -> PreparedCase:
        """The prepared arrays of `case`, from the cache when they are there, whole and current, else from `make`.

        Raises what `make` raises, UnreadableStudy where a source file is missing, and CacheError.
        """
        key = self._key_of(case)
        entry = self._entry(key)
        sources, spheres = _sources(case, entry.sources if entry else ()), _spheres_digest(case)
        if entry and (entry.spheres_sha256, _digests(entry.sources)) == (spheres, _digests(sources)):
            if self._is_whole(key, entry):
                return self._mapped(key)
            self._count_rebuilt()
        made = make()
        with _sentences(self.folder):
            image_sha256 = _write(self._path(key, "image.npy"), _npy(made.label.shape, np.float32, made.slabs()))
            label_sha256 = _write(self._path(key, "label.npy"), _npy(made.label.shape, np.uint8, made.label))
            entry = Entry(sources=sources, spheres_sha256=spheres, image_sha256=image_sha256, label_sha256=label_sha256)
            _write(self._path(key, "json"), [entry.model_dump_json().encode()])
        return self._mapped(key)

    def drop(self, case: Case) -> int:
        """Delete the files of `case`; how many there were."""
        paths = [self._path(self._key_of(case), ending) for ending in ENDINGS]
        there = [path for path in paths if path.exists()]
        for path in there:
            path.unlink()
        return len(there)

    def _key_of(self, case: Case) -> str:
        return self._keyed("case", f"{case.patient}\0{case.image.absolute()}")

    def _keyed(self, purpose: str, text: str) -> str:
        return hmac.new(self.secret, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()[:32]

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / f"{key}.{ending}"

    def _entry(self, key: str) -> Entry | None:
        """The index entry, or None where there is none. A damaged one counts as rebuilt."""
        try:
            return Entry.model_validate_json(self._path(key, "json").read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            self._count_rebuilt()
            return None

    def _count_rebuilt(self) -> None:
        with self._counting:
            self.rebuilt += 1

    def _is_whole(self, key: str, entry: Entry) -> bool:
        try:
            found = (_file_digest(self._path(key, "image.npy")), _file_digest(self._path(key, "label.npy")))
        except FileNotFoundError:
            return False
        return found == (entry.image_sha256, entry.label_sha256)

    def _mapped(self, key: str) -> PreparedCase:
        image = np.load(self._path(key, "image.npy"), mmap_mode="r", allow_pickle=False)
        return PreparedCase(image, np.load(self._path(key, "label.npy"), mmap_mode="r", allow_pickle=False))


def forget(cache: Path, secret: Path | None, cases: Iterable[Case]) -> int:
    """Delete what is prepared of `cases`, by whatever plan; how many files went. Raises CacheError.

    `secret` as for `PreparedCache.open`; without either nothing can be told apart, and so nothing is there to be used either.
    """
    source = secret or cache / SECRET_NAME
    if not source.exists():
        return 0
    with _sentences(cache):
        opened = [PreparedCache(folder, _secret(source)) for folder in cache.iterdir() if folder.is_dir()]
        return sum(one.drop(case) for case in cases for one in opened)


def _sources(case: Case, known: tuple[SourceFile, ...]) -> tuple[SourceFile, ...]:
    """The files behind `case`, in order; a digest of `known` is reused where size and time of that file are unchanged."""
    try:
        paths = list(_files(case.image)) + (list(_files(case.label.path)) if isinstance(case.label, LabelImage) else [])
        before = known if len(known) == len(paths) else [None] * len(paths)  # slices of a series often have equal size and time
        return tuple(_source(path, one) for path, one in zip(paths, before, strict=True))
    except OSError as error:
        raise UnreadableStudy("unreadable", f"a file cannot be opened ({error.strerror}): check its permissions") from None


def _source(path: Path, known: SourceFile | None) -> SourceFile:
    stat = path.stat()
    if known is not None and (known.size_bytes, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return known
    return SourceFile(size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=_file_digest(path))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from series_files(path)
        return
    yield path
    if path.suffix.lower() == ".mhd":
        yield data_file(path)


def _spheres_digest(case: Case) -> str:
    spheres = [] if isinstance(case.label, LabelImage) else [asdict(sphere) for sphere in case.label.spheres]
    return hashlib.sha256(json.dumps(spheres).encode()).hexdigest()


def _digests(sources: tuple[SourceFile, ...]) -> tuple[str, ...]:
    return tuple(source.sha256 for source in sources)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _npy(shape: tuple[int, ...], kind: type[np.generic], slabs: Iterable[NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """An array of `shape` in numpy's file format, slab by slab."""
    head = BytesIO()
    form = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, form)
    yield head.getvalue()
    for slab in slabs:
        yield np.ascontiguousarray(slab, kind).data.cast("B")


def _write(path: Path, blocks: Iterable[bytes | memoryview]) -> str:
    """Write aside, rename, return the SHA-256 of what was written."""
    aside = path.with_name(path.name + ".part")
    digest = hashlib.sha256()
    with aside.open("wb") as stream:
        for block in blocks:
            stream.write(block)
            digest.update(block)
    aside.replace(path)
    return digest.hexdigest()


def _secret(path: Path) -> bytes:
    """The cache's own key, made once, readable by its owner only."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        secret = path.read_bytes()
    else:
        secret = secrets.token_bytes(SECRET_BYTES)
        with os.fdopen(handle, "wb") as stream:
            stream.write(secret)
    if len(secret) != SECRET_BYTES:
        raise CacheError(f"{path} is damaged: restore it, or delete it and remove the cache folder, which is then made again")
    return secret


@contextmanager
def _sentences(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cannot write the cache in {folder} ({error.strerror}): free space or correct its permissions"
        ) from None
