"""Public weights from elsewhere as the start of a study: a MONAI bundle, a torch file or named tensors in safetensors.

Rule: only numbers are read, never code: torch files with weights_only=True, archives member by member and never unpacked.
Tensors are matched to the plan's network by name and shape. Strict unless told otherwise: every tensor of the network is in
the file, and every tensor of the file has its place. Weights that were trained on a hospital's patients without noise are no
public start; nobody here can tell, so the digest of the file is written into the start.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]  # torch.load: more than weights

from proto.modelfile import Model, ModelFileError

BUNDLE_WEIGHTS: Final = ("models/model.safetensors", "models/model.pt")  # of a MONAI bundle, in the order of preference
BUNDLE_METADATA: Final = "configs/metadata.json"
MAX_BYTES: Final = 8 << 30  # of one file of weights: 2 billion values
SHOWN: Final = 6  # names in a sentence
NAME_CHARACTERS: Final = 100
RUNNING: Final = ("running_mean", "running_var")

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named tensors, what they came in, and the digest of that file."""

    tensors: Tensors = field(repr=False)
    kind: str  # for people: "MONAI bundle spleen 0.5", "torch file", "safetensors file"
    sha256: str


@dataclass(frozen=True, slots=True)
class Match:
    """How a checkpoint fits a network, by the network's names."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]  # of the network, not in the file
    unfit: tuple[str, ...]  # in both, of another shape
    unused: tuple[str, ...]  # of the file, not in the network
    dropped_prefix: str  # that all names of the file began with

    @property
    def complete(self) -> bool:
        """Whether nothing is left over on either side."""
        return not (self.missing or self.unfit or self.unused)

    def lines(self) -> Iterator[str]:
        """For people: what was taken and what was not."""
        total = len(self.taken) + len(self.missing) + len(self.unfit)
        prefix = f", without the prefix '{self.dropped_prefix}'" if self.dropped_prefix else ""
        yield f"{len(self.taken)} of {total} tensors of the network taken by name and shape{prefix}"
        for names, what in (
            (self.missing, "missing in the file"),
            (self.unfit, "of another shape"),
            (self.unused, "of the file not used"),
        ):
            if names:
                yield f"{len(names)} {what}: {_shown(names)}"


def start_from(checkpoint: Checkpoint, fresh: Model, *, partial: bool) -> tuple[Model, Match]:
    """`fresh` with every tensor that the checkpoint has for it, and how the two fit.

    Raises ModelFileError where they do not fit whole and `partial` was not asked for, or where nothing fits.
    """
    tensors, prefix = _named_as(checkpoint.tensors, fresh)
    shapes = dict(fresh.layout.tensors)
    here = [name for name in shapes if name in tensors]
    match = Match(
        taken=tuple(name for name in here if tensors[name].shape == shapes[name]),
        missing=tuple(name for name in shapes if name not in tensors),
        unfit=tuple(name for name in here if tensors[name].shape != shapes[name]),
        unused=tuple(name for name in tensors if name not in shapes),
        dropped_prefix=prefix,
    )
    _refuse(match, tensors, fresh, partial=partial)
    taken = {name: tensors[name] for name in match.taken}
    vector = fresh.layout.flatten({**fresh.layout.split(fresh.vector), **taken})
    provenance = {
        "made-by": checkpoint.kind,
        "checkpoint-sha256": checkpoint.sha256,
        "taken": f"{len(match.taken)} of {len(shapes)} tensors",
    }
    return Model(fresh.layout, vector, provenance), match


def read_checkpoint(path: Path) -> Checkpoint:
    """A bundle's folder or zip, a .pt or .pth file, or a .safetensors file. Raises ModelFileError."""
    try:
        if path.is_dir():
            return _from_bundle(path, {name: path / name for name in (*BUNDLE_WEIGHTS, BUNDLE_METADATA)})
        if path.suffix == ".zip":
            return _from_zip(path)
        data = _limited(path, path.stat().st_size, path.read_bytes)
        return _from_bytes(path, path.name, data, f"{_format(path.name)} file")
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no checkpoint {path}: name a bundle's folder or zip, or a file of weights") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"cannot read the checkpoint {path} ({error}): name another one") from error


def _from_zip(path: Path) -> Checkpoint:
    """A bundle's archive, whose one top folder has the bundle's name."""
    with zipfile.ZipFile(path) as archive:
        members = {}
        for info in archive.infolist():
            for wanted in (*BUNDLE_WEIGHTS, BUNDLE_METADATA):
                if PurePosixPath(info.filename).parts[-2:] == PurePosixPath(wanted).parts:
                    members[wanted] = info
        return _from_bundle(path, members, archive)


