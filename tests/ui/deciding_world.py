"""A node that listens: the real functions behind the real socket, without training and without a coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from worlds import STUDY, World, uri

from certs.authority import create_authority, issue
from hospital_node.config import NodeConfig
from hospital_node.people import answer
from proto.control_socket import listening


def node_of(world: World, name: str) -> NodeConfig:
    """The configuration of a hospital of this world, with an identity of its own; the plan is on offer there."""
    folder = world.folder / "identities"
    if not folder.exists():
        create_authority(folder / "ca", STUDY)
    identity = folder / name
    if not identity.exists():
        issue(folder / "ca", uri(name), identity)
    state = world.state(name)
    state.mkdir(parents=True, exist_ok=True)
    (state / "plan.json").write_bytes(world.plan.canonical())
    return NodeConfig(coordinator="127.0.0.1:9", identity=identity, state=state, data=Path())


@contextmanager
def running_node(world: World, name: str) -> Iterator[NodeConfig]:
    """It answers until the block ends."""
    node = node_of(world, name)
    with listening(node.state, lambda data: answer(node, data, datetime.now(UTC))):
        yield node
