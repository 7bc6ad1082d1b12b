"""Is a NIfTI-1 file whole? SimpleITK 2.5.7 fills the missing part of a cut .nii or .nii.gz with zeros and says nothing.

The file is read to its end: gzip's CRC and length must hold, and the length must be what the header asks for. Fields are
those of the NIfTI-1 standard (nifti1.h): dim at byte 40, datatype and bitpix at 70, vox_offset at 108, magic at 344.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy
from hospital_node.metaimage import BLOCK_BYTES, HEADER_LIMIT_BYTES, MAX_VOXELS
from hospital_node.wholeness import Promise, checked_by_length, has_crc, refuse_small

HEADER_BYTES = 348
NIFTI2_HEADER_BYTES = 540
SCALAR_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}  # bitpix by datatype


def check_nifti(path: Path) -> tuple[int, int, int]:
    """Check a .nii or .nii.gz to its last byte and return its size (x, y, z). Raises UnreadableStudy."""
    promise = promised_nifti(path)
    promise.inflate()
    return promise.size_xyz


def promised_nifti(path: Path) -> Promise:
    """Check the header of a .nii or .nii.gz, and the length of what is not compressed. Raises UnreadableStudy."""
    with _opened(path) as (stream, compressed):
        header = stream.read(HEADER_BYTES)
        size, start, expected_bytes = _expected(header)
        before = header + stream.read(start - len(header))
    if not compressed:
        _inflate(path, expected_bytes)  # nothing is: only the length is compared
        return checked_by_length(size)
    refuse_small(path.stat().st_size, expected_bytes)

    def holds(values: NDArray[Any]) -> bool:
        return len(before) + values.nbytes == expected_bytes and has_crc(path, before, values)

    return Promise(size, lambda: _inflate(path, expected_bytes), holds)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file as it is when inflated, and whether it is compressed."""
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield (cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if compressed else raw), compressed
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UnreadableStudy("truncated", "the compressed file is cut or damaged: copy it again from its source") from None


def _inflate(path: Path, expected_bytes: int) -> None:
    if path.stat().st_size == expected_bytes:
        with path.open("rb") as raw:
            if raw.read(2) != b"\x1f\x8b":
                return
    with _opened(path) as (stream, _):
        _check_length(stream, 0, expected_bytes)


def _expected(header: bytes) -> tuple[tuple[int, int, int], int, int]:
    """Size in voxels, where they begin, and bytes that the whole file must have when inflated."""
    order = _byte_order(header)
    dim = struct.unpack_from(order + "8h", header, 40)
    datatype, bits = struct.unpack_from(order + "2h", header, 70)
    (voxel_offset,) = struct.unpack_from(order + "f", header, 108)
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise UnreadableStudy("bad-header", "the header's dimensions are not between 1 and 7 positive numbers")
    if dim[0] < 3 or any(extent != 1 for extent in dim[4 : dim[0] + 1]):
        raise UnreadableStudy("not-3d", "the file does not hold one 3-D volume: export a single volume")
    if datatype not in SCALAR_BITS:
        raise UnreadableStudy("not-scalar", "the voxels are colours, complex numbers or of an unknown type")
    if SCALAR_BITS[datatype] != bits or not math.isfinite(voxel_offset) or voxel_offset != int(voxel_offset):
        raise UnreadableStudy("bad-header", "datatype, bitpix and vox_offset of the header contradict each other")
    voxels = math.prod(dim[1:4])
    if voxels > MAX_VOXELS:
        raise UnreadableStudy("implausible-size", f"the header asks for more than {MAX_VOXELS} voxels")
    start = max(int(voxel_offset), HEADER_BYTES)
    if start > HEADER_LIMIT_BYTES:
        raise UnreadableStudy("bad-header", f"the voxels begin more than {HEADER_LIMIT_BYTES} bytes into the file")
    return (dim[1], dim[2], dim[3]), start, start + voxels * bits // 8


def _byte_order(header: bytes) -> str:
    for order in ("<", ">"):
        length = struct.unpack_from(order + "i", header.ljust(4, b"\0"))[0]
        if length == NIFTI2_HEADER_BYTES:
            raise UnreadableStudy(
                "unsupported-format", "the file is NIfTI-2, which SimpleITK cannot read: export it as NIfTI-1"
            )
        if length == HEADER_BYTES and len(header) == HEADER_BYTES and header[344:348] == b"n+1\0":
            return order
    raise UnreadableStudy("bad-header", "the file does not begin with the header of a single-file NIfTI-1 volume")


def _check_length(stream: BinaryIO, read_bytes: int, expected_bytes: int) -> None:
    """Read to the end, one byte past the expected length at most: gzip checks its CRC there."""
    while read_bytes <= expected_bytes:
        block = stream.read(min(BLOCK_BYTES, expected_bytes + 1 - read_bytes))
        if not block:
            break
        read_bytes += len(block)
    if read_bytes != expected_bytes:
        raise UnreadableStudy("truncated", f"the file does not hold the {expected_bytes} bytes that its header asks for")