def _from_bundle(path: Path, places: Mapping[str, Any], archive: zipfile.ZipFile | None = None) -> Checkpoint:
    def content(name: str) -> bytes | None:
        if archive is None:
            file = places[name]
            return _limited(path, file.stat().st_size, file.read_bytes) if file.is_file() else None
        info = places.get(name)
        return None if info is None else _limited(path, info.file_size, lambda: archive.read(info))

    for name in BUNDLE_WEIGHTS:
        data = content(name)
        if data is not None:
            return _from_bytes(path, name, data, f"MONAI bundle{_named(content(BUNDLE_METADATA))}")
    raise ModelFileError(
        f"{path} holds neither {' nor '.join(BUNDLE_WEIGHTS)}, so it is no MONAI bundle with weights (TorchScript is not "
        "read): download the bundle again, or name a file of weights"
    )


def _limited(path: Path, size: int, read: Callable[[], bytes]) -> bytes:
    if size > MAX_BYTES:
        raise ModelFileError(f"{path} holds weights of {size >> 30} GiB, at most {MAX_BYTES >> 30} are read: name another one")
    return read()


def _named(metadata: bytes | None) -> str:
    """Name and version of a bundle, for provenance; empty where it does not say."""
    try:
        fields = json.loads(metadata or b"")
        text = " ".join(str(fields[key]) for key in ("name", "version") if key in fields)
    except (ValueError, TypeError):
        return ""
    shown = "".join(character for character in text if character.isprintable())[:NAME_CHARACTERS]
    return f" {shown}" if shown else ""


def _format(name: str) -> str:
    return "safetensors" if name.endswith(".safetensors") else "torch"


def _from_bytes(path: Path, name: str, data: bytes, kind: str) -> Checkpoint:
    try:
        found = load_safetensors(data) if _format(name) == "safetensors" else _state_of(_load_torch(data))
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path} is no file of weights alone ({_first_line(error)}): name another one") from error
    tensors = {key: np.asarray(value, dtype=np.float32) for key, value in found.items() if value.dtype.kind == "f"}
    bad = next((key for key, value in tensors.items() if not np.isfinite(value).all()), None)
    if bad is not None:
        raise ModelFileError(f"{path}: tensor '{bad}' holds values that are not finite: name another checkpoint")
    return Checkpoint(tensors, kind, hashlib.sha256(data).hexdigest())


def _load_torch(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _state_of(found: Any) -> dict[str, NDArray[Any]]:
    """The one table of named tensors in what a torch file holds: itself, or an entry of it. Raises ValueError."""
    inside = [found, *found.values()] if isinstance(found, Mapping) else []
    tables = [one for one in inside if isinstance(one, Mapping) and one and all(map(torch.is_tensor, one.values()))]
    if len(tables) != 1:
        keys = _shown(tuple(map(str, found))) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"it holds {len(tables)} tables of named tensors instead of one: {keys}")
    return {str(name): _as_numpy(tensor) for name, tensor in _once(tables[0])}


def _once(table: Mapping[Any, torch.Tensor]) -> Iterator[tuple[Any, torch.Tensor]]:
    """Each tensor under its first name, as parameters have it: DynUNet holds its layers a second time under other names."""
    seen = set()
    for name, tensor in table.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            yield name, tensor
        seen.add(place)


def _as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu()
    return np.asarray((plain.float() if plain.is_floating_point() else plain).numpy())


def _named_as(tensors: Tensors, fresh: Model) -> tuple[Tensors, str]:
    """The tensors under the network's names: without the wrapper's prefix (`module.`) where only that keeps them apart."""
    wanted = {name for name, _ in fresh.layout.tensors}
    prefixes = {name.partition(".")[0] + "." for name in tensors}
    if wanted & tensors.keys() or len(prefixes) != 1:
        return tensors, ""
    (prefix,) = prefixes
    shorter = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return (shorter, prefix) if wanted & shorter.keys() else (tensors, "")


def _refuse(match: Match, tensors: Tensors, fresh: Model, *, partial: bool) -> None:
    report = "; ".join(match.lines())
    if not match.taken:
        names = f"it has {_shown(tuple(tensors))}; the network {_shown(tuple(name for name, _ in fresh.layout.tensors))}"
        raise ModelFileError(f"the checkpoint holds another network than the plan's ({names}): change network in the plan")
    if not match.complete and not partial:
        running = any(name.endswith(RUNNING) for name in match.unused)
        why = " The file keeps running means of batch normalisation, which no node trains." if running else ""
        raise ModelFileError(
            f"the checkpoint does not fit the plan's network: {report}.{why} Change network in the plan, or say --partial to "
            "take what fits and begin the rest at random"
        )


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
