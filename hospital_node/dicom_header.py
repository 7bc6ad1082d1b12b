"""What a DICOM file says of its one slice, before GDCM may turn it into voxels.

Encodings of DICOM PS3.5, chapter 7: implicit and explicit little endian, explicit big endian, sequences of defined and
undefined length. It accepts less than GDCM does; dicom.py compares what GDCM reads with what is stored.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy

SUFFIXES = (".dcm", ".ima")
PREAMBLE_BYTES = 128
MAGIC = b"DICM"
UNDEFINED = 0xFFFFFFFF
MAX_DEPTH = 16  # of sequences in sequences; real files have 4
LONG_VR = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
SHORT_VR = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"}
    | {b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
TRANSFER_SYNTAX = (0x0002, 0x0010)
PIXEL_DATA = (0x7FE0, 0x0010)

IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
LOSSLESS = frozenset(
    {
        "1.2.840.10008.1.2.4.57",  # JPEG lossless
        "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
        "1.2.840.10008.1.2.5",  # run length
    }
)
TEXTS = {
    (0x0008, 0x0008): "image_type",
    (0x0008, 0x0016): "sop_class",
    (0x0010, 0x0020): "patient",
    (0x0018, 0x0050): "thickness",
    (0x0018, 0x0088): "gap",
    (0x0020, 0x000E): "series",
    (0x0020, 0x0032): "position",
    (0x0020, 0x0037): "orientation",
    (0x0028, 0x0004): "photometric",
    (0x0028, 0x0008): "frames",
    (0x0028, 0x0030): "pixel_spacing",
    (0x0028, 0x1052): "intercept",
    (0x0028, 0x1053): "slope",
}
NUMBERS = {
    (0x0028, 0x0002): "samples",
    (0x0028, 0x0010): "rows",
    (0x0028, 0x0011): "columns",
    (0x0028, 0x0100): "bits_allocated",
    (0x0028, 0x0101): "bits_stored",
    (0x0028, 0x0102): "high_bit",
    (0x0028, 0x0103): "signed",
}

Tag = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """Fields of one file as they are written. Numbers that are absent are 0, texts empty."""

    path: Path = field(repr=False)
    texts: dict[str, str] = field(repr=False)
    numbers: dict[str, int] = field(repr=False)
    syntax: str
    pixels_at: int  # first byte of the voxels
    pixels_bytes: int  # UNDEFINED where they are compressed

    def text(self, name: str) -> str:
        """A field of TEXTS."""
        return self.texts.get(name, "")

    def number(self, name: str) -> int:
        """A field of NUMBERS."""
        return self.numbers.get(name, 0)

    def decimals(self, name: str, count: int) -> tuple[float, ...] | None:
        """A text of `count` numbers divided by backslashes; None where it is anything else."""
        try:
            values = tuple(float(part) for part in self.text(name).split("\\"))
        except ValueError:
            return None
        return values if len(values) == count and bool(np.isfinite(values).all()) else None

    @property
    def is_compressed(self) -> bool:
        """Whether the voxels are in fragments that only GDCM decodes."""
        return self.syntax in LOSSLESS

    def stored_values(self) -> NDArray[np.int64]:
        """Voxels (rows, columns) before the rescale, decoded here; for files that are not compressed."""
        order = ">" if self.syntax == EXPLICIT_BIG else "<"
        kind = np.dtype(f"{order}u{self.number('bits_allocated') // 8}")
        count = self.number("rows") * self.number("columns")
        values = np.fromfile(self.path, kind, count, offset=self.pixels_at).astype(np.int64)
        bits = self.number("bits_stored")
        values &= (1 << bits) - 1
        if self.number("signed"):
            values -= (values >> (bits - 1)) << bits
        return values.reshape(self.number("rows"), self.number("columns"))


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with path.open("rb") as stream:
        return stream.read(PREAMBLE_BYTES + len(MAGIC))[PREAMBLE_BYTES:] == MAGIC


def series_files(place: Path) -> list[Path]:
    """DICOM files of a folder (not of folders in it) by name, or the one file itself. Raises OSError."""
    if not place.is_dir():
        return [place]
    files = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.name != "DICOMDIR" and (path.suffix.lower() in SUFFIXES or is_dicom(path))]


def read_header(path: Path) -> SliceHeader:
    """The header of one file. Raises UnreadableStudy, and OSError where the file cannot be opened."""
    with path.open("rb") as stream:
        if stream.read(PREAMBLE_BYTES + len(MAGIC))[PREAMBLE_BYTES:] != MAGIC:
            raise UnreadableStudy(
                "unsupported-format", "a file of the series does not begin as DICOM files do: export it again"
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).header(path)
            except struct.error:
                raise UnreadableStudy("truncated", "a DICOM header ends in the middle: copy the file again") from None


class _Reader:
    """Walks over the elements of one file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._written("<", explicit=True)

    def _written(self, order: str, *, explicit: bool) -> None:
        self._order, self._explicit = order, explicit
        self._head, self._long = struct.Struct(order + "2H2sH"), struct.Struct(order + "I")

    def header(self, path: Path) -> SliceHeader:
        syntax, start = self._meta()
        if syntax not in {IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, *LOSSLESS}:
            raise UnreadableStudy(
                "unsupported-format",
                "a DICOM file is compressed with losses, deflated or of no known encoding: export it as stored",
            )
        self._written(">" if syntax == EXPLICIT_BIG else "<", explicit=syntax != IMPLICIT_LITTLE)
        texts: dict[str, str] = {}
        numbers: dict[str, int] = {}
        for tag, at, length in self._elements(start, len(self._data)):
            if tag == PIXEL_DATA:
                return SliceHeader(path, texts, numbers, syntax, at, length)
            if tag in TEXTS and length != UNDEFINED:
                texts[TEXTS[tag]] = self._text(at, length)
            elif tag in NUMBERS and length == 2:
                numbers[NUMBERS[tag]] = struct.unpack_from(self._order + "H", self._data, at)[0]
        raise UnreadableStudy("not-a-scan", "a DICOM file holds no image: keep reports, structures and plans in other folders")

    def _meta(self) -> tuple[str, int]:
        """Transfer syntax, and where the data set begins: after group 2, which is always explicit little endian."""
        syntax, at = "", PREAMBLE_BYTES + len(MAGIC)
        while struct.unpack_from("<H", self._data, at)[0] == TRANSFER_SYNTAX[0]:
            tag, length, start = self._element(at)
            at = start + length
            if tag == TRANSFER_SYNTAX:
                syntax = self._text(start, length)
        if not syntax:
            raise UnreadableStudy("bad-header", "a DICOM file does not say how it is encoded: export it again")
        return syntax, at

    def _text(self, at: int, length: int) -> str:
        if at + length > len(self._data):
            raise UnreadableStudy("truncated", "a DICOM header ends in the middle: copy the file again")
        return self._data[at : at + length].decode("latin-1").strip(" \0")

    def _elements(self, at: int, end: int, depth: int = 0) -> Iterator[tuple[Tag, int, int]]:
        """(tag, first byte of the value, length) of the elements of one level; sequences are stepped over."""
        while at < end:
            tag, length, start = self._element(at)
            yield tag, start, length
            if tag == ITEM_END:
                return
            at = self._after_sequence(start, depth + 1) if length == UNDEFINED else start + length
        if at > end:
            raise UnreadableStudy("truncated", "an element of a DICOM file reaches beyond its end: copy the file again")

    def _element(self, at: int) -> tuple[Tag, int, int]:
        group, number, kind, length = self._head.unpack_from(self._data, at)
        if not self._explicit or group == ITEM[0]:
            return (group, number), self._long.unpack_from(self._data, at + 4)[0], at + 8
        if kind in LONG_VR:
            return (group, number), self._long.unpack_from(self._data, at + 8)[0], at + 12
        if kind not in SHORT_VR:
            raise UnreadableStudy("bad-header", "an element of a DICOM file has no known type: export it again")
        return (group, number), length, at + 8

    def _after_sequence(self, at: int, depth: int) -> int:
        """Where a sequence of undefined length ends."""
        if depth > MAX_DEPTH:
            raise UnreadableStudy("bad-header", f"a DICOM file has more than {MAX_DEPTH} sequences in one another")
        while True:
            tag, length, start = self._element(at)
            if tag == SEQUENCE_END:
                return start
            if tag != ITEM:
                raise UnreadableStudy(
                    "bad-header", "a sequence of a DICOM file holds something else than items: export it again"
                )
            at = self._after_item(start, depth) if length == UNDEFINED else start + length

    def _after_item(self, at: int, depth: int) -> int:
        for tag, start, _ in self._elements(at, len(self._data), depth):
            if tag == ITEM_END:
                return start
        raise UnreadableStudy("truncated", "a sequence of a DICOM file does not end: copy the file again")
