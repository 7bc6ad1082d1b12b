"""Real hospital nodes in one process, a thread each, whose updates and randomness are functions of their names.

Exists in the tests only. Usage: seeded_nodes.py START_MODEL NODE_TOML...
"""

import hashlib
import itertools
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from formula_node import formula_workshop

from hospital_node import logs, loop
from hospital_node.config import load_config
from hospital_node.link import dial
from hospital_node.runner import run_with
from proto.modelfile import read_model


def chance_of(name):
    """Bytes by name, size and how many of this size were drawn: pauses before a connection draw two and disturb nothing."""
    numbers = defaultdict(itertools.count)

    def rand(size):
        return hashlib.shake_256(f"{name} {size} {next(numbers[size])}".encode()).digest(size)

    return rand


def main():
    loop.LONGEST_WAIT_S = 0.5  # no pause of half a minute after the fifth kill
    layout, configs = read_model(Path(sys.argv[1])).layout, [load_config(Path(name)) for name in sys.argv[2:]]
    logs.configure()
    stop, workshop = threading.Event(), formula_workshop(layout)
    with ThreadPoolExecutor(len(configs)) as pool:
        nodes = [
            pool.submit(run_with, config, workshop, dial=dial, clock=time.time, rand=chance_of(str(config.state)), stop=stop)
            for config in configs
        ]
        wait(nodes, return_when="FIRST_EXCEPTION")
        stop.set()
        for node in nodes:
            node.result()


if __name__ == "__main__":
    main()
