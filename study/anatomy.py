"""A synthetic chest in Hounsfield units: simple solids with the sizes of an adult, drawn on any grid. No real patient enters.

World axes are LPS in millimetres with the origin in the middle of the chest: x to the left, y to the back, z to the head.
What a scan shows of a body (`Body`) is a function of the body and the grid alone, so two scans of one person agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from study.textures import Field, Triple, ball_box, blur, paint_ball, smooth_noise, wandering_path

AIR_HU, FAT_HU, MUSCLE_HU, BLOOD_HU, LIVER_HU = -1000.0, -100.0, 45.0, 50.0, 60.0
MARROW_HU, CORTEX_HU, RIB_HU, DISC_HU = 180.0, 480.0, 420.0, 80.0
RIB_PERIOD_MM, VERTEBRA_PERIOD_MM = 26.0, 26.0
NODULE_DIAMETERS_MM = (12.0, 28.0)  # three to seven voxels of the demonstration's 4 mm grid
NODULE_HU = (-50.0, 100.0)
VESSEL_STEP_MM = 2.5

Vector3 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Axes = tuple[Field, Field, Field]  # x, y, z that broadcast to (z, y, x)


@dataclass(frozen=True, slots=True)
class Lesion:
    """A nodule in world coordinates. `lumps` make its radius vary with direction by a few per cent."""

    centre_xyz_mm: Triple
    diameter_mm: float
    value_hu: float
    lumps: Triple


@dataclass(frozen=True, slots=True)
class Body:
    """One synthetic person. Half axes and heights in mm."""

    width_mm: float
    depth_mm: float
    height_mm: float
    fat_mm: float
    lung_hu: float
    rib_phase: float
    dome_mm: Triple  # height of the right and the left dome of the diaphragm above the floor, and their steepness
    vessels: tuple[tuple[Vector3, Vector3], ...]  # points (n, 3) as x, y, z and radii (n,)
    lesions: tuple[Lesion, ...]
    texture_seed: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the voxels of a scan lie: the world position of voxel (0, 0, 0) and the step of each axis."""

    shape_zyx: tuple[int, int, int]
    spacing_xyz_mm: Triple
    first_xyz_mm: Triple

    def axes(self) -> tuple[Field, Field, Field]:
        """World x, y, z of the voxels, shaped to broadcast to (z, y, x)."""
        nz, ny, nx = self.shape_zyx
        x, y, z = (
            np.float32(first) + np.float32(step) * np.arange(extent, dtype=np.float32)
            for first, step, extent in zip(self.first_xyz_mm, self.spacing_xyz_mm, (nx, ny, nz), strict=True)
        )
        return x, y[:, None], z[:, None, None]

    def voxel(self, point_xyz_mm: Vector3 | Triple) -> Vector3:
        """Fractional index (z, y, x) of a world point."""
        return ((np.asarray(point_xyz_mm) - self.first_xyz_mm) / self.spacing_xyz_mm)[::-1]

    @property
    def spacing_zyx_mm(self) -> Triple:
        """Steps in the order of the array's axes."""
        x, y, z = self.spacing_xyz_mm
        return z, y, x


def make_body(rng: np.random.Generator) -> Body:
    """Draw one person: sizes, vessels, and one or two nodules inside the lungs."""
    size = rng.uniform(0.9, 1.08)
    body = Body(
        width_mm=160 * size * rng.uniform(0.95, 1.05),
        depth_mm=112 * size * rng.uniform(0.95, 1.05),
        height_mm=105 * size,
        fat_mm=rng.uniform(8, 20),
        lung_hu=rng.uniform(-880, -820),
        rib_phase=rng.uniform(0, 1),
        dome_mm=(rng.uniform(55, 75), rng.uniform(45, 65), rng.uniform(0.8, 1.2)),
        vessels=(),
        lesions=(),
        texture_seed=int(rng.integers(2**31)),
    )
    vessels = tuple(_vessel(rng, body, side) for side in (-1, 1) for _ in range(int(rng.integers(13, 19))))
    lesions = _lesions(rng, body, vessels)
    return Body(**{name: getattr(body, name) for name in Body.__slots__} | {"vessels": vessels, "lesions": lesions})


