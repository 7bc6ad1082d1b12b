"""Fixtures and rules that all tests share."""

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

import certs  # noqa: F401  sets the TLS floor before any test imports grpc

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
ROOT = Path(__file__).resolve().parent.parent
GPU = "gpu"  # marker of tests that need a CUDA device
REQUIRE_ALL = "all"  # value of SECAGG_REQUIRE under which nothing may be skipped

# None of the imports above loads numpy or torch: one thread each, so that the suite does not fight itself for two cores.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# A shell that starts the suite in the background has it ignore Ctrl-C, and every process that it starts as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Everybody tries the same examples: an unchanged clone fails nowhere by chance. `explore` looks for more.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes: SECAGG_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("SECAGG_DATA") or ROOT.parent / "shared" / "data")
    for part in ("msd-hippocampus", "ct-lung", "odd"):
        if not (folder / part).is_dir():
            pytest.skip(f"the real volumes '{part}' are absent: set SECAGG_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def chromium() -> Path:
    """A Chromium to drive: SECAGG_CHROMIUM, or the one on the path."""
    chosen = os.environ.get("SECAGG_CHROMIUM")
    found = chosen or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None or not Path(found).exists():
        pytest.skip("chromium is absent: install it, or set SECAGG_CHROMIUM to its path")
    return Path(found)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A running PostgreSQL server of this session (postgres_server.Server)."""
    from postgres_server import Server, programs

    found = programs()
    if found is None:
        pytest.skip("postgresql is absent: install it, or set SECAGG_POSTGRES to the folder of initdb and postgres")
    server = Server(found)
    server.make()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is required, a skip is a failure; an expected failure (xfail) stays what it is."""
    report = yield
    return _fail_skips(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that skips itself while it is collected."""
    report = yield
    return _fail_skips(report)


def _fail_skips(report: Report) -> Report:
    """A test of an accelerator is the exception: where there is none nobody can mend it, and its name and reason are shown."""
    required = os.environ.get("SECAGG_REQUIRE") == REQUIRE_ALL and GPU not in getattr(report, "keywords", ())
    if required and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"SECAGG_REQUIRE=all forbids skipping {report.nodeid}: {reason}"
    return report
