"""`python -m benchmarks.inference`: segmenting a scan beside MONAI's sliding window; status 1 if a target falls short.

The same network, windows, overlap and weights in every way to do it, on one core, turn by turn, so that whatever else the
machine does falls on all; a ratio is the median over the turns of CPU seconds. MONAI's is `sliding_window_inference` with four
windows at once on the network as MONAI builds it; the naive loop takes one window at a time and adds up in the same way.
Agreement is that of labels: Dice of one way's labels against another's. Memory is the peak of a process of its own beyond what
it has before a long scan, as a share of what logits and weights of the whole scan take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from benchmarks.dp_training import computes_in_bfloat16
from benchmarks.rows import Row, status, table
from hospital_node import network
from hospital_node.inference import dice
from hospital_node.predict import Segmenter
from hospital_node.sliding import Windows, likeliest, slabs
from proto.modelfile import Model
from proto.plan import Plan

MONAI_TARGET = 1.0  # ours / MONAI's, CPU seconds
BFLOAT16_TARGET = 2.0  # float32 / bfloat16
NAIVE_TARGET = 3.0  # naive loop / ours
DICE_TARGET = 0.002  # 1 - Dice of bfloat16's labels against float32's
MEMORY_TARGET = 0.2  # of the logits and weights of what is longer, which a whole volume's sums would take
OVERLAP = 0.25
MONAI_AT_ONCE = 4  # windows
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

Labels = NDArray[np.uint8]
Way = Callable[[], Labels]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large and how often."""

    channels: tuple[int, ...] = (16, 32, 64)
    patch: int = 32
    scan: tuple[int, int, int] = (80, 80, 80)
    short: tuple[int, int, int] = (128, 96, 96)
    deep: tuple[int, int, int] = (640, 96, 96)
    turns: int = 3


FULL = Sizes()
QUICK = Sizes(channels=(4, 4, 8), patch=8, scan=(12, 10, 10), short=(16, 8, 8), deep=(64, 8, 8), turns=1)


@dataclass(frozen=True, slots=True)
class World:
    """A plan of two labels, a model for it, and a scan of soft shapes that it can tell apart."""

    plan: Plan
    model: Model
    image: NDArray[np.float32]

    @property
    def windows(self) -> Windows:
        """Overlapping by a quarter."""
        return Windows(self.plan.preparation.patch_zyx, OVERLAP)

    def module(self) -> torch.nn.Module:
        """As MONAI builds it."""
        made = network.build(self.plan.network).eval()
        network.load_vector(made, self.model.layout, self.model.vector)
        return made


def world(sizes: Sizes, extent: tuple[int, int, int]) -> World:
    """The same for the same sizes."""
    plan = Plan.model_validate(
        {
            "study": "inference",
            "rounds": 1,
            "hospitals": [{"uri": f"secagg://inference/hospital/{name}", "declared_patients": 20} for name in "abc"],
            "network": {"channels": sizes.channels, "labels": ("bright", "dark")},
            "preparation": {"modality": "MR", "spacing_xyz_mm": (1, 1, 1), "patch_zyx": (sizes.patch,) * 3},
            "training": {"local_steps": 1},
            "privacy": {"noise_multiplier": 1.0, "inverse_sampling_rate": 2, "delta": 1e-5},
        }
    )
    torch.manual_seed(2)
    module = network.build(plan.network)
    image = shapes(extent)
    taught(module, image, sizes.patch)
    return World(plan, Model(network.layout_of(module), network.vector_of(module)), image)


def shapes(extent: tuple[int, int, int]) -> NDArray[np.float32]:
    """Waves of 12 to 19 voxels along the three axes, with noise."""
    places = np.indices(extent, dtype=np.float32)
    z, y, x = (place - side / 2 for place, side in zip(places, extent, strict=True))
    waves = np.sin(z / 2) + np.sin(y / 3) + np.sin(x / 2.5)
    noise = np.random.default_rng(4).normal(scale=0.3, size=extent)
    return np.asarray(waves + noise, np.float32)


