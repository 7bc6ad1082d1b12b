"""Resident memory of training, each measurement in a process of its own.

The peak is the kernel's own count of the process (VmHWM), set back just before the step and read just after it, less what was
resident before: network, patches and libraries. It includes what the allocator rounds and what oneDNN compiles. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.dp_training_steps import URI, Kind, Setting, prepare

MIB = 1024  # KiB
BYTES_A_VALUE = 100  # kept by an ordinary step for each voxel and first channel; 92 were seen at 8 channels, 64 at 32
WHOLE_BATCH: dict[str, float] = {"plain": 1, "opacus": 6}  # kinds that run it at once, and what they keep of it, times plain
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5)
WARM_UP = Setting(side=8, channels=4, batch=2)  # loads libraries and compiles what every size shares
TINY_SIDE = 8
SAMPLED_EVERY = 10  # steps
SETTLED_SHARE = 0.1  # of the steps: pools and caches fill in the first


class NotMeasured(RuntimeError):
    """A figure that this machine cannot give; the text says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a process measures: the peak of one step, or with `steps` the growth over so many of a tiny problem."""

    kind: Kind
    setting: Setting
    steps: int = 0

    def expected_mib(self) -> float:
        """More than what was seen for it, so that a machine is not driven to its end."""
        at_once = self.setting.batch if self.kind in WHOLE_BATCH else 1
        return WHOLE_BATCH.get(self.kind, 1) * BYTES_A_VALUE * at_once * self.setting.side**3 * self.setting.channels / MIB**2


def measure_apart(request: Request) -> float:
    """`measure` in a new process, unless the machine has too little memory for it. Raises NotMeasured."""
    needed, free = request.expected_mib(), available_mib()
    if needed > free:
        raise NotMeasured(f"it needs about {needed / MIB:.1f} GiB, and {free / MIB:.1f} are free")
    processes = get_context("forkserver")  # forked after the imports and before the first computation
    processes.set_forkserver_preload(["benchmarks.dp_training_steps"])
    reading, writing = processes.Pipe(duplex=False)
    child = processes.Process(target=_report, args=(request, writing))
    child.start()
    writing.close()
    try:
        found = reading.recv()
    except EOFError:
        child.join()
        raise NotMeasured(f"its process ended with status {child.exitcode}") from None
    child.join()
    if isinstance(found, str):
        raise NotMeasured(found)
    return float(found)


def _report(request: Request, writing: Connection) -> None:
    """In the child: the figure, or why there is none."""
    import torch

    torch.set_num_threads(1)
    try:
        writing.send(measure(request))
    except (NotMeasured, OSError) as reason:
        writing.send(str(reason))


def measure(request: Request) -> float:
    """MiB beyond what was there before the step, or MiB per 1,000 steps."""
    if not CLEAR_REFS.exists():
        raise NotMeasured("resident peaks are read from /proc, which this system does not have")
    return growth_mib(request) if request.steps else peak_mib(request)


def peak_mib(request: Request) -> float:
    """Of one step, the first of its size."""
    prepare(request.kind, WARM_UP).step()
    prepared = prepare(request.kind, request.setting)
    _give_back()
    before = resident_mib()
    CLEAR_REFS.write_text(RESET_PEAK)
    prepared.step()
    return _status_mib("VmHWM") - before


def growth_mib(request: Request) -> float:
    """Slope of the resident memory over one round of many steps, by least squares, in MiB per 1,000 steps."""
    from hospital_node.network import vector_of
    from hospital_node.train import SEGMENTATION, StepProgress, train_round

    setting = replace(request.setting, side=TINY_SIDE)
    plan = setting.plan(request.kind, local_steps=request.steps, patches_per_patient=2)
    samples: list[tuple[int, float]] = []

    def on_step(progress: StepProgress) -> None:
        if progress.step > SETTLED_SHARE * request.steps and progress.step % SAMPLED_EVERY == 0:
            samples.append((progress.step, resident_mib()))

    train_round(plan, URI, vector_of(SEGMENTATION.build(plan)), [_Cube(str(n)) for n in range(setting.batch)], on_step=on_step)
    steps, resident = zip(*samples, strict=True)
    return 1000 * float(np.polyfit(steps, resident, 1)[0])


class _Cube:
    """A patient with one scan of noise, twice as wide as a patch; also its own case."""

    def __init__(self, key: str) -> None:
        rng = np.random.default_rng(int(key))
        self.key, self.cases = key, (self,)
        self.image = rng.standard_normal([2 * TINY_SIDE] * 3, dtype=np.float32)
        self.label = (self.image > 1).astype(np.uint8)


def resident_mib() -> float:
    """Now."""
    return _status_mib("VmRSS")


def available_mib() -> float:
    """What the machine could give without swapping."""
    return _kib(Path("/proc/meminfo"), "MemAvailable") / MIB


def _status_mib(name: str) -> float:
    return _kib(STATUS, name) / MIB


def _kib(path: Path, name: str) -> int:
    (line,) = [line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def _give_back() -> None:
    """What was freed leaves the process, so that the step cannot use it unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
