"""Vectors of more than 2 GiB stream: model, upload, spool and sum, in a process that may hold a fifth of one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "over_two_gib.py"
NEEDED_BYTES = 3 << 30


@pytest.mark.slow
def test_more_than_two_gib_stream_in_a_fifth_of_a_vector(tmp_path: Path) -> None:
    assert shutil.disk_usage(tmp_path).free > NEEDED_BYTES, "the spool needs 2 GiB of disk"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "streamed" in done.stdout
