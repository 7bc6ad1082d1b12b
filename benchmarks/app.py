"""`python -m benchmarks.app`: how fast the app is on a long run; status 1 if a target falls short.

The installed command, a real browser, and a run of 2,000 rounds with 40 hospitals as the coordinator leaves it. What is counted
is the CPU time of the server's process, so that the browser and other work on the machine do not count; the first page has its
wall-clock seconds beside it. What a new round costs a page is measured on its script in this process. While nine tabs are open
every party is heard of once a second and a round ends every ten, which is more often than in a real run.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from benchmarks.app_world import add_round, touch, write_run
from benchmarks.rows import Row, status, table
from coordinator.store import open_store
from proto.plan import Plan

FIRST_PAGE_S = 3.0
REFRESH_S = 0.150
TABS_SHARE = 0.3  # of a core
START_LIMIT_S = 60.0
PATIENCE_MS = 180_000
SETTLE_S = 30.0  # until all tabs have drawn and only poll
TABS = ("", "", "", "rounds", "rounds", "bandwidth", "bandwidth", "accuracy", "accuracy")
PAGES = ("overview", "rounds", "bandwidth", "accuracy")
APP = Path(__file__).resolve().parent.parent / "ui" / "app.py"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SHOWN = """(rounds) => {
  const drawn = (found) => found !== undefined && found.getClientRects().length > 0;
  const look = () => {
    const figures = [...document.querySelectorAll('[data-testid="stMetric"]')];
    const figure = figures.find((one) => one.textContent.includes("Rounds") && one.textContent.includes(rounds));
    const last = [...document.querySelectorAll("h4")].find((one) => one.textContent.includes("What happened last"));
    if (drawn(figure) && drawn(last)) {
      looking.disconnect();
      requestAnimationFrame(() => setTimeout(() => { window.shownAtMs = Date.now(); }));
    }
  };
  const looking = new MutationObserver(look);
  looking.observe(document, { childList: true, subtree: true, characterData: true });
}"""  # notes when the page was painted: playwright itself looks at growing intervals of up to a second
FIGURES = {
    "first": ("first page, CPU of the server", "s", FIRST_PAGE_S),
    "wall": ("first page, after the start", "s", FIRST_PAGE_S),
    "tabs": ("nine open tabs", "of a core", TABS_SHARE),
    **{page: (f"a new round on the page {page}, CPU", "s", REFRESH_S) for page in PAGES},
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long the run is and how long one watches; `quick` ones only show that everything runs."""

    rounds: int = 2000
    hospitals: int = 40
    refreshes: int = 8
    watched_s: float = 30.0


QUICK = Sizes(rounds=12, hospitals=4, refreshes=1, watched_s=2.0)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def browser_path() -> str | None:
    """A Chromium on this machine."""
    return os.environ.get("SECAGG_CHROMIUM") or next((found for name in CHROMIUM if (found := shutil.which(name))), None)


@contextmanager
def serving(state: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The app of a coordinator, started as people start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from ui.cli import main; main()", "--coordinator", str(state), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_until_up(base: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the server answers. Raises TimeoutError."""
    limit_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit_s and process.poll() is None:
        with suppress(URLError, ConnectionError), urllib.request.urlopen(f"{base}/_stcore/health"):  # noqa: S310  (loopback)
            return
        time.sleep(0.02)
    raise TimeoutError("the app did not answer")


def measure(folder: Path, sizes: Sizes, say: Callable[[str], None]) -> dict[str, float]:
    """All figures, in seconds or shares. Raises ImportError where playwright is absent."""
    from playwright.sync_api import expect, sync_playwright

    say(f"writing {sizes.rounds} rounds of {sizes.hospitals} hospitals")
    plan = write_run(folder, sizes.rounds, sizes.hospitals)
    found: dict[str, float] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        rounds = f"{sizes.rounds} of {sizes.rounds + 1}"
        page.add_init_script(f"({SHOWN})({rounds!r})")
        started_s = time.time()
        with serving(folder) as (process, base):
            wait_until_up(base, process)
            say("the first page")
            page.goto(base, wait_until="commit")
            done = page.get_by_test_id("stMetric").filter(has_text="Rounds").get_by_test_id("stMetricValue")
            expect(done).to_have_text(rounds)
            expect(page.get_by_text("What happened last")).to_be_visible()
            found |= {"wall": page.evaluate("window.shownAtMs") / 1e3 - started_s, "first": cpu_s(process.pid)}
            say("nine tabs")
            for path in TABS[1:]:
                browser.new_page().goto(f"{base}/{path}", wait_until="commit", timeout=PATIENCE_MS)
            found["tabs"] = _watched(process.pid, folder, plan, sizes)
        browser.close()
    say("refreshes")
    return found | refreshes(folder, plan, sizes)


def refreshes(folder: Path, plan: Plan, sizes: Sizes) -> dict[str, float]:
    """CPU seconds of a page's script for one new round, in this process; the median of several, by page."""
    from streamlit import config
    from streamlit.testing.v1 import AppTest

    config.set_option("runner.magicEnabled", value=False)  # as the server runs it

    logging.getLogger("streamlit").setLevel(logging.ERROR)  # it warns of the missing browser, at every call
    found: dict[str, float] = {}
    with open_store(folder / "store.db") as store:
        number = store.rounds(sizes.rounds - 1)[-1].number
    sys.argv = ["app.py", "--coordinator", str(folder)]
    for page in PAGES:
        app = AppTest.from_file(str(APP), default_timeout=PATIENCE_MS / 1e3).run()
        if page != "overview":
            app.switch_page(f"app_pages/{page}.py").run()
        spent = []
        for _ in range(sizes.refreshes):
            number += 1
            add_round(folder, plan, number)
            before = time.process_time()
            app.run()
            spent.append(time.process_time() - before)
        found[page] = statistics.median(spent)
    return found


def _watched(pid: int, folder: Path, plan: Plan, sizes: Sizes) -> float:
    """Share of a core that all open tabs cost while a run goes on."""
    time.sleep(SETTLE_S if sizes.refreshes > 1 else 0)
    number = sizes.rounds
    started, before = time.monotonic(), cpu_s(pid)
    beats = 0
    while time.monotonic() - started < sizes.watched_s:
        beats += 1
        if beats % 10 == 0:
            number += 1
            add_round(folder, plan, number)
        else:
            touch(folder, plan, number)
        time.sleep(1.0)
    return (cpu_s(pid) - before) / (time.monotonic() - started)


def rows_of(found: dict[str, float]) -> list[Row]:
    """One row a target; a figure that was not measured says so."""
    return [Row(figure, found.get(name), unit, target) for name, (figure, unit, target) in FIGURES.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that everything works; judges nothing")
    chosen = parser.parse_args(arguments)
    found: dict[str, float] = {}
    if browser_path() is None:
        print("chromium is absent: install it, or set SECAGG_CHROMIUM to its path", file=sys.stderr)
    else:
        with tempfile.TemporaryDirectory() as folder:
            sizes = QUICK if chosen.quick else Sizes()
            found = measure(Path(folder), sizes, lambda text: print(f"... {text}", file=sys.stderr, flush=True))
    rows = rows_of(found)
    print(table(rows))
    return 0 if chosen.quick else status(rows)


if __name__ == "__main__":
    sys.exit(main())
