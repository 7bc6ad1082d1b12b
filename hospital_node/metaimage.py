"""What a MetaImage header may say before SimpleITK is allowed to load its voxels.

SimpleITK 2.5.7 reads some headers wrongly without an error: it opens whatever file ElementDataFile names, loads garbage
for a wrong CompressedDataSize, ignores rescale fields, and a line without '=' makes it lose the key on the next line (so a
stray comment before BinaryDataByteOrderMSB swaps all bytes). This parser accepts less than SimpleITK does, and whatever
it accepts both read alike; reading.py compares the two again after loading.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy
from hospital_node.wholeness import Promise, checked_by_length, has_adler, refuse_small

HEADER_LIMIT_BYTES = 1 << 16  # LUNA16 headers have about 400 bytes
MAX_VOXELS = 1 << 30  # 1024 x 1024 x 1024; the largest LUNA16 volume has 2 % of this
BLOCK_BYTES = 1 << 20
ELEMENT_BYTES = {  # MET_LONG is left out: its width depends on who wrote it
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_FLOAT": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_DOUBLE": 8,
}
SYNONYMS = {  # keys that set the same field; a second one would be a contradiction that readers resolve differently
    "Origin": "Offset",
    "Position": "Offset",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
GUARDED = {
    "NDims",
    "DimSize",
    "ElementType",
    "ElementNumberOfChannels",
    "ElementSpacing",
    "HeaderSize",
    "BinaryData",
    "CompressedData",
    "CompressedDataSize",
    "ElementDataFile",
    *SYNONYMS.values(),
}
RESCALES = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0}  # ignored by ITK
LINE = re.compile(r"([A-Za-z][A-Za-z0-9_]*) *[=:] *([\x20-\x7e\xa0-\xff]*?) *\r?")


@dataclass(frozen=True, slots=True)
class MetaHeader:
    """The checked part of a header. `size_xyz` has three entries; the voxels start at `data_offset` of `data_path`."""

    size_xyz: tuple[int, int, int]
    data_path: Path
    data_offset: int


def check_metaimage(path: Path) -> MetaHeader:
    """Check header and voxel data of a .mhd or .mha to the last byte without loading it. Raises UnreadableStudy."""
    header, promise = _promised(path)
    promise.inflate()
    return header


def promised_metaimage(path: Path) -> Promise:
    """Check header and lengths of a .mhd or .mha; what is compressed is not inflated yet. Raises UnreadableStudy."""
    return _promised(path)[1]


def _promised(path: Path) -> tuple[MetaHeader, Promise]:
    with path.open("rb") as stream:
        fields, offset = _fields(stream.read(HEADER_LIMIT_BYTES))
    size = _size(fields)
    _refuse_unsupported(fields)
    if _is_local(fields):
        header = MetaHeader(size, path, offset)
    else:
        header = MetaHeader(size, _data_path(path, fields["ElementDataFile"]), 0)
    return header, _check_lengths(header, math.prod(size) * _element_bytes(fields), fields)


def data_file(path: Path) -> Path:
    """The file that holds the voxels of a .mhd or .mha: itself or its neighbour. Raises UnreadableStudy."""
    try:
        with path.open("rb") as stream:
            fields, _ = _fields(stream.read(HEADER_LIMIT_BYTES))
    except OSError as error:
        raise UnreadableStudy("unreadable", f"a header cannot be opened ({error.strerror}): check its permissions") from None
    return path if _is_local(fields) else _data_path(path, fields["ElementDataFile"])


def _is_local(fields: dict[str, str]) -> bool:
    return fields["ElementDataFile"].upper() == "LOCAL"


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """Guarded fields, and where the header ends: after the line of ElementDataFile, which must be the last one."""
    fields: dict[str, str] = {}
    for key, value, end in _lines(head):
        name = SYNONYMS.get(key, key)
        if name in fields:
            raise UnreadableStudy("bad-header", f"the header gives {name} twice: write it once")
        if name in GUARDED or name in RESCALES:
            fields[name] = value
        if name == "ElementDataFile":
            return fields, end
    raise UnreadableStudy("bad-header", "the header has no ElementDataFile: the file is cut or is no MetaImage")


def _lines(head: bytes) -> Iterator[tuple[str, str, int]]:
    start = 0
    while (end := head.find(b"\n", start)) >= 0 or start < len(head):
        end = len(head) if end < 0 else end
        text = head[start:end].decode("latin-1")
        start = end + 1
        if not text.strip(" \r"):
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise UnreadableStudy("bad-header", "a line of the header is not 'key = value': remove it, it hides the next key")
        yield match[1], match[2], start


def _size(fields: dict[str, str]) -> tuple[int, int, int]:
    if fields.get("NDims") != "3":
        raise UnreadableStudy("not-3d", "the header does not say NDims = 3: only single 3-D volumes are used")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise UnreadableStudy("not-scalar", "the volume has several channels: only one value per voxel is used")
    parts = fields.get("DimSize", "").split()
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UnreadableStudy("bad-header", "DimSize is not three whole numbers")
    x, y, z = (int(part) for part in parts)
    if not 0 < x * y * z <= MAX_VOXELS:
        raise UnreadableStudy("implausible-size", f"DimSize is not between 1 and {MAX_VOXELS} voxels")
    return x, y, z


def _refuse_unsupported(fields: dict[str, str]) -> None:
    if fields.get("HeaderSize", "0") != "0":
        raise UnreadableStudy("unsupported-header", "HeaderSize is not 0: write the volume again with SimpleITK")
    if not _is_true(fields.get("BinaryData", "True")):
        raise UnreadableStudy("unsupported-header", "the voxels are stored as text: write the volume again with SimpleITK")
    for key, neutral in RESCALES.items():
        if key in fields and _number(fields[key]) != neutral:
            raise UnreadableStudy("unsupported-header", f"{key} would be ignored: store the values already rescaled")


def _is_true(value: str) -> bool:
    """MetaIO's rule: the first letter decides."""
    return value[:1] in {"T", "t", "1"}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _element_bytes(fields: dict[str, str]) -> int:
    width = ELEMENT_BYTES.get(fields.get("ElementType", ""))
    if width is None:
        raise UnreadableStudy("unsupported-header", "ElementType is not one of " + ", ".join(ELEMENT_BYTES))
    return width


