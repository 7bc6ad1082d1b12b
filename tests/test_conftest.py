"""The rule about skipped tests: allowed on a bare machine, a failure where everything is required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

SUITE = """
import pytest

def test_needs_data(shared_data):
    assert shared_data.is_dir()

def test_skips_inside():
    pytest.skip("no reason is good enough")

@pytest.mark.skip(reason="marked")
def test_skips_by_mark():
    pass

@pytest.mark.xfail(strict=True, reason="known")
def test_expected_failure():
    assert False

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no CUDA device")
def test_on_a_device():
    pass

def test_passes():
    pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    shutil.copy(HERE / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_inner.py").write_text(SUITE)
    return tmp_path


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SECAGG_", "PYTEST_"))}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--rootdir",
            str(folder),
            "-ra",
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=clean | {"SECAGG_DATA": str(folder / "absent"), "PYTHONPATH": str(HERE.parent)} | environment,
    )


def test_on_a_bare_machine_skips_name_what_is_missing(suite: Path) -> None:
    done = run(suite)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 4 skipped, 1 xfailed" in done.stdout
    assert "the real volumes 'msd-hippocampus' are absent" in done.stdout


def test_where_everything_is_required_each_skip_fails_with_its_reason(suite: Path) -> None:
    done = run(suite, SECAGG_REQUIRE="all")
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "1 xfailed" in done.stdout
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in done.stdout
    assert "2 errors" in done.stdout
    assert "no CUDA device" in done.stdout
    assert "forbids skipping test_inner.py::test_on_a_device" not in done.stdout
    for reason in ("the real volumes 'msd-hippocampus' are absent", "no reason is good enough", "marked"):
        assert f": {reason}" in done.stdout or f"Skipped: {reason}" in done.stdout


def test_a_file_that_skips_itself_fails_too(suite: Path) -> None:
    (suite / "test_inner.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    assert run(suite).returncode == 5  # nothing was collected
    done = run(suite, SECAGG_REQUIRE="all")
    assert done.returncode == 2
    assert "no_such_module" in done.stdout


def test_data_that_is_there_is_found(suite: Path) -> None:
    for part in ("msd-hippocampus", "ct-lung", "odd"):
        (suite / "absent" / part).mkdir(parents=True)
    assert "2 passed, 3 skipped" in run(suite).stdout
