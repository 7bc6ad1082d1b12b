"""Children of a demonstration: all of them end, whatever ends the parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from study.processes import Family, ProcessFailed

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(300)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)",
]


def _gone(pid):
    for _ in range(1200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _up(child):
    while "up" not in child.log.read_text():
        time.sleep(0.02)


def test_an_exception_in_the_parent_stops_every_child(tmp_path):
    pids = []

    def interrupted():
        with Family(1) as family:
            for name in ("one", "two"):
                child = family.start(name, SLEEPER, tmp_path / f"{name}.log")
                _up(child)
                pids.append(child.process.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 2
    assert all(_gone(pid) for pid in pids)


def test_a_child_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("study.processes.STOP_AFTER_S", 0.5)
    with Family(1) as family:
        child = family.start("stubborn", STUBBORN, tmp_path / "log")
        _up(child)
    assert child.process.returncode == -signal.SIGKILL


def test_a_failed_child_is_named_with_the_end_of_its_log(tmp_path):
    with Family(1) as family:
        child = family.start("bad", [sys.executable, "-c", "import sys; print('why'); sys.exit(3)"], tmp_path / "log")
        child.process.wait()
        with pytest.raises(ProcessFailed, match=r"(?s)bad ended with status 3: why"):
            family.raise_if_any_failed()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
def test_a_killed_parent_leaves_nothing_behind(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from study.processes import Family\n"
        f"family = Family(1); child = family.start('c', {SLEEPER!r}, Path({str(tmp_path / 'log')!r}))\n"
        "print(child.process.pid, flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _gone(pid)