def _data_path(header: Path, name: str) -> Path:
    """Only a plain name in the header's own folder: SimpleITK would read /etc/passwd as voxels."""
    if "/" in name or "\\" in name or ":" in name or name in {"", ".", ".."}:
        raise UnreadableStudy("outside-folder", "ElementDataFile must be a plain file name in the folder of its header")
    if "%" in name or name.upper().startswith("LIST"):
        raise UnreadableStudy(
            "unsupported-header", "ElementDataFile lists several files: write the volume as one .mhd and .raw"
        )
    path = header.parent / name
    if not path.is_file():
        raise UnreadableStudy("missing-data", "the file that ElementDataFile names is not there: copy it beside its header")
    return path


def _check_lengths(header: MetaHeader, expected_bytes: int, fields: dict[str, str]) -> Promise:
    stored_bytes = header.data_path.stat().st_size - header.data_offset
    if not _is_true(fields.get("CompressedData", "False")):
        if stored_bytes != expected_bytes:
            raise UnreadableStudy(
                "truncated", f"the header asks for {expected_bytes} bytes of voxels, stored are {stored_bytes}"
            )
        return checked_by_length(header.size_xyz)
    if fields.get("CompressedDataSize", str(stored_bytes)) != str(stored_bytes):
        raise UnreadableStudy("truncated", f"CompressedDataSize is not the {stored_bytes} bytes that are stored")
    refuse_small(stored_bytes, expected_bytes)

    def inflate() -> None:
        with header.data_path.open("rb") as stream:
            stream.seek(header.data_offset)
            _check_zlib(stream, expected_bytes)

    def holds(values: NDArray[Any]) -> bool:
        return values.nbytes == expected_bytes and has_adler(header.data_path, values)

    return Promise(header.size_xyz, inflate, holds)


def _check_zlib(stream: BinaryIO, expected_bytes: int) -> None:
    """Inflate to the end in blocks: the checksum must hold and the length be exact. Nothing is kept."""
    inflater = zlib.decompressobj()
    inflated_bytes = 0
    try:
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            pending = block
            while pending and inflated_bytes <= expected_bytes:
                inflated_bytes += len(inflater.decompress(pending, BLOCK_BYTES))
                pending = inflater.unconsumed_tail
    except zlib.error:
        raise UnreadableStudy("truncated", "the compressed voxels are damaged") from None
    if inflated_bytes != expected_bytes or not inflater.eof or inflater.unused_data:
        raise UnreadableStudy("truncated", f"the compressed voxels do not inflate to the {expected_bytes} bytes of the header")
