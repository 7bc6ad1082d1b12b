"""Many real hospital nodes in one process, a thread each: own identity, state folder, ledger and TLS connection.

Only the training is a formula. Exists in the tests only. Usage: many_nodes.py START_MODEL NODE_TOML... ; the last line that it
prints is JSON with the seconds of processor time and the peak memory of the process.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from formula_node import formula_workshop, signs_of

from hospital_node import logs
from hospital_node.config import load_config
from hospital_node.link import dial
from hospital_node.runner import run_with
from proto.modelfile import read_model


def main(clock: Callable[[], float] = time.time) -> None:
    layout, configs = read_model(Path(sys.argv[1])).layout, [load_config(Path(name)) for name in sys.argv[2:]]
    logs.configure()
    stop = threading.Event()
    workshop = formula_workshop(layout, signs_of)
    with ThreadPoolExecutor(len(configs)) as pool:
        nodes = [
            pool.submit(run_with, config, workshop, dial=dial, clock=clock, rand=os.urandom, stop=stop) for config in configs
        ]
        wait(nodes, return_when="FIRST_EXCEPTION")
        stop.set()
        for node in nodes:
            node.result()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu_s": round(used.ru_utime + used.ru_stime, 1), "peak_mib": round(used.ru_maxrss / 1024)}))


if __name__ == "__main__":
    main()
