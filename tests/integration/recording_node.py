"""A real hospital node that also writes each trained update to a file, so that a test knows what the sum must be.

With shared noise it also writes the keys of its own share, so that a test can draw that noise again.

Exists in the tests only; the installed package has no such entry. Usage: recording_node.py NODE_TOML FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from hospital_node import logs
from hospital_node.config import load_config
from hospital_node.runner import run
from hospital_node.train import train_round
from secagg import node
from secagg.noised import add_shares


def main() -> None:
    config, folder = load_config(Path(sys.argv[1])), Path(sys.argv[2])
    logs.configure()
    folder.mkdir(parents=True, exist_ok=True)

    def recording(*arguments, **options):
        trained = train_round(*arguments, **options)
        part = folder / f"round-{options['round']}.part.npy"
        np.save(part, trained.update)
        part.replace(folder / f"round-{options['round']}.npy")
        return trained

    def keeping(params, shared, sums, noise, door):
        (folder / f"round-{params.round}.keys").write_bytes(b"".join(noise))
        return add_shares(params, shared, sums, noise, door)

    node.add_shares = keeping
    run(config, train=recording)


if __name__ == "__main__":
    main()
