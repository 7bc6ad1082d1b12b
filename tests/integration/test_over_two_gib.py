"""Vectors of more than 2 GiB stream: model, upload, spool and sum, in a process that may hold a fifth of one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "over_two_gib.py"
ROOT = Path(__file__).parents[2]  # benchmarks/ is not installed
NEEDED_BYTES = 3 << 30


@pytest.mark.slow
def test_more_than_two_gib_stream_in_a_fifth_of_a_vector(tmp_path: Path) -> None:
    assert shutil.disk_usage(tmp_path).free > NEEDED_BYTES, "the spool needs 2 GiB of disk"
    places = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, env=places)
    assert done.returncode == 0, done.stderr
    assert "streamed" in done.stdout
