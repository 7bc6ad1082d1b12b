"""Independent pieces of work on several threads, few at a time: what is done is handed back as soon as it is done.

SimpleITK, numpy and hashing leave the interpreter to others while they work, so threads of one process are enough, and what
they make does not have to be copied between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[tuple[int, Result]]:
    """(index, result) of every item, in the order in which they are done; at most `threads` are under way.

    The next item begins when the caller has taken a result, so that a caller who stops keeps nobody working. What `work`
    raises is raised here, after the others under way have ended.
    """
    with ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="preparing") as pool:
        begun: dict[Future[Result], int] = {}
        waiting = iter(enumerate(items))
        while True:
            for index, item in waiting:
                begun[pool.submit(work, item)] = index
                if len(begun) >= max(1, threads):
                    break
            if not begun:
                return
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                yield begun.pop(future), future.result()
