"""After a round what it needed is gone, objects that refer to each other included."""

import gc
import weakref

import pytest

from hospital_node.memory import Memory


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
