"""many_nodes.py whose nodes come back within half a second after a loss, so that tests of losses are short.

Exists in the tests only. Usage as many_nodes.py; SECAGG_TEST_CLOCK_S sets the nodes' clocks by so much.
"""

import os
import time

import many_nodes

from hospital_node import loop

if __name__ == "__main__":
    loop.LONGEST_WAIT_S = 0.5
    wrong_s = float(os.environ.get("SECAGG_TEST_CLOCK_S", "0"))
    many_nodes.main(clock=lambda: time.time() + wrong_s)
