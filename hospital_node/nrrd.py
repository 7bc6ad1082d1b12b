"""Whether an NRRD file is whole and its header sane, before SimpleITK is allowed to load its voxels.

Attached headers only: a detached one may name any file of the machine as its voxels. Fields are those of the NRRD format
(teem.sourceforge.net/nrrd/format.html); names may carry spaces or none, keys with ':=' are remarks.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy
from hospital_node.metaimage import BLOCK_BYTES, HEADER_LIMIT_BYTES, MAX_VOXELS
from hospital_node.wholeness import Promise, checked_by_length, has_crc, refuse_small

MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
SPACES = frozenset({"left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las"})
ELEMENT_BYTES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort", "unsigned short", "uint16"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
    8: ("longlong", "long long", "int64", "int64_t", "ulonglong", "unsigned long long", "uint64", "uint64_t", "double"),
}
BYTES_OF = {name: width for width, names in ELEMENT_BYTES.items() for name in names}


def check_nrrd(path: Path) -> tuple[int, int, int]:
    """Check a .nrrd to its last byte and return its size (x, y, z). Raises UnreadableStudy."""
    promise = promised_nrrd(path)
    promise.inflate()
    return promise.size_xyz


def promised_nrrd(path: Path) -> Promise:
    """Check the header of a .nrrd, and the length of what is not compressed. Raises UnreadableStudy."""
    with path.open("rb") as stream:
        fields, start = _fields(stream.read(HEADER_LIMIT_BYTES))
    size = _size(fields)
    _refuse_unsupported(fields)
    width = BYTES_OF.get(fields.get("type", "").lower())
    if width is None:
        raise UnreadableStudy("unsupported-header", "the type of the voxels is not one that is read: export the volume again")
    if width > 1 and fields.get("endian", "").lower() not in {"little", "big"}:
        raise UnreadableStudy("bad-header", "the header does not say little or big endian: write the volume again")
    encoding, expected_bytes = fields.get("encoding", "").lower(), math.prod(size) * width
    if encoding not in {"raw", "gzip", "gz"}:
        raise UnreadableStudy("unsupported-header", "the encoding is neither raw nor gzip: write the volume again")

    def inflate() -> None:
        with path.open("rb") as stream:
            stream.seek(start)
            _check_voxels(stream, encoding, expected_bytes)

    def holds(values: NDArray[Any]) -> bool:
        return values.nbytes == expected_bytes and has_crc(path, b"", values)

    if encoding == "raw":
        inflate()
        return checked_by_length(size)
    refuse_small(path.stat().st_size - start, expected_bytes)
    return Promise(size, inflate, holds)


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """Fields with lower-case names without spaces, and where the voxels begin: after the first empty line."""
    magic = MAGIC.match(head)
    if magic is None:
        raise UnreadableStudy("bad-header", "the file does not begin as NRRD files do")
    fields: dict[str, str] = {}
    start = magic.end()
    while (end := head.find(b"\n", start)) >= 0:
        line = head[start:end].decode("latin-1").rstrip("\r")
        start = end + 1
        if not line:
            return fields, start
        key, sign, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        name = key.lower().replace(" ", "")
        if not sign or name in fields:
            raise UnreadableStudy("bad-header", "a line of the header is no 'field: value', or gives a field twice")
        fields[name] = value.strip()
    raise UnreadableStudy(
        "bad-header", "the header does not end with an empty line: the file is cut, or its voxels are elsewhere"
    )


def _size(fields: dict[str, str]) -> tuple[int, int, int]:
    parts = fields.get("sizes", "").split()
    if fields.get("dimension") != "3":
        raise UnreadableStudy("not-3d", "the header does not say dimension: 3; only single 3-D volumes are used")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UnreadableStudy("bad-header", "sizes is not three whole numbers")
    x, y, z = (int(part) for part in parts)
    if not 0 < x * y * z <= MAX_VOXELS:
        raise UnreadableStudy("implausible-size", f"sizes is not between 1 and {MAX_VOXELS} voxels")
    return x, y, z


def _refuse_unsupported(fields: dict[str, str]) -> None:
    if "datafile" in fields:
        raise UnreadableStudy("outside-folder", "the voxels are in another file: write header and voxels into one .nrrd")
    if any(fields.get(name, "0") != "0" for name in ("lineskip", "byteskip")):
        raise UnreadableStudy("unsupported-header", "the header skips lines or bytes: write the volume again")
    kinds = fields.get("kinds", "domain domain domain").lower().split()
    if any(kind not in {"domain", "space"} for kind in kinds):
        raise UnreadableStudy("not-scalar", "an axis of the volume is not one of space: only one value per voxel is used")
    if fields.get("space", "").lower() not in SPACES or "spacedirections" not in fields:
        raise UnreadableStudy(
            "no-orientation", "the header does not say how the volume lies in the patient: export it with space"
        )


def _check_voxels(stream: BinaryIO, encoding: str, expected_bytes: int) -> None:
    """From here to the end of the file there must be exactly the voxels; gzip checks its own sum there."""
    voxels = stream if encoding == "raw" else cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    found_bytes = 0
    try:
        while found_bytes <= expected_bytes and (block := voxels.read(min(BLOCK_BYTES, expected_bytes + 1 - found_bytes))):
            found_bytes += len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UnreadableStudy("truncated", "the compressed voxels are cut or damaged: copy the file again") from None
    if found_bytes != expected_bytes:
        raise UnreadableStudy("truncated", f"the file does not hold the {expected_bytes} bytes of voxels of its header")
