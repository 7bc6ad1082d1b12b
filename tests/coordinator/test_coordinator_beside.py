"""Work beside the event loop is waited for at a clean end, and by whoever takes its files over."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coordinator.beside import Beside


def test_an_end_waits_for_the_work_and_for_what_it_starts():
    done = []

    async def scenario():
        beside = Beside()

        async def first():
            await beside.thread(done.append, 1)
            beside.start(second())

        async def second():
            await asyncio.sleep(0)
            done.append(await beside.thread(lambda: 2))

        beside.start(first())
        await beside.finish()

    asyncio.run(scenario())
    assert done == [1, 2]


def test_work_that_fails_ends_no_other():
    done = []

    async def scenario():
        beside = Beside()

        def fails():
            raise OSError("full")

        beside.start(beside.thread(fails))
        beside.start(beside.thread(done.append, 1))
        await beside.finish()
        with pytest.raises(OSError, match="full"):
            await beside.thread(fails)

    asyncio.run(scenario())
    assert done == [1]


def test_what_is_given_up_begins_nothing_more_and_its_thread_is_waited_for():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def writes():
        begun.set()
        assert go_on.wait(10)
        done.append("written")

    async def scenario():
        beside = Beside()

        async def work():
            await beside.thread(writes)
            done.append("told")

        beside.start(work())
        await asyncio.to_thread(begun.wait, 10)
        given_up = asyncio.create_task(beside.abandon())
        await asyncio.sleep(0.05)
        assert not given_up.done()
        go_on.set()
        await given_up
        await beside.finish()

    asyncio.run(scenario())
    assert done == ["written"]
