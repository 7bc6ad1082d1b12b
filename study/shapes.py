"""Public volumes for pretraining: abstract shapes that look like no patient and come from no cohort, ours or synthetic.

They teach a network what a border, a ball and a tube are, at no privacy cost. Both generators are lazy and deterministic,
and return (image, label) scaled as hospital_node/prepare.py scales real scans. Nothing here is fitted to data: sizes of
the targets are textbook anatomy (nodules of 6 to 26 mm; a hippocampus of about 40 mm, its thick head in front, its tail
higher and behind), looked at beside cases of the public msd-hippocampus set.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hospital_node.intensity import robust_zscore
from study.textures import Field, Triple, ball_box, blur, paint_ball, smooth_noise, wandering_path

PATH_POINTS = 24  # of the bent tube's axis: closer than its radius
PLACING_TRIES = 20
CORE = 0.8  # of a ball's radius is labelled: as if drawn tighter than at the hospitals, which private training has to learn
WALL_SHARE = 0.6  # of the volumes: without walls a start takes the skin of a body for its target

Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]
Shape = tuple[int, int, int]


def public_volumes(
    count: int, seed: int, spacing_xyz_mm: Triple = (3.0, 3.0, 3.0), shape_zyx: Shape = (48, 48, 48)
) -> Iterator[Pair]:
    """Bright balls (label 1) among tubes, rods and walls on a dark smooth ground, values in [-1, 1] as a CT window gives."""
    spacing = (spacing_xyz_mm[2], spacing_xyz_mm[1], spacing_xyz_mm[0])
    for index in range(count):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 1, index))))
        yield _balls(rng, shape_zyx, spacing)


def public_tubes(
    count: int, seed: int, spacing_xyz_mm: Triple = (1.0, 1.0, 1.0), shape_zyx: Shape = (36, 50, 36)
) -> Iterator[Pair]:
    """A bent tube, thick in front (label 1) and thin behind (label 2), of random contrast among smooth blobs; z-scored."""
    spacing = (spacing_xyz_mm[2], spacing_xyz_mm[1], spacing_xyz_mm[0])
    for index in range(count):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 2, index))))
        yield _bent_tube(rng, shape_zyx, spacing)


def _balls(rng: np.random.Generator, shape: Shape, spacing: Triple) -> Pair:
    dark = rng.uniform(-0.95, -0.6)
    bright = dark + rng.uniform(0.7, 1.4)
    field = smooth_noise(rng, shape, [int(rng.integers(2, 5)) for _ in shape])
    solid = field > np.quantile(field, rng.uniform(0.4, 0.85))
    image = np.where(solid, np.float32(bright), np.float32(dark))
    if rng.random() < WALL_SHARE:
        _paint_wall(rng, (image, solid), spacing, (dark, bright))
    image += rng.uniform(0.0, 0.06) * smooth_noise(rng, shape, [max(extent // 3, 1) for extent in shape])
    for _ in range(int(rng.integers(4, 16))):
        _paint_tube(rng, image, spacing, bright)
    label = np.zeros(shape, np.uint8)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.1, 0.4, 0.3, 0.2]))):
        _paint_target(rng, (image, label), solid, spacing, bright)
    image = blur(image, _triple(rng.uniform(0.2, 0.7, 3)))
    image += rng.uniform(0.01, 0.06) * rng.standard_normal(shape, np.float32)
    return np.clip(image, -1, 1), label


def _paint_wall(
    rng: np.random.Generator, pair: tuple[Field, NDArray[np.bool_]], spacing: Triple, levels: tuple[float, float]
) -> None:
    """A wide curved wall with nothing behind it and a softer rim, as between a body and the air around it."""
    image, solid = pair
    dark, bright = levels
    heading = rng.standard_normal(3)
    heading /= np.linalg.norm(heading)
    radius = rng.uniform(50.0, 160.0)
    middle = (np.array(image.shape) - 1) / 2 * spacing
    centre = middle + heading * (radius + rng.uniform(-45.0, 45.0))
    axes = [np.arange(extent) * step - c for extent, step, c in zip(image.shape, spacing, centre, strict=True)]
    distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    depth = (radius - distance) if rng.random() < 0.7 else (distance - radius)
    wall = (depth >= 0) & (depth < rng.uniform(10.0, 60.0))
    image[depth < 0] = max(dark - rng.uniform(0.0, 0.3), -1.0)
    image[wall] = bright
    image[wall & (depth < rng.uniform(4.0, 16.0))] = bright - rng.uniform(0.0, 0.35)
    solid |= wall


def _paint_tube(rng: np.random.Generator, image: Field, spacing: Triple, bright: float) -> None:
    """A tube that thins, long as a vessel or short as a rod."""
    heading = rng.standard_normal(3)
    steps = int(rng.integers(6, 40))
    start = rng.uniform(0, 1, 3) * image.shape * spacing / 2.0  # path steps are 2 mm
    path = wandering_path(rng, start, heading / np.linalg.norm(heading), steps, 0.06) * 2.0
    for point, radius in zip(path, np.linspace(rng.uniform(1.5, 4.5), rng.uniform(0.8, 2.0), steps), strict=True):
        paint_ball(image, point / spacing, float(radius), spacing, bright)


def _paint_target(
    rng: np.random.Generator, pair: tuple[Field, NDArray[np.uint8]], solid: NDArray[np.bool_], spacing: Triple, bright: float
) -> None:
    """One ball that lies mostly in the dark; given up where the volume has no room for it."""
    image, label = pair
    radius = rng.uniform(3.0, 13.0)
    for _ in range(PLACING_TRIES):
        centre = rng.uniform(0, 1, 3) * (np.array(label.shape) - 1)
        place, distance = ball_box(label.shape, centre, radius, spacing)
        inside = distance <= radius
        if inside.any() and solid[place][inside].mean() < 0.15 and not label[place][inside].any():
            paint_ball(image, centre, radius, spacing, bright + rng.uniform(-0.25, 0.2))
            label[place][distance <= CORE * radius] = 1
            return


def _bent_tube(rng: np.random.Generator, shape: Shape, spacing: Triple) -> Pair:
    image = smooth_noise(rng, shape, (3, 4, 3)) + 0.6 * smooth_noise(rng, shape, (6, 8, 6))
    middle = (np.array(shape) - 1) / 2 * spacing
    for _ in range(int(rng.integers(2, 7))):
        _paint_blob(rng, image, spacing)
    path, radii = _tube_axis(rng)
    distance, nearest = _tube_distance(shape, spacing, path + middle + rng.normal(0, 2.5, 3), radii)
    split = int(rng.uniform(0.33, 0.47) * PATH_POINTS)
    inside = distance < 1
    level = float(image[inside].mean()) if inside.any() else 0.0
    contrast = rng.choice([-1, 1]) * rng.uniform(0.6, 2.0)
    share = np.clip((1.15 - distance) / 0.3, 0, 1)  # a rim of about one voxel
    image += share * (level + contrast + 0.25 * smooth_noise(rng, shape, (5, 6, 5)) - image)
    shell = (distance >= 1.15) & (distance < rng.uniform(1.3, 1.8)) & (smooth_noise(rng, shape, (3, 4, 3)) > rng.normal())
    image[shell] -= np.float32(contrast * rng.uniform(0, 1))
    image = blur(image, _triple(rng.uniform(0.2, 0.7, 3))) + rng.uniform(0.05, 0.3) * rng.standard_normal(shape, np.float32)
    label = np.where(inside, np.where(nearest < split, 1, 2), 0).astype(np.uint8)
    return robust_zscore(image).apply(image), label


def _triple(values: NDArray[np.float64]) -> Triple:
    a, b, c = (float(value) for value in values)
    return a, b, c


def _paint_blob(rng: np.random.Generator, image: Field, spacing: Triple) -> None:
    radius = rng.uniform(3, 10)
    centre = rng.uniform(0, 1, 3) * image.shape
    place, distance = ball_box(image.shape, centre, radius, spacing)
    image[place] += np.float32(rng.normal(0, 1.2)) * (distance < radius)


def _tube_axis(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (z, y, x) in mm around 0, from the front (small y) to the back, and the radii along them."""
    along = np.linspace(0, 1, PATH_POINTS)
    length = rng.uniform(32, 44)
    rise, aside = rng.uniform(4, 18), rng.uniform(-9, 9)
    path = np.stack([rise * (0.5 * along + 0.5 * along**2 - 0.4), length * (along - 0.5), aside * (along**2 - 0.4)], axis=1)
    head, tail = rng.uniform(5.0, 7.5), rng.uniform(3.0, 4.8)
    radii = tail + (head - tail) * np.exp(-(((along - 0.12) / 0.38) ** 2))
    return path @ _small_turn(rng).T, radii


