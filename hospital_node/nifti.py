"""Is a NIfTI-1 file whole? SimpleITK 2.5.7 fills the missing part of a cut .nii or .nii.gz with zeros and says nothing.

The file is read to its end: gzip's CRC and length must hold, and the length must be what the header asks for. Fields are
those of the NIfTI-1 standard (nifti1.h): dim at byte 40, datatype and bitpix at 70, vox_offset at 108, magic at 344.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from hospital_node.cohort import UnreadableStudy
from hospital_node.metaimage import BLOCK_BYTES, MAX_VOXELS

HEADER_BYTES = 348
NIFTI2_HEADER_BYTES = 540
SCALAR_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}  # bitpix by datatype


def check_nifti(path: Path) -> tuple[int, int, int]:
    """Check a .nii or .nii.gz to its last byte and return its size (x, y, z). Raises UnreadableStudy."""
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if compressed else raw
            header = stream.read(HEADER_BYTES)
            size, expected_bytes = _expected(header)
            _check_length(stream, len(header), expected_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UnreadableStudy("truncated", "the compressed file is cut or damaged: copy it again from its source") from None
    return size


def _expected(header: bytes) -> tuple[tuple[int, int, int], int]:
    """Size in voxels, and bytes that the whole file must have when inflated."""
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
    return (dim[1], dim[2], dim[3]), max(int(voxel_offset), HEADER_BYTES) + voxels * bits // 8


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
