"""Makes the server ready while the browser still loads its own program, and keeps a long run cheap to hold in memory.

Streamlit looks through all of memory for garbage after every run of a page or fragment. What was read of a long run stays, so
it is set aside (`gc.freeze`), where the collector does not look; from time to time it is looked through once. Nothing is shown.
"""

from __future__ import annotations

import gc
import importlib
import threading
from contextlib import suppress
from typing import Final

from coordinator.store import StoreError
from ui.settings import Settings

FIRST_NEEDED: Final = (
    "pandas",
    "pyarrow",
    "ui.screen",
    "ui.charts",
    "ui.budget",
    "ui.deciding",
    "streamlit.dataframe_util",
)
FIRST_PAGE_S: Final = 5.0  # the first page is there by then
LOOK_THROUGH_S: Final = 600.0  # garbage of so long stays at most


def start(settings: Settings) -> threading.Thread:
    """Prepare in a thread of its own; it goes on looking through memory until the process ends."""
    thread = threading.Thread(target=_prepare, args=(settings, threading.Event()), name="preload", daemon=True)
    thread.start()
    return thread


def _prepare(settings: Settings, never: threading.Event) -> None:
    for name in FIRST_NEEDED:
        importlib.import_module(name)
    read(settings)
    set_aside()
    never.wait(FIRST_PAGE_S)
    add_up(settings)
    while not never.wait(LOOK_THROUGH_S):
        set_aside()


def read(settings: Settings) -> None:
    """What the first page will ask for. What cannot be read now is asked again by a page, which says so."""
    from ui import sources

    with suppress(StoreError):
        sources.federation(settings.coordinator)
    sources.hospitals(settings)


def add_up(settings: Settings) -> None:
    """The bytes of a whole run, of which the page Bandwidth shows the sums: the slowest question to the store."""
    from ui import sources

    with suppress(StoreError):
        if settings.coordinator is not None:
            sources.totals(settings.coordinator)


def set_aside() -> None:
    """Collect what is garbage, and let the collector pass over the rest from now on."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