def render(body: Body, frame: Frame) -> Field:
    """The person's Hounsfield units on the voxels of `frame`, without scanner blur and noise."""
    x, y, z = frame.axes()
    texture = np.random.Generator(np.random.PCG64(body.texture_seed))
    shell = _shell(body, x, y, z)  # 1 on the skin
    volume = np.full(frame.shape_zyx, AIR_HU, np.float32)
    volume[shell < 1] = FAT_HU
    inner = shell < 1 - body.fat_mm / body.depth_mm
    volume[inner] = MUSCLE_HU
    volume += (8 * smooth_noise(texture, frame.shape_zyx, (6, 8, 8))) * (shell < 1)
    _paint_abdomen(volume, body, inner, (x, y, z))
    _paint_bones(volume, body, inner, (x, y, z))
    lung = lung_mask(body, x, y, z)
    fine = smooth_noise(texture, frame.shape_zyx, [max(extent // 3, 1) for extent in frame.shape_zyx])
    haze = smooth_noise(texture, frame.shape_zyx, (3, 4, 4))
    volume = np.where(lung, body.lung_hu + 22 * fine + 18 * haze + 0.25 * y, volume)
    for points, radii in body.vessels:
        for point, radius in zip(points, radii, strict=True):
            paint_ball(volume, frame.voxel(point), float(radius), frame.spacing_zyx_mm, BLOOD_HU)
    _paint_airways(volume, body, (x, y, z))
    for lesion in body.lesions:
        _paint_lesion(volume, lesion, frame)
    return volume


def lung_mask(body: Body, x: Field, y: Field, z: Field) -> Mask:
    """True inside both lungs: within the rib cage, above the diaphragm, beside mediastinum and spine."""
    cage = (x / _cage_half_width(body, z)) ** 2 + ((y + 4) / (0.69 * body.depth_mm)) ** 2 < 1
    top = z < 0.93 * body.height_mm
    right_mm, left_mm, steepness = body.dome_mm
    middle = np.where(x < 0, -0.46, 0.46) * body.width_mm
    fall = steepness * (((x - middle) / 55) ** 2 + ((y + 10) / 75) ** 2)
    dome = -body.height_mm + np.where(x < 0, right_mm, left_mm) - 22 * fall
    return cage & top & (z > dome) & ~_mediastinum(body, x, y, z) & ~_spine_region(body, x, y)


def scanner(volume: Field, rng: np.random.Generator, kernel_voxels: float, noise_hu: float) -> NDArray[np.int16]:
    """What a scanner makes of a body: its point spread, noise that the kernel has smoothed, whole Hounsfield units."""
    seen = blur(volume, (0.3, kernel_voxels, kernel_voxels))
    noise = blur(rng.standard_normal(volume.shape, np.float32), (0.0, kernel_voxels / 2, kernel_voxels / 2))
    seen += noise * (noise_hu / max(float(noise.std()), 1e-6))
    return np.clip(np.rint(seen), -1024, 3071).astype(np.int16)


def _shell(body: Body, x: Field, y: Field, z: Field) -> Field:
    """Distance from the body's axis as a share of the skin's: a flattened ellipse that widens to the shoulders."""
    width = body.width_mm * (1 + 0.06 * np.clip(z / body.height_mm, -1, 1))
    shell: Field = (np.abs(x / width) ** 2.4 + np.abs(y / body.depth_mm) ** 2.4) ** np.float32(1 / 2.4)
    return shell


def _cage_half_width(body: Body, z: Field) -> Field:
    """The rib cage narrows to the apex like half an egg."""
    height = np.clip((z + 0.2 * body.height_mm) / (1.15 * body.height_mm), 0, 0.999)
    half: Field = 0.8 * body.width_mm * np.sqrt(1 - 0.85 * height**3)
    return half


def _mediastinum(body: Body, x: Field, y: Field, z: Field) -> Mask:
    low = np.clip(-z / body.height_mm, 0, 1)
    middle = (x / (26 + 8 * low)) ** 2 + ((y + 10) / (0.66 * body.depth_mm)) ** 2 < 1
    heart = ((x - 22) / 56) ** 2 + ((y + 26) / 46) ** 2 + ((z + 0.42 * body.height_mm) / 52) ** 2 < 1
    mask: Mask = middle | heart
    return mask


def _spine_region(body: Body, x: Field, y: Field) -> Mask:
    return (x / 26) ** 2 + ((y - 0.56 * body.depth_mm) / 26) ** 2 < 1


def _paint_abdomen(volume: Field, body: Body, inner: Mask, axes: Axes) -> None:
    """Liver under the right dome, and the aorta left of the spine."""
    x, y, z = axes
    liver = (
        (x < 25) & (z < -0.25 * body.height_mm) & inner & (np.abs(y) < 0.6 * body.depth_mm) & (np.abs(x) < 0.72 * body.width_mm)
    )
    volume[liver] += np.float32(LIVER_HU - MUSCLE_HU)
    aorta = ((x - 20) ** 2 + (y - 0.32 * body.depth_mm) ** 2 < 12**2) & (z < 0.45 * body.height_mm)
    volume[aorta] = BLOOD_HU + 25


def _paint_bones(volume: Field, body: Body, inner: Mask, axes: Axes) -> None:
    """Ribs that fall to the front on the outside of the cage, vertebrae with discs between, and the breastbone."""
    x, y, z = axes
    cage = np.sqrt((x / (_cage_half_width(body, z) + 6)) ** 2 + ((y + 4) / (0.69 * body.depth_mm + 6)) ** 2)
    phase = (z - 0.45 * y) / RIB_PERIOD_MM + body.rib_phase
    ribs = (np.abs(cage - 1) < 0.045) & (np.abs(phase - np.rint(phase)) < 0.19) & (y > -0.6 * body.depth_mm) & inner
    volume[ribs] = RIB_HU
    back = 0.56 * body.depth_mm
    radius = np.sqrt(x**2 + (y - back) ** 2)
    level = z / VERTEBRA_PERIOD_MM + body.rib_phase
    disc = np.abs(level - np.rint(level)) < 0.12
    vertebra = np.broadcast_to(radius < 17, volume.shape)
    volume[vertebra] = np.broadcast_to(np.where(disc, DISC_HU, np.where(radius > 13.5, CORTEX_HU, MARROW_HU)), volume.shape)[
        vertebra
    ]
    arch = (np.abs(x) < 5) & (y > back + 17) & (y < back + 40) & (np.abs(level - np.rint(level)) > 0.2) & inner
    volume[arch] = CORTEX_HU
    sternum = (np.abs(x) < 14) & (np.abs(y + 0.76 * body.depth_mm) < 5) & (z > -0.35 * body.height_mm) & inner
    volume[sternum] = MARROW_HU


def _paint_airways(volume: Field, body: Body, axes: Axes) -> None:
    """Windpipe down to the carina, then the two main bronchi."""
    x, y, z = axes
    carina_mm = 0.25 * body.height_mm
    windpipe = (x**2 + (y - 8) ** 2 < 8**2) & (z > carina_mm)
    below = np.clip(carina_mm - z, 0, None)
    bronchi = ((np.abs(x) - 0.9 * below) ** 2 + (y - 8) ** 2 < 6**2) & (below > 0) & (below < 38)
    volume[windpipe | bronchi] = AIR_HU


def _vessel(rng: np.random.Generator, body: Body, side: int) -> tuple[Vector3, Vector3]:
    """One vessel from the hilum outwards, thinning on its way. `side` is -1 for the right lung, 1 for the left."""
    hilum = np.array([side * rng.uniform(34, 46), rng.uniform(-5, 20), rng.uniform(-25, 20)])
    heading = np.array([side * rng.uniform(0.3, 1.0), rng.uniform(-1, 1), rng.uniform(-1, 1)])
    steps = int(rng.uniform(60, 100) / VESSEL_STEP_MM)
    points = wandering_path(rng, hilum / VESSEL_STEP_MM, heading / np.linalg.norm(heading), steps, 0.05) * VESSEL_STEP_MM
    radii = np.linspace(rng.uniform(2.8, 4.2), 0.9, steps)
    inside = _in_lung(body, points, margin_mm=1.0)
    return points[inside], radii[inside]


def _lesions(rng: np.random.Generator, body: Body, vessels: tuple[tuple[Vector3, Vector3], ...]) -> tuple[Lesion, ...]:
    """One or two nodules wholly inside a lung; about a third of them grow on a vessel."""
    wanted = 1 + int(rng.random() < 0.45)
    lesions: list[Lesion] = []
    while len(lesions) < wanted:
        diameter = float(rng.uniform(*NODULE_DIAMETERS_MM))
        points, _ = vessels[int(rng.integers(len(vessels)))]
        if rng.random() < 0.35 and len(points) > 8:
            centre = points[int(rng.integers(len(points) // 2, len(points)))] + rng.normal(0, diameter / 4, 3)
        else:
            centre = rng.uniform(-1, 1, 3) * (0.75 * body.width_mm, 0.65 * body.depth_mm, 0.85 * body.height_mm)
        apart = all(np.linalg.norm(centre - other.centre_xyz_mm) > diameter + other.diameter_mm for other in lesions)
        if apart and _in_lung(body, centre[None], margin_mm=diameter / 2)[0]:
            x, y, z = (round(float(value), 3) for value in centre)
            lumps = (float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03)))
            lesions.append(Lesion((x, y, z), round(diameter, 3), float(rng.uniform(*NODULE_HU)), lumps))
    return tuple(lesions)


def _in_lung(body: Body, points: Vector3, margin_mm: float) -> Mask:
    """Which points (n, 3) have all their neighbours at `margin_mm` along the axes and diagonals in a lung."""
    steps = np.array(
        [[0, 0, 0], *np.eye(3), *-np.eye(3), *(np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T / np.sqrt(3))]
    )
    around = (points[:, None, :] + margin_mm * steps).astype(np.float32)
    return np.asarray(lung_mask(body, around[..., 0], around[..., 1], around[..., 2]).all(axis=1))


def _paint_lesion(volume: Field, lesion: Lesion, frame: Frame) -> None:
    """A slightly lumpy ball of soft tissue with a rim of one voxel."""
    radius = lesion.diameter_mm / 2
    centre = frame.voxel(lesion.centre_xyz_mm)
    place, distance = ball_box(frame.shape_zyx, centre, 1.2 * radius + max(frame.spacing_xyz_mm), frame.spacing_zyx_mm)
    x, y, z = frame.axes()
    box = (x[place[2]], y[place[1]], z[place[0]])
    squares = [
        ((axis - middle) / np.maximum(distance, 1e-3)) ** 2 for axis, middle in zip(box, lesion.centre_xyz_mm, strict=True)
    ]
    swell = 1 + sum(lump * (square - 1 / 3) * 3 for lump, square in zip(lesion.lumps, squares, strict=True))
    share = np.clip((radius * swell - distance) / min(frame.spacing_xyz_mm) + 0.5, 0, 1)
    volume[place] += share * (lesion.value_hu - volume[place])
