"""DICOM slices made from nothing, field by field, so that a test can get any one of them wrong."""

import struct

import numpy as np

from hospital_node.dicom_header import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE

CT = "1.2.840.10008.5.1.4.1.1.2"
ROWS, COLUMNS = 5, 6
TEXT_FIELDS = {  # tag -> (type, name of the keyword below)
    (0x0008, 0x0008): ("CS", "image_type"),
    (0x0008, 0x0016): ("UI", "sop_class"),
    (0x0010, 0x0020): ("LO", "patient"),
    (0x0018, 0x0050): ("DS", "thickness"),
    (0x0020, 0x000E): ("UI", "series"),
    (0x0020, 0x0032): ("DS", "position"),
    (0x0020, 0x0037): ("DS", "orientation"),
    (0x0028, 0x0004): ("CS", "photometric"),
    (0x0028, 0x0008): ("IS", "frames"),
    (0x0028, 0x0030): ("DS", "pixel_spacing"),
    (0x0028, 0x1052): ("DS", "intercept"),
    (0x0028, 0x1053): ("DS", "slope"),
}
NUMBER_FIELDS = {
    (0x0028, 0x0002): "samples",
    (0x0028, 0x0010): "rows",
    (0x0028, 0x0011): "columns",
    (0x0028, 0x0100): "bits",
    (0x0028, 0x0101): "stored",
    (0x0028, 0x0102): "high_bit",
    (0x0028, 0x0103): "signed",
}
USUAL = {
    "image_type": "ORIGINAL\\PRIMARY\\AXIAL",
    "sop_class": CT,
    "thickness": "2.5",
    "series": "1.2.3",
    "orientation": "1\\0\\0\\0\\1\\0",
    "photometric": "MONOCHROME2",
    "frames": "",
    "pixel_spacing": "0.8\\0.7",  # between rows, between columns
    "intercept": "-1000",
    "slope": "1",
    "samples": 1,
    "rows": ROWS,
    "columns": COLUMNS,
    "bits": 16,
    "stored": 12,
    "high_bit": 11,
    "signed": 0,
}


def element(tag, kind, value, order="<", *, explicit=True) -> bytes:
    if isinstance(value, str):
        value = value.encode()
        value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    head = struct.pack(order + "2H", *tag)
    if not explicit:
        return head + struct.pack(order + "I", len(value)) + value
    if kind in {"OW", "SQ", "UN", "OB"}:
        return head + kind.encode() + struct.pack(order + "HI", 0, len(value)) + value
    return head + kind.encode() + struct.pack(order + "H", len(value)) + value


def slice_file(path, pixels, *, syntax=EXPLICIT_LITTLE, extra=b"", **fields):
    """Write one slice; `fields` replace USUAL, None leaves one out."""
    order, explicit = (">" if syntax == EXPLICIT_BIG else "<"), syntax != IMPLICIT_LITTLE
    values = USUAL | fields
    parts = {}
    for tag, (kind, name) in TEXT_FIELDS.items():
        if values.get(name) is not None:
            parts[tag] = element(tag, kind, values[name], order, explicit=explicit)
    for tag, name in NUMBER_FIELDS.items():
        parts[tag] = element(tag, "US", struct.pack(order + "H", values[name]), order, explicit=explicit)
    body = b"".join(parts[tag] for tag in sorted(parts)) + extra
    width = {8: "u1", 16: "u2", 32: "u4"}[values["bits"]]
    stored = np.asarray(pixels).astype(np.int64) & ((1 << values["bits"]) - 1)
    body += element((0x7FE0, 0x0010), "OW", stored.astype(order + width).tobytes(), order, explicit=explicit)
    meta = element((0x0002, 0x0002), "UI", CT) + element((0x0002, 0x0010), "UI", syntax)
    length = element((0x0002, 0x0000), "UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + body)
    return path


def voxels(index: int) -> np.ndarray:
    return np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) * 7 + 100 * index


def series(folder, places=(0.0, 2.5, 5.0, 7.5), **fields):
    """Slices at `places` along z (or at whole positions); file names run against the positions, as scanners like it."""
    folder.mkdir(exist_ok=True)
    for index, place in enumerate(places):
        position = place if isinstance(place, str) else f"-10\\20\\{place}"
        slice_file(folder / f"{len(places) - index:03}.dcm", voxels(index), position=position, **fields)
    return folder
