"""Model vectors on disk, by digest: written whole or not at all, never changed.

`<digest>.f32` holds little-endian float32 values in the order of the layout, behind them the common control variate where the
plan has one (proto/scaffold.py); this is also what FetchModel streams, so a model is never loaded to be sent.
`<digest>.velocity.f32` is the optimizer's memory at that model. `latest.safetensors` is the newest model for people and other
tools. `<digest>.mean.f32` is the mean that a round opened, by its own digest, so that everybody can repeat the server step
(replay.py). The coordinator knows names and shapes, never a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

import numpy as np

from proto.bulk import ModelChunk, to_chunk
from proto.layout import Layout, Vector, model_digest
from proto.modelfile import Model, ModelFileError, encode_model, read_model, read_provenance

RECENT_PIECES: Final = 8  # read from disk and encoded once for all that fetch a model together: 8 MiB


class ModelError(RuntimeError):
    """A model file that is missing, damaged or cannot be written; one sentence that names it and the remedy."""


def read_start(path: Path) -> Model:
    """The public start. Raises ModelError."""
    try:
        return read_model(path)
    except ModelFileError as error:
        raise ModelError(f"the start cannot be used: {error}") from error


class ModelFolder:
    """The models of one run. Only the coordinator may `tidy`: what is half written may be another process's work."""

    def __init__(self, folder: Path, layout: Layout, length: int | None = None, *, tidy: bool = True) -> None:
        """`length`: values of what is published for a round; those of the layout where it is the model alone."""
        self._folder = folder
        self._layout = layout
        self._length = length or layout.length
        if tidy:
            folder.mkdir(parents=True, exist_ok=True)
            for stray in folder.glob("*.part"):  # left by a crash in mid-write
                stray.unlink()

    def path_of(self, digest: str) -> Path:
        """File of a model."""
        return self._folder / f"{digest}.f32"

    def write(self, vector: Vector, velocity: Vector | None = None) -> bytes:
        """Store a model and the optimizer's memory, durable on return. Returns its digest."""
        part, digest = self._laid_down(vector)
        if velocity is not None:  # before the model: it is there with its memory or not at all
            try:
                write_atomically(self._velocity_path(digest.hex()), np.ascontiguousarray(velocity, dtype="<f4").data)
            except ModelError:
                part.unlink()
                raise
        _put(part, self.path_of(digest.hex()))
        return digest

    def write_mean(self, mean: Vector) -> bytes:
        """Store what a round opened, durable on return. Returns its digest."""
        part, digest = self._laid_down(mean)
        _put(part, self.mean_path_of(digest.hex()))
        return digest

    def mean_path_of(self, digest: str) -> Path:
        """File of an opened mean."""
        return self._folder / f"{digest}.mean.f32"

    def read(self, digest: str) -> Vector:
        """A model by digest, checked. Raises ModelError."""
        vector = self._read_values(self.path_of(digest))
        if model_digest(vector).hex() != digest:
            raise ModelError(f"{self.path_of(digest)} is damaged: restore it from a copy, or begin with a new state folder")
        return vector

    def read_velocity(self, digest: str) -> Vector | None:
        """The optimizer's memory at a model; None where it has none."""
        path = self._velocity_path(digest)
        return self._read_values(path, whole_models=True) if path.exists() else None

    def drop_velocity(self, digest: str) -> None:
        """Forget the optimizer's memory at a model that is no longer the base."""
        self._velocity_path(digest).unlink(missing_ok=True)

    def export(self, vector: Vector, number: int, digest: bytes | None = None) -> None:
        """Replace `latest.safetensors`; `digest` where that of the vector is known. Raises ModelError."""
        provenance = {"round": str(number), "digest": (digest or model_digest(vector)).hex()}
        write_atomically(self._latest, encode_model(Model(self._layout, vector, provenance)))

    def shown(self) -> tuple[str, str]:
        """Round and digest that `latest.safetensors` names; empty where it is missing or names none."""
        try:
            provenance = read_provenance(self._latest)
        except ModelFileError:
            return "", ""
        return provenance.get("round", ""), provenance.get("digest", "")

    @property
    def _latest(self) -> Path:
        return self._folder / "latest.safetensors"

    def _laid_down(self, vector: Vector) -> tuple[Path, bytes]:
        """A file that waits for its name, durable, and the digest that names it: one is computed while the other is written."""
        values, part = np.ascontiguousarray(vector, dtype="<f4"), self._folder / f"{uuid4().hex}.part"
        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(model_digest, values)
            _write(part, values.data)
        return part, digest.result()

    def _velocity_path(self, digest: str) -> Path:
        return self._folder / f"{digest}.velocity.f32"

    def _read_values(self, path: Path, *, whole_models: bool = False) -> Vector:
        try:
            values = np.fromfile(path, dtype="<f4")
        except OSError as error:
            raise ModelError(f"cannot read the model {path}: {error.strerror}") from error
        length = self._layout.length if whole_models else self._length
        if len(values) != length and not (whole_models and len(values) and len(values) % length == 0):
            raise ModelError(f"{path} holds {len(values)} values, the plan needs {length}")
        return values.astype(np.float32, copy=False)


def pieces(path: Path, size: int) -> Iterator[ModelChunk]:
    """A model's file in order, in messages of at most `size` bytes of it. Raises OSError."""
    at, seen = 0, path.stat()
    written = seen.st_ino, seen.st_mtime_ns, seen.st_size
    while read_bytes := len((piece := _piece(path, written, at, size)).data):
        yield piece
        at += read_bytes


@lru_cache(maxsize=RECENT_PIECES)
def _piece(path: Path, written: tuple[int, int, int], at: int, size: int) -> ModelChunk:
    """A round's hospitals fetch the same model side by side. `written`: tells a damaged file from the one put in its place."""
    del written
    with path.open("rb", buffering=0) as file:
        file.seek(at)
        return to_chunk(file.read(size))


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader or a crash sees the old content or the whole new one. Raises ModelError."""
    part = path.with_name(f"{path.name}.part")
    _write(part, content)
    _put(part, path)


def _write(part: Path, content: bytes | memoryview) -> None:
    try:
        with part.open("wb") as file:
            file.write(content)
            sync(file)
    except OSError as error:
        raise _cannot_write(part, error) from error


def _put(part: Path, path: Path) -> None:
    try:
        part.replace(path)
    except OSError as error:
        raise _cannot_write(part, error) from error
    sync_folder(path.parent)


def _cannot_write(part: Path, error: OSError) -> ModelError:
    part.unlink(missing_ok=True)
    return ModelError(f"cannot write into {part.parent}: {error.strerror}: free some space, then start the coordinator again")


def sync_folder(folder: Path) -> None:
    """Hand a folder's entries to the disk: a rename itself must survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(file: IO[bytes]) -> None:
    """Hand a file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())
