"""What a checked header promises of its voxels, and how the voxels that SimpleITK gave are held against it.

Compressed formats end with a checksum of what they hold. Computed again over the voxels in memory it proves in one pass that
the file was whole and that nothing else was loaded; inflating the file a second time would take many times as long. Where the
sums differ the file is inflated after all: voxels may have been rescaled or their bytes swapped, or the file is cut, and only
that tells which.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy

DEFLATE_RATIO = 1040  # deflate cannot pack tighter (1032), headers aside: a smaller file cannot hold what its header says
Size = tuple[int, int, int]  # (x, y, z)


@dataclass(frozen=True, slots=True)
class Promise:
    """Size of a volume whose header is sane.

    `inflate` reads the file to its end and raises UnreadableStudy where it is not whole. `holds` says whether voxels in memory
    are those of the file, by the file's own checksum.
    """

    size_xyz: Size
    inflate: Callable[[], None]
    holds: Callable[[NDArray[Any]], bool]

    def keep(self, values: NDArray[Any]) -> None:
        """Return if `values`, as loaded, are the voxels of the file. Raises UnreadableStudy."""
        if not self.holds(values):
            self.inflate()


def checked_by_length(size_xyz: Size) -> Promise:
    """For files that are not compressed and whose length was compared."""
    return Promise(size_xyz, lambda: None, lambda _values: True)


def refuse_small(stored_bytes: int, expected_bytes: int) -> None:
    """Raise UnreadableStudy where a compressed file cannot hold what is asked of it, before anything is allocated."""
    if stored_bytes * DEFLATE_RATIO < expected_bytes:
        raise UnreadableStudy("truncated", f"the compressed file is too small for the {expected_bytes} bytes of its header")


def has_crc(path: Path, before: bytes, values: NDArray[Any]) -> bool:
    """Whether a file of one gzip member ends with the CRC-32 and the length of `before` and `values` (RFC 1952, 2.3.1)."""
    crc = zlib.crc32(values.data, zlib.crc32(before))
    length = (len(before) + values.nbytes) & 0xFFFFFFFF
    return _tail(path, 8) == crc.to_bytes(4, "little") + length.to_bytes(4, "little")


def has_adler(path: Path, values: NDArray[Any]) -> bool:
    """Whether a file ends with the Adler-32 of `values`, as a zlib stream does (RFC 1950, 2.2)."""
    return _tail(path, 4) == zlib.adler32(values.data).to_bytes(4, "big")


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(-min(count, path.stat().st_size), 2)
        return stream.read()
