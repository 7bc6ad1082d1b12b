"""Memory: preparing needs at most three times the largest volume, and patches come from cohorts that do not fit into memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from proto.plan import Preparation

ROOT = Path(__file__).resolve().parents[2]

MEASURE = """
import sys
from pathlib import Path
from hospital_node.cohort import Case, Cohort, Nodule, Nodules
from hospital_node.prepare import prepare
from proto.plan import Preparation
def kept(what):  # VmRSS now, VmHWM at most since it was cleared; getrusage would begin with what the parent process used
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) * 1024
folder, small, big, rules = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Preparation.model_validate_json(sys.argv[4])
def run(name):
    case = Case(name, folder / name, Nodules((Nodule(20., 20., 20., 9.),)))
    prepare(Cohort("manifest", (case,)), rules, 1, folder / "c")
run(small)
open("/proc/self/clear_refs", "w").write("5")
before = kept("VmRSS")
run(big)
print(kept("VmHWM") - before)
"""


@pytest.mark.parametrize(("spacing", "modality"), [((1.0, 1.0, 1.0), "CT"), ((2.0, 2.0, 2.0), "CT"), ((1.0, 1.0, 1.0), "MR")])
@pytest.mark.parametrize("flip", [False, True])
def test_preparing_needs_at_most_three_times_the_largest_volume(tmp_path, spacing, modality, flip):
    values = np.random.default_rng(0).integers(-1000, 400, (200, 200, 200)).astype(np.int16)  # 16 MB
    for name, part in (("small.mha", values[:40, :40, :40]), ("big.mha", values)):
        image = sitk.GetImageFromArray(part)
        image.SetSpacing((0.8, 0.8, 1.25))
        if flip:
            image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
            image.SetOrigin((30, 30, 0))
        sitk.WriteImage(image, str(tmp_path / name))
    window_hu = (-1000, 400) if modality == "CT" else None
    rules = Preparation(modality=modality, spacing_xyz_mm=spacing, window_hu=window_hu, patch_zyx=(8, 8, 8))
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path), "small.mha", "big.mha", rules.model_dump_json()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    prepared = next(path for path in (tmp_path / "c").rglob("*.image.npy") if path.stat().st_size > 1e6).stat().st_size
    largest = max(values.nbytes, prepared)
    assert int(done.stdout) <= 3 * largest, f"{int(done.stdout) / largest:.2f} times the largest volume"


LARGER = """
import resource, sys
import numpy as np
from hospital_node import patches
from hospital_node.prepared import PreparedCase, PreparedPatient
from proto.plan import Preparation, Training
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (96 << 20),) * 2)
folder, count = sys.argv[1], int(sys.argv[2])
def opened(name): return np.load(f"{folder}/{name}.npy", mmap_mode="r")
cases = [PreparedCase(opened(f"{i}.image"), opened(f"{i}.label")) for i in range(count)]
people = [PreparedPatient(str(i), (case,)) for i, case in enumerate(cases)]
rules = Preparation(modality="CT", spacing_xyz_mm=(1, 1, 1), patch_zyx=(32, 32, 32))
rng = np.random.Generator(np.random.PCG64(7))
for person in people:
    images, labels = patches.draw(person, rules, Training(local_steps=1, foreground_share=1.0), rng)
    assert labels.max() == 1
print(sum(person.cases[0].image.nbytes for person in people))
"""


def test_patches_are_drawn_from_a_cohort_that_is_larger_than_the_memory_allowed(tmp_path):
    shape = (64, 512, 512)  # 64 MiB of image each, on disk only where something is written
    for index in range(6):
        for kind, dtype in (("image", np.float32), ("label", np.uint8)):
            array = np.lib.format.open_memmap(tmp_path / f"{index}.{kind}.npy", "w+", dtype, shape)
            array[30, 200, 300] = 1
            del array
    done = subprocess.run(
        [sys.executable, "-c", LARGER, str(tmp_path), "6"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 6 << 26
