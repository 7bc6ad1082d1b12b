"""The folders of a demonstration's parties: certificates, peer lists, configuration files, recorded approvals.

Everything a hospital would do by hand is done here through the same functions that its commands call. On a real site
people compare key words before a key is pinned; here nobody does, and `confirmed_by` says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from certs import authority
from certs.identity import Identity, load_identity
from certs.party import CertificateError
from certs.peers import UNCONFIRMED, Peer, PeerList, write_peers
from proto.plan import Plan
from study import presets
from study.cast import Cast, Role

COORDINATOR = "coordinator"
AUTHORITY = "ca"


@dataclass(frozen=True, slots=True)
class Sites:
    """Where each party of one demonstration lives."""

    folder: Path
    cast: Cast

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / COORDINATOR

    @property
    def coordinator_config(self) -> Path:
        """Its configuration file."""
        return self.coordinator / "coordinator.toml"

    @property
    def store(self) -> Path:
        """Its store, once it runs."""
        return self.coordinator / "state" / "store.db"

    @property
    def latest_model(self) -> Path:
        """The newest global model as a file, once a round was opened."""
        return self.coordinator / "state" / "models" / "latest.safetensors"

    def home(self, role: Role) -> Path:
        """A node's folder."""
        return self.folder / role.name

    def config(self, role: Role) -> Path:
        """A node's configuration file."""
        return self.home(role) / "node.toml"

    def state(self, role: Role) -> Path:
        """A node's state folder: ledger, cache, progress."""
        return self.home(role) / "state"

    def uri(self, role: Role) -> str:
        """A node's name in its certificate."""
        kind = "evaluator" if role == self.cast.evaluator else "hospital"
        return f"secagg://{self.cast.study}/{kind}/{role.name}"

    @property
    def roles(self) -> tuple[Role, ...]:
        """Hospitals, then the evaluator."""
        return (*self.cast.hospitals, self.cast.evaluator)


def certify(sites: Sites) -> None:
    """Make the authority, every certificate and every peer list, or keep them while they are valid."""
    if not _all_valid(sites):
        _make_certificates(sites)
    now = datetime.now(UTC)
    identities = {role.name: load_identity(sites.home(role) / "identity") for role in sites.roles}
    admitted = [_peer(identity, now) for identity in identities.values()]
    write_peers(sites.coordinator / "peers.toml", PeerList(tuple(admitted)))
    for role in sites.cast.hospitals:
        others = [_peer(identities[other.name], now) for other in sites.cast.hospitals if other != role]
        write_peers(sites.home(role) / "peers.toml", PeerList(tuple(others)))


def begin_anew(sites: Sites) -> None:
    """Remove what an earlier run of the demonstration left, except caches: rounds, ledgers, sessions, progress.

    A real ledger is never reset. This one counts an epsilon for synthetic or public data that the next run starts again.
    """
    shutil.rmtree(sites.coordinator / "state", ignore_errors=True)
    for role in sites.roles:
        state = sites.state(role)
        for path in state.iterdir() if state.is_dir() else ():
            if path.name == "cache":
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_coordinator(sites: Sites, plan: Plan, start: Path, drill_pause_s: float) -> None:
    """The coordinator's plan and configuration."""
    presets.write_toml(plan, sites.coordinator / "plan.toml")
    fields = {
        "listen": "127.0.0.1:0",
        "identity": "identity",
        "allow": "peers.toml",
        "plan": "plan.toml",
        "start": str(start.resolve()),
        "state": "state",
        "drill_pause_s": drill_pause_s,
    }
    sites.coordinator_config.write_text(tomli_w.dumps(fields), encoding="utf-8")


def write_node(sites: Sites, role: Role, address: str) -> None:
    """A node's configuration; `address` is the coordinator's host:port."""
    fields: dict[str, object] = {
        "coordinator": address,
        "identity": "identity",
        "state": "state",
        "data": str(role.data.resolve()),
    }
    if role != sites.cast.evaluator:
        fields["peers"] = "peers.toml"
    if role.site:
        fields["site"] = role.site
    if role.fold:
        fields["fold"] = role.fold
    sites.config(role).write_text(tomli_w.dumps(fields), encoding="utf-8")


def _make_certificates(sites: Sites) -> None:
    root = sites.folder / AUTHORITY
    homes: Sequence[Path] = [sites.coordinator, *(sites.home(role) for role in sites.roles)]
    for folder in (root, *(home / "identity" for home in homes)):
        shutil.rmtree(folder, ignore_errors=True)
    authority.create_authority(root, sites.cast.study)
    authority.issue(root, f"secagg://{sites.cast.study}/coordinator/{COORDINATOR}", sites.coordinator / "identity")
    for role in sites.roles:
        authority.issue(root, sites.uri(role), sites.home(role) / "identity")


def _all_valid(sites: Sites) -> bool:
    try:
        load_identity(sites.coordinator / "identity")
        return all(load_identity(sites.home(role) / "identity").uri == sites.uri(role) for role in sites.roles)
    except CertificateError:
        return False


def _peer(identity: Identity, at: datetime) -> Peer:
    return Peer(identity.uri, identity.fingerprint, UNCONFIRMED, at)
