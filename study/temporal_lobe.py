"""Public volumes for pretraining: a left hippocampus and what lies around it on T1-weighted MR, drawn from textbook anatomy.

What is drawn: the long axis runs backwards, rises, and swings outwards and in again; a thick head that bends inwards, a flat
body, a thin tail; fluid of the temporal horn outside and above it, a cistern and the brain stem on the inner side, white matter
and the folded cortex of the parahippocampal gyrus below, the amygdala before and above the head. White matter is brighter than
grey matter, and grey matter brighter than fluid. Sizes are those of textbooks (about 40 mm long, 3 to 3.5 ml); the crop is one
of 31-43 x 40-59 x 24-47 mm (x, y, z): these sizes are the least and most of the files of the public msd-hippocampus set. No
other number was computed from scans; the ranges are wide and were looked at beside a dozen cases of that public set.

Array axes are (z, y, x) with z up, y backwards and x from the middle of the body outwards: a left hippocampus in LPS. In
formulas positions are mm from the middle of the hippocampus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hospital_node.intensity import robust_zscore
from study.textures import Field, Triple, blur, smooth_noise

CROP_ZYX_MM = ((24, 35, 47), (40, 50, 59), (31, 35, 43))  # least, usual, most
MIDDLE_ZYX = ((0.40, 0.05), (0.46, 0.04), (0.52, 0.04))  # of the hippocampus in its crop: mean and deviation
CELL_MM = 35.0  # `_Canvas.noise(c)` varies over CELL_MM / c
RIM_MM = 1.6  # over which the hippocampus passes into what lies around it
SPLIT = (0.40, 0.035)  # where along its length the head ends
STREAM = 3  # of the seed: other generators use 1 and 2

Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]
Float = NDArray[np.floating]
Mask = NDArray[np.bool_]


def public_hippocampi(count: int, seed: int, spacing_xyz_mm: Triple = (1.0, 1.0, 1.0)) -> Iterator[Pair]:
    """`count` pairs of z-scored image and label (1 head, 2 body and tail), each of its own size; the same for the same seed."""
    spacing = (spacing_xyz_mm[2], spacing_xyz_mm[1], spacing_xyz_mm[0])
    for index in range(count):
        yield _draw(np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, STREAM, index)))), spacing)


@dataclass(frozen=True, slots=True)
class _Canvas:
    """The voxels of one crop, by their positions in mm along each axis."""

    rng: np.random.Generator
    z: Float
    y: Float
    x: Float
    spacing: Triple

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.z), len(self.y), len(self.x)

    def noise(self, cells: float) -> Field:
        """Smooth noise of about unit deviation, `cells` bumps in CELL_MM."""
        bumps = [
            max(2, min(side // 2, int(cells * side * step / CELL_MM)))
            for side, step in zip(self.shape, self.spacing, strict=True)
        ]
        return smooth_noise(self.rng, self.shape, bumps)


@dataclass(frozen=True, slots=True)
class _Organ:
    """The hippocampus: for every voxel where it is, seen from there."""

    along: Float  # (y) 0 at the front of the head, 1 at the end of the tail
    across: Float  # (1, y, x) mm outwards from the axis
    above: Float  # (z, y, 1) mm above the axis
    width: Float  # (y) half of it, mm
    height: Float  # (y) half of it, mm
    depth: Field  # (z, y, x) mm from the surface: negative inside
    angle: Field  # (z, y, x) 0 outwards, pi / 2 up, both ends inwards
    front: tuple[float, float, float]  # (z, y, x) of the front end


@dataclass(frozen=True, slots=True)
class _Levels:
    """What the tissues shine with."""

    white: float
    grey: float
    fluid: float


def _draw(rng: np.random.Generator, spacing: Triple) -> Pair:
    canvas = _canvas(rng, spacing)
    organ = _organ(canvas)
    white = rng.uniform(0.85, 1.1)
    grey = white * rng.uniform(0.55, 0.82)
    levels = _Levels(white, grey, grey * rng.uniform(0.05, 0.6))
    image = np.full(canvas.shape, white, np.float32) + np.float32(rng.uniform(0.02, 0.1)) * canvas.noise(4)
    _paint_cortex(canvas, organ, levels, image)
    _paint_below(canvas, organ, levels, image)
    _paint_inner_side(canvas, organ, levels, image)
    _paint_horn(canvas, organ, levels, image)
    _paint_amygdala(canvas, organ, levels, image)
    inside = np.clip(0.5 - organ.depth / RIM_MM, 0, 1)
    texture = 1 + rng.uniform(0, 0.07) * canvas.noise(6)
    image += inside * (levels.grey * rng.uniform(0.93, 1.05) * texture - image)
    return _scanned(canvas, image), _label(canvas, organ)


def _scanned(canvas: _Canvas, image: Field) -> Field:
    """As a scanner gives it: blurred, unevenly bright, noisy; then scaled as the hospitals scale theirs."""
    rng = canvas.rng
    z, y, x = (float(deviation) for deviation in rng.uniform(0.25, 0.8, 3) * 2 / np.asarray(canvas.spacing))
    image = blur(image, (z, y, x))
    image *= 1 + np.float32(rng.uniform(0, 0.12)) * smooth_noise(rng, canvas.shape, (1, 2, 1))
    image += np.float32(rng.uniform(0.005, 0.04)) * rng.standard_normal(canvas.shape, np.float32)
    return robust_zscore(image).apply(image)


def _label(canvas: _Canvas, organ: _Organ) -> NDArray[np.uint8]:
    rng = canvas.rng
    split = rng.normal(*SPLIT) + rng.uniform(-0.1, 0.1) * canvas.z[:, None, None] / 20
    head = np.broadcast_to(organ.along[None, :, None] < split, canvas.shape)
    return np.where(organ.depth < 0, np.where(head, 1, 2), 0).astype(np.uint8)


def _canvas(rng: np.random.Generator, spacing: Triple) -> _Canvas:
    sides = [rng.triangular(*limits) for limits in CROP_ZYX_MM]
    middles = [rng.normal(*at) * side for at, side in zip(MIDDLE_ZYX, sides, strict=True)]
    z, y, x = (
        (np.arange(round(side / step)) + 0.5) * step - middle
        for side, middle, step in zip(sides, middles, spacing, strict=True)
    )
    return _Canvas(rng, z, y, x, spacing)


def _organ(canvas: _Canvas) -> _Organ:
    rng = canvas.rng
    length = rng.uniform(33, 46)
    along = canvas.y / length + 0.5
    held = np.clip(along, 0, 1)
    axis_z, axis_x = _axis(rng, held)
    width, height = _sections(rng, along, held)
    across = canvas.x[None, None, :] - axis_x[None, :, None]
    above = canvas.z[:, None, None] - axis_z[None, :, None]
    roll = rng.normal(-0.15, 0.25)
    u = (across * np.cos(roll) + above * np.sin(roll)) / width[None, :, None]
    v = (above * np.cos(roll) - across * np.sin(roll)) / height[None, :, None]
    v = v + rng.uniform(-0.15, 0.35) * (u * u - 0.3)  # a bow in section, hollow below
    rough = 1 + rng.uniform(0.03, 0.14) * smooth_noise(rng, canvas.shape, [max(2, side // 4) for side in canvas.shape])
    depth = (np.sqrt(u * u + v * v) * rough - 1) * np.minimum(width, height)[None, :, None]
    beyond = (np.maximum(np.maximum(-along, along - 1), 0) * length)[None, :, None]
    depth = np.where(beyond > 0, np.hypot(np.maximum(np.hypot(across, above) - 0.5, 0), beyond), depth)
    front = (float(axis_z[0]), -length / 2, float(axis_x[0]))
    return _Organ(along, across, above, width, height, depth.astype(np.float32), np.arctan2(v, u).astype(np.float32), front)


def _axis(rng: np.random.Generator, held: Float) -> tuple[Float, Float]:
    """Height and outward position (mm) of the axis: the tail rises, head and tail bend inwards."""
    rise, power = rng.uniform(6, 20), rng.uniform(1.1, 2.4)
    axis_z = rise * (held**power - 0.4) + rng.uniform(-2, 2) * (held - 0.5)
    bow, lean = rng.uniform(1, 6), rng.uniform(-5, 5)
    head, tail = rng.uniform(0, 9), rng.uniform(0, 6)
    axis_x = bow * (0.6 - (2 * held - 1.1) ** 2) + lean * (held - 0.5)
    return axis_z, axis_x - head * (np.exp(-held / 0.18) - 0.15) - tail * np.clip(held - 0.6, 0, 1) ** 2 / 0.16


def _sections(rng: np.random.Generator, along: Float, held: Float) -> tuple[Float, Float]:
    """Half of the width and of the height (mm); almost nothing beyond the ends, where `depth` goes by the distance to them."""
    head = np.exp(-(((held - rng.uniform(0.10, 0.22)) / rng.uniform(0.2, 0.34)) ** 2))
    ends = np.clip((0.12 - along) / 0.12, 0, 1) ** 2 + np.clip((along - 0.85) / 0.15, 0, 1) ** 2
    taper = np.sqrt(1 - ends)
    width = rng.uniform(4.0, 6.2) + rng.uniform(1.2, 4.0) * head - rng.uniform(0, 1.5) * np.clip(held - 0.6, 0, 1) / 0.4
    height = rng.uniform(2.3, 3.9) + rng.uniform(0.8, 2.8) * head
    return width * taper + 1e-3, height * taper + 1e-3


def _paint_cortex(canvas: _Canvas, organ: _Organ, levels: _Levels, image: Field) -> None:
    """Folded sheets of grey matter with fluid in their clefts, away from the organ; mostly none above it, but deep nuclei."""
    rng = canvas.rng
    folds = np.abs(canvas.noise(rng.uniform(3, 5)) + 0.3 * canvas.noise(7))
    far = np.clip((organ.depth - rng.uniform(2, 7)) / 3, 0, 1)
    border = organ.height[None, :, None] + rng.uniform(-3, 3)
    above = organ.above + rng.uniform(-0.7, 0.7) * organ.across + 5 * canvas.noise(2) > border
    if rng.random() < 0.1:
        above[:] = False
    _blend(image, far * ((folds < rng.uniform(0.3, 1.0)) & ~above), levels.grey)
    _blend(image, far * ((folds < rng.uniform(0.05, 0.4)) & ~above), levels.fluid)
    if rng.random() < 0.7:
        _blend(image, above & (canvas.noise(2) > rng.uniform(-0.5, 1)), rng.uniform(levels.grey, levels.white))


def _paint_below(canvas: _Canvas, organ: _Organ, levels: _Levels, image: Field) -> None:
    """White matter along the underside and the cortex around it; inwards the grey matter often goes on without a border."""
    rng = canvas.rng
    white_mm, grey_mm = rng.uniform(1, 5), rng.uniform(2, 5)
    uneven = 1 + 0.4 * canvas.noise(3)
    lower = (organ.angle < -0.15 * np.pi) & (organ.angle > -0.95 * np.pi)
    image[lower & (organ.depth < (white_mm + grey_mm) * uneven)] = levels.grey + 0.05 * rng.standard_normal()
    image[lower & (organ.depth < white_mm * uneven)] = levels.white * rng.uniform(0.85, 1.05)
    if rng.random() < 0.6:
        inwards = (organ.angle < -0.5 * np.pi) & (organ.depth < rng.uniform(1, 4) * uneven)
        image[inwards & (organ.along < 0.6)[None, :, None]] = levels.grey * rng.uniform(0.95, 1.1)


def _paint_inner_side(canvas: _Canvas, organ: _Organ, levels: _Levels, image: Field) -> None:
    """A cistern of uneven width and the brain stem behind it."""
    rng = canvas.rng
    gap_mm = rng.uniform(0, 7)
    inner = organ.across < -(organ.width[None, :, None] + rng.uniform(0, 3))
    cistern = organ.depth < gap_mm * np.clip(0.6 + 0.6 * canvas.noise(2), 0, 2) + 1
    image[inner & cistern & (organ.along > rng.uniform(-0.1, 0.4))[None, :, None]] = levels.fluid
    stem = inner & (organ.depth >= gap_mm + 2) & (canvas.noise(2) > -0.8)
    image[stem] = levels.white * rng.uniform(0.8, 1.0)


def _paint_horn(canvas: _Canvas, organ: _Organ, levels: _Levels, image: Field) -> None:
    """Fluid over the outer side and the top, here thick and there none."""
    rng = canvas.rng
    horn_mm = rng.uniform(0.6, 3.2) * np.clip(0.4 + 0.8 * canvas.noise(3), 0, 2)
    covered = (organ.angle > -0.35 * np.pi) & (organ.angle < rng.uniform(0.4, 0.9) * np.pi)
    _blend(image, min(rng.uniform(0.5, 1.2), 1.0) * (covered & (organ.depth < horn_mm)), levels.fluid)


def _paint_amygdala(canvas: _Canvas, organ: _Organ, levels: _Levels, image: Field) -> None:
    """A ball of grey matter before and above the head."""
    rng = canvas.rng
    if rng.random() < 0.15:
        return
    shifts = (rng.uniform(3, 11), rng.uniform(-6, 5), rng.uniform(-6, 3))
    z, y, x = (axis - at - shift for axis, at, shift in zip((canvas.z, canvas.y, canvas.x), organ.front, shifts, strict=True))
    distance = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
    share = np.clip((rng.uniform(5, 10) - distance) / 1.5, 0, 1) * (organ.depth > 0.3)
    _blend(image, share, levels.grey * rng.uniform(0.92, 1.1))


def _blend(image: Field, share: Sequence[float] | NDArray[np.generic], level: float) -> None:
    image += np.asarray(share, np.float32) * (np.float32(level) - image)