def taught(module: torch.nn.Module, image: NDArray[np.float32], patch: int, steps: int = 40) -> None:
    """Far enough that labels are shapes: what is bright and what is dark."""
    rng, optimizer = np.random.default_rng(6), torch.optim.Adam(module.parameters(), 1e-2)
    side = min(patch, 16)
    for _ in range(steps):
        z, y, x = (int(rng.integers(0, extent - side + 1)) for extent in image.shape)
        part = torch.from_numpy(image[z : z + side, y : y + side, x : x + side].copy())[None, None].repeat(2, 1, 1, 1, 1)
        wanted = torch.where(part[:, 0] > 1, 1, torch.where(part[:, 0] < -1, 2, 0))
        optimizer.zero_grad()
        loss: torch.Tensor = torch.nn.functional.cross_entropy(module(part), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def ours(made: World, precision: str) -> Way:
    """As `secagg-node predict` runs it."""
    segmenter = Segmenter.of(made.plan, made.model, made.windows).in_precision(precision)

    def run() -> Labels:
        with torch.inference_mode():
            found = [likeliest(slab) for slab in slabs(segmenter.forward, made.image, segmenter.windows)]
        return np.concatenate(found)

    return run


def of_monai(made: World) -> Way:
    """MONAI's own function."""
    module, inputs = made.module(), torch.from_numpy(made.image)[None, None]

    def run() -> Labels:
        with torch.inference_mode():
            logits = sliding_window_inference(
                inputs, made.windows.patch_zyx, MONAI_AT_ONCE, module, overlap=OVERLAP, mode="gaussian"
            )
        return likeliest(torch.as_tensor(logits)[0])

    return run


def naive(made: World) -> Way:
    """A loop over the same windows with the network as MONAI builds it, each by itself."""
    module, patch, inputs = made.module(), made.windows.patch_zyx, torch.from_numpy(made.image)
    weight = compute_importance_map(patch, mode="gaussian")

    def run() -> Labels:
        sums, shares = torch.zeros(made.plan.network.classes, *inputs.shape), torch.zeros(inputs.shape)
        with torch.inference_mode():
            for place in dense_patch_slices(inputs.shape, patch, made.windows.interval(made.image.shape)):
                sums[:, *place] += module(inputs[place][None, None])[0] * weight
                shares[place] += weight
        return likeliest(sums / shares)

    return run


def measure(sizes: Sizes, say: Callable[[str], None]) -> Iterator[Row]:
    """One row for each target."""
    made = world(sizes, sizes.scan)
    ways = {"ours": ours(made, "fp32"), "MONAI's": of_monai(made), "naive": naive(made)}
    quick = computes_in_bfloat16()
    if quick:
        ways["bf16"] = ours(made, "bf16")
    labels, seconds = in_turns(ways, sizes.turns)
    for name, spent in seconds.items():
        say(f"{name}: {statistics.median(spent):.2f} CPU s of {len(spent)} turns, {scan_name(sizes.scan)}")
    yield Row("our sliding window / MONAI's, CPU", _ratio(seconds, "ours", "MONAI's"), "", MONAI_TARGET)
    yield Row("1 - Dice of our labels against MONAI's", apart(labels["ours"], labels["MONAI's"]), "", DICE_TARGET)
    yield Row("naive loop / ours, CPU", _ratio(seconds, "naive", "ours"), "", NAIVE_TARGET, at_least=True)
    if quick:
        yield Row("float32 / bfloat16, CPU", _ratio(seconds, "ours", "bf16"), "", BFLOAT16_TARGET, at_least=True)
        yield Row("1 - Dice of bfloat16's labels against float32's", apart(labels["bf16"], labels["ours"]), "", DICE_TARGET)
    else:
        none = "this CPU does not multiply bfloat16"
        yield Row(f"float32 / bfloat16, CPU: {none}", None, "", BFLOAT16_TARGET, at_least=True)
        yield Row(f"1 - Dice of bfloat16's labels against float32's: {none}", None, "", DICE_TARGET)
    yield memory(sizes)


def in_turns(ways: dict[str, Way], turns: int) -> tuple[dict[str, Labels], dict[str, list[float]]]:
    """Labels and CPU seconds of each way; the first turn compiles and is not counted where there are others."""
    labels: dict[str, Labels] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + int(turns > 1)):
        for name, way in ways.items():
            start = process_time()
            labels[name] = way()
            if turn or turns == 1:
                seconds[name].append(process_time() - start)
    return labels, seconds


def apart(found: Labels, wanted: Labels) -> float:
    """1 - mean Dice over the labels that `wanted` holds."""
    scores = [dice(found, wanted, value) for value in range(1, int(wanted.max()) + 1)]
    return 1 - statistics.mean(score for score in scores if score is not None)


def memory(sizes: Sizes) -> Row:
    """How the peak grows with the length of a scan, as a share of what its logits and weights would take more."""
    figure = f"growth of the peak / of the logits, {scan_name(sizes.short)} to {sizes.deep[0]} slices"
    if not (STATUS.exists() and CLEAR_REFS.exists()):
        return Row(f"{figure}: this system does not tell a process's peak", None, "", MEMORY_TARGET)
    apart_ = multiprocessing.get_context("spawn")
    with apart_.Pool(1) as pool:
        growth, logits = pool.apply(_growth, (sizes,))
    return Row(figure, growth / logits, "", MEMORY_TARGET)


def _growth(sizes: Sizes) -> tuple[int, int]:
    """Bytes: peak of the deep scan less that of the short one, each beyond the scan itself; the same of their logits."""
    torch.set_num_threads(1)
    made = world(sizes, sizes.short)
    segmenter = Segmenter.of(made.plan, made.model, made.windows)
    images = [shapes(sizes.short), shapes(sizes.short), shapes(sizes.deep)]  # the first one warms up
    peaks = []
    for image in images:
        CLEAR_REFS.write_text("5")
        with torch.inference_mode():
            for _ in slabs(segmenter.forward, image, made.windows):
                pass
        peaks.append(_status("VmHWM"))
    longer = images[2].nbytes - images[1].nbytes
    return peaks[2] - peaks[1], (made.plan.network.classes + 1) * longer


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def scan_name(extent: Sequence[int]) -> str:
    """Voxels as people write them."""
    return " x ".join(map(str, extent))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the status whether all targets hold; `--quick` ones are shown and not judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that everything runs, no verdict")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = list(measure(QUICK if given.quick else FULL, lambda line: print(f"  {line}", file=sys.stderr, flush=True)))
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread\n\n{table(rows)}")
    if given.quick:
        print("\nquick: the sizes are not those of the targets, no verdict")
        return 0
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
