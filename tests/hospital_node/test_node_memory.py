"""After a round what it needed is gone, objects that refer to each other included."""

import gc
import weakref

import pytest

from hospital_node.memory import LARGE_BYTES, TRIM_EVERY_S, Memory


class Web:
    """Refers to itself, as modules and their hooks do."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()


def test_objects_that_refer_to_each_other_are_freed():
    memory = Memory()
    gc.disable()
    try:
        for _ in range(3):  # the first one also freezes what stays
            gone = weakref.ref(Web())
            assert gone() is not None
            memory.give_back()
            assert gone() is None
    finally:
        gc.enable()


def test_what_is_there_after_the_first_round_is_looked_through_once():
    memory = Memory()
    memory.give_back()
    frozen = gc.get_freeze_count()
    assert frozen > 1000
    memory.give_back()
    assert gc.get_freeze_count() <= frozen


def test_a_system_without_glibc_is_no_obstacle(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    Memory().give_back()


def trimmed_at(memory, clock, *moments):
    """At which of these moments pages went back."""
    went: list[float] = []
    memory._trim = lambda _: went.append(clock[0])
    for clock[0] in moments:
        memory.trim()
    return went


def test_pages_go_back_after_every_order_where_vectors_are_small_and_now_and_then_where_they_are_large():
    clock = [0.0]
    memory = Memory(lambda: clock[0])
    assert trimmed_at(memory, clock, 1.0, 1.1, 1.2) == [1.0, 1.1, 1.2]
    memory.expect(LARGE_BYTES)
    assert trimmed_at(memory, clock, 2.0, 11.1, 11.2, 11.2 + TRIM_EVERY_S, 22.0) == [11.2, 11.2 + TRIM_EVERY_S]
    memory.expect(LARGE_BYTES - 1)
    assert trimmed_at(memory, clock, 23.0, 23.1) == [23.0, 23.1]
