"""Makes the server ready while the browser still loads its own program, and keeps a long run cheap to hold in memory.

Streamlit looks through all of memory for garbage after every run of a page or fragment. What was read of a long run stays, so
it is set aside (`gc.freeze`), where the collector does not look; from time to time it is looked through once. Until the run is
read the collector rests: nearly everything that a start makes stays. Nothing is shown.
"""

from __future__ import annotations

import gc
import importlib
import threading
from contextlib import suppress
from typing import Final

from ui.settings import Settings

FIRST_NEEDED: Final = ("ui.sources", "ui.screen", "ui.charts", "ui.budget", "ui.deciding")
NEEDED_FOR_GRIDS: Final = ("pandas", "pyarrow", "streamlit.dataframe_util")  # a third of a second, not of the first page
FIRST_PAGE_S: Final = 5.0  # the first page is there by then
LOOK_THROUGH_S: Final = 600.0  # garbage of so long stays at most


def rest() -> None:
    """No garbage is looked for until `start` has read what there is: it would be a tenth of the work of starting."""
    gc.disable()


def start(settings: Settings) -> threading.Thread:
    """Prepare in a thread of its own; it goes on looking through memory until the process ends."""
    thread = threading.Thread(target=_prepare, args=(settings, threading.Event()), name="preload", daemon=True)
    thread.start()
    return thread


def _prepare(settings: Settings, never: threading.Event) -> None:
    try:
        load(FIRST_NEEDED)
        read(settings)
    finally:
        gc.freeze()  # looking through it comes when the first page is there
        gc.enable()
    never.wait(FIRST_PAGE_S)
    load(NEEDED_FOR_GRIDS)
    add_up(settings)
    set_aside()
    while not never.wait(LOOK_THROUGH_S):
        set_aside()


def load(names: tuple[str, ...]) -> None:
    """Import these, so that no page waits for them."""
    for name in names:
        importlib.import_module(name)


def read(settings: Settings) -> None:
    """What the first page will ask for. What cannot be read now is asked again by a page, which says so."""
    from coordinator.store import StoreError
    from ui import sources

    with suppress(StoreError):
        sources.federation(settings.coordinator)
    sources.hospitals(settings)


def add_up(settings: Settings) -> None:
    """The bytes of a whole run, of which the page Bandwidth shows the sums: the slowest question to the store."""
    from coordinator.store import StoreError
    from ui import sources

    with suppress(StoreError):
        if settings.coordinator is not None:
            sources.totals(settings.coordinator)


def set_aside() -> None:
    """Collect what is garbage, and let the collector pass over the rest from now on."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