def _small_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation about a random axis by about a quarter of a radian (Rodrigues)."""
    a, b, c = rng.normal(0, 0.15, 3)
    cross = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
    angle = float(np.sqrt(a * a + b * b + c * c))
    turn: NDArray[np.float64] = np.eye(3) + np.sinc(angle / np.pi) * cross + (1 - np.cos(angle)) / angle**2 * cross @ cross
    return turn


def _tube_distance(
    shape: Shape, spacing: Triple, path: NDArray[np.float64], radii: NDArray[np.float64]
) -> tuple[Field, NDArray[np.int64]]:
    """Distance of each voxel from the tube's axis in units of its radius there, and the index of the nearest axis point."""
    axes = [np.arange(extent, dtype=np.float32) * np.float32(step) for extent, step in zip(shape, spacing, strict=True)]
    best = np.full(shape, np.inf, np.float32)
    nearest = np.zeros(shape, np.int64)
    for index, (point, radius) in enumerate(zip(path.astype(np.float32), radii.astype(np.float32), strict=True)):
        squared = ((axes[0] - point[0]) ** 2)[:, None, None] + ((axes[1] - point[1]) ** 2)[:, None] + (axes[2] - point[2]) ** 2
        squared /= radius * radius
        closer = squared < best
        np.copyto(best, squared, where=closer)
        nearest[closer] = index
    return np.sqrt(best), nearest
