"""Machines of their own for processes of a test: network namespaces on one bridge, with addresses and nothing else in common.

Needs the right to make namespaces (root). Names carry the process id, so that two test runs do not meet, and everything is
removed at the end, whatever the reason: `with Network(("coordinator", "north")) as network: network.command("north", [...])`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PREFIX = "10.77.0"
LISTEN = "0A"  # of a line in the kernel's table of TCP sockets


def why_not() -> str:
    """Why namespaces cannot be made here; empty where they can."""
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is not installed"
    probe = f"secagg-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return ""


@dataclass
class Network:
    """Parties on one bridge; the first has address .1, the next .2, and so on."""

    parties: tuple[str, ...]
    _made: list[str] = field(default_factory=list)

    def address(self, party: str) -> str:
        return f"{PREFIX}.{self.parties.index(party) + 1}"

    def namespace(self, party: str) -> str:
        return f"sg{os.getpid()}-{party}"

    def command(self, party: str, words: Sequence[str]) -> list[str]:
        """`words`, to be run on the machine of a party."""
        return ["ip", "netns", "exec", self.namespace(party), *words]

    def run(self, party: str, words: Sequence[str], folder: Path, *, within_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command of a party to its end, in its own folder."""
        return subprocess.run(
            self.command(party, words),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",  # openssl shows what a server sends as it comes
            check=False,
            timeout=within_s,
        )

    def listening(self, party: str) -> int:
        """TCP sockets that accept connections on a party's machine."""
        tables = [self.run(party, ["cat", f"/proc/net/{name}"], Path("/")).stdout for name in ("tcp", "tcp6")]
        return sum(line.split()[3] == LISTEN for table in tables for line in table.splitlines()[1:])

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.__exit__)
            self._make()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(self._made):
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False, timeout=120)
        self._made.clear()

    def _make(self) -> None:
        switch = f"sg{os.getpid()}-switch"
        _ip("netns", "add", switch)
        self._made.append(switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, party in enumerate(self.parties):
            name = self.namespace(party)
            _ip("netns", "add", name)
            self._made.append(name)
            _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"p{number}", "netns", switch)
            _ip("-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{self.address(party)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
