"""While an evaluator measures it says so: it hears no order meanwhile, and a silent party is taken for lost.

In a thread of its own, a few times within `lost_after_s`. A report that is lost costs nothing, the next one follows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from hospital_node.link import Link, LinkLost, LinkRefused, OrderStale
from hospital_node.logs import logger
from proto import federation_pb2 as pb

WITHIN: Final = 4  # reports within the time after which a silent party is lost
LONGEST_S: Final = 15.0  # as long as the coordinator holds a poll


@contextlib.contextmanager
def said_meanwhile(link: Link, round_number: int, lost_after_s: float) -> Iterator[None]:
    """Report that the model of this round is being measured, until the block ends."""
    over = threading.Event()
    every_s = min(LONGEST_S, lost_after_s / WITHIN)
    saying = threading.Thread(target=_say, args=(link, round_number, every_s, over), name="measuring", daemon=True)
    saying.start()
    try:
        yield
    finally:
        over.set()
        saying.join()


def _say(link: Link, round_number: int, every_s: float, over: threading.Event) -> None:
    report = pb.NodeReport(round=round_number, state=pb.NodeReport.MEASURING)
    while not over.wait(every_s):
        try:
            link.report(report)
        except LinkLost:
            continue  # the conversation finds out when the numbers are sent
        except (LinkRefused, OrderStale) as error:  # an older coordinator does not know this report
            logger().info("the coordinator does not want to hear that a model is being measured", reason=str(error))
            return
