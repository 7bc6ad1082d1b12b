"""A wire between two network namespaces that loses, delays, reorders and repeats packets, and can be cut without a word.

Two TUN devices, one in each namespace, and this process between them: the kernels on both ends speak real TCP, and what happens
to each packet follows from a seed. Needs root on Linux and iproute2; nothing outside the namespaces is touched.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN_WITHOUT_HEADER = 0x1001
MTU = 1400
PACKET_BYTES = 2048
NUMBERS = itertools.count()


def why_not() -> str | None:
    """Why this machine cannot have such a wire; None where it can."""
    if shutil.which("ip") is None:
        return "iproute2 is absent: install it"
    if os.geteuid() != 0 or not TUN.exists():
        return "network namespaces need root and /dev/net/tun"
    name = f"sgt{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@dataclass
class Weather:
    """What becomes of a packet."""

    lost: float = 0.0  # share of the packets
    repeated: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)  # between these, each by itself: so they also overtake each other
    bytes_per_s: float = float("inf")


@dataclass
class Wire:
    """Use as a context manager. Processes are started with `inside`; the far end has the address `far`.

    `beside`: another wire whose far side is this one's far side too.
    """

    seed: int
    weather: Weather = field(default_factory=Weather)
    beside: Wire | None = None
    cut: bool = False  # nothing passes, and nobody is told
    passed: int = 0
    swallowed: int = 0

    def __enter__(self) -> Self:
        number = next(NUMBERS)
        tag = f"sg{os.getpid() % 100_000:05d}{number:02d}"
        self._rng = random.Random(self.seed)
        self.near, self.far = f"10.{77 + number % 50}.0.1", f"10.{77 + number % 50}.0.2"
        self._own = [f"{tag}n"] if self.beside else [f"{tag}n", f"{tag}f"]
        self.spaces = {"near": f"{tag}n", "far": self.beside.spaces["far"] if self.beside else f"{tag}f"}
        for name in self._own:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        self._ends = [
            _end(f"{tag}n", self.spaces["near"], self.near, self.far),
            _end(f"{tag}f", self.spaces["far"], self.far, self.near),
        ]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)
        for name in self._own:
            _ip("netns", "del", name)

    def inside(self, side: str, command: list[str]) -> list[str]:
        """The command as it runs on the "near" or the "far" side."""
        return ["ip", "netns", "exec", self.spaces[side], *command]

    def _relay(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        free_s = [0.0, 0.0]  # when each direction has sent what it was given
        order = itertools.count()
        while not self._stop.is_set():
            rest_s = waiting[0][0] - time.monotonic() if waiting else 0.05
            ready, _, _ = select.select(self._ends, [], [], min(0.05, max(0.0, rest_s)))
            for end in ready:
                packet, to = os.read(end, PACKET_BYTES), 1 - self._ends.index(end)
                for at_s in self._fate(len(packet), to, free_s):
                    heapq.heappush(waiting, (at_s, next(order), to, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(waiting)
                if self.cut:
                    self.swallowed += 1
                else:
                    os.write(self._ends[to], packet)
                    self.passed += 1

    def _fate(self, size: int, to: int, free_s: list[float]) -> list[float]:
        """When each copy of a packet arrives; () for never."""
        weather, rng = self.weather, self._rng
        if self.cut or rng.random() < weather.lost:
            self.swallowed += 1
            return []
        free_s[to] = max(free_s[to], time.monotonic()) + size / weather.bytes_per_s
        copies = 1 + (rng.random() < weather.repeated)
        return [free_s[to] + rng.uniform(*weather.delay_s) for _ in range(copies)]


def _end(name: str, space: str, address: str, peer: str) -> int:
    """A device in a namespace, as a file of packets."""
    end = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN_WITHOUT_HEADER))
    _ip("link", "set", name, "netns", space)
    _ip("-n", space, "addr", "add", address, "peer", peer, "dev", name)
    _ip("-n", space, "link", "set", name, "mtu", str(MTU), "up")
    return end


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
