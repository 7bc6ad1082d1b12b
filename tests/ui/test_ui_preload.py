"""What is read before the first page asks: kept for it, set aside from the collector, and never a reason to fail."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds import World, make_plan

from ui import preload, sources
from ui.settings import Settings


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, make_plan(3))
    made.start()
    made.approve("lakeside")
    made.round(1, charge=False)
    return made


def test_a_page_finds_what_was_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(coordinator=world.coordinator, hospitals=(world.state("lakeside"),))
    preload.read(settings)
    preload.add_up(settings)
    asked: list[str] = []
    for name in ("rounds", "traffic_between", "plan"):
        monkeypatch.setattr(f"coordinator.store.StoreReader.{name}", lambda *_, name=name, **__: asked.append(name))
    seen = sources.federation(world.coordinator)
    assert seen is not None
    assert [row.number for row in seen.rounds] == [1]
    assert asked == []


@pytest.mark.parametrize("broken", [b"", b"no database at all" * 100])
def test_what_cannot_be_read_is_left_to_the_page(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "store.db").write_bytes(broken)
    settings = Settings(coordinator=tmp_path, hospitals=(tmp_path / "nowhere",))
    preload.read(settings)
    preload.add_up(settings)
    preload.read(Settings(coordinator=tmp_path / "nowhere"))


class Ring:
    """Garbage that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


def test_what_stays_is_passed_over_and_garbage_of_before_goes() -> None:
    before = weakref.ref(Ring())
    preload.set_aside()
    assert before() is None
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    ring = Ring()
    later = weakref.ref(ring)
    preload.set_aside()  # alive now, and set aside
    del ring
    gc.collect()
    assert later() is not None
    preload.set_aside()
    assert later() is None


def test_a_second_reading_keeps_the_bytes_of_settled_rounds(world: World) -> None:
    first = sources.federation(world.coordinator)
    for number in range(2, 12):
        world.round(number, charge=False)
        seen = sources.federation(world.coordinator)
    assert first is not None
    assert seen is not None
    fresh = sources.Keeper(sources.open_store(sources.store_in(world.coordinator))).read()
    assert seen.traffic == fresh.traffic
