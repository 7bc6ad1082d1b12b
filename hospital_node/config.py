"""The configuration of one node: a TOML file, read once, frozen, every mistake named with its remedy.

Paths are relative to the folder that holds the file, so that a node's folder can be moved as a whole. What a study fixes
for everybody is in the plan, never here; what is here never changes the mechanism, except [policy], which can only refuse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from hospital_node.reporting.model import Governance, Publication
from proto.frozen import Frozen, from_toml
from proto.plan import MIN_COHORT

MAX_PORT = 65_535
PATH_KEYS = ("identity", "state", "data", "peers", "ledger", "ledger_counter")


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file, the key and the remedy."""


def _host_and_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= MAX_PORT:
        raise ValueError(f"'{text}' is not of the form host:port, for example coordinator.example.org:8443")
    return text


Address = Annotated[str, AfterValidator(_host_and_port)]


class NodePolicy(Frozen):
    """What this node demands of every masking session, whatever the plan says."""

    minimum_cohort: int = Field(default=MIN_COHORT, ge=MIN_COHORT)
    max_colluders: int = Field(default=1, ge=0)  # peers that may work with the coordinator, of all that the plan admits


class CapSetting(Frozen):
    """The privacy cap that `approve` proposes where the officer names none."""

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(default=1e-5, gt=0, lt=1)


class ReportSetting(Frozen):
    """What the hospital says of itself in its privacy reports: this software knows none of it, and invents none of it."""

    governance: Governance = Governance()
    publication: Publication = Publication()


class NodeConfig(Frozen):
    """One node, hospital or evaluator. Build it with `load_config`."""

    coordinator: Address
    identity: Path  # folder with node.key, node.crt and ca.crt
    state: Path  # folder of the ledger, the cache and what the app reads
    data: Path  # folder of the studies
    plan: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # digest of the plan to serve, where there are several
    ledger: Path | None = None  # the hospital's ledger, where several studies share it; in the state folder if left out
    ledger_counter: Path | None = None  # a second counter of the ledger, best where no backup of the ledger reaches
    peers: Path | None = None  # list of pinned keys; a hospital needs one, an evaluator does not
    site: str | None = None  # selection inside a folder that holds several sites
    fold: str | None = None  # selection inside a folder that holds several folds
    threads: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"  # where networks run: hospital_node/device.py
    policy: NodePolicy = NodePolicy()
    cap: CapSetting | None = None
    report: ReportSetting = ReportSetting()

    @field_validator(*PATH_KEYS)
    @classmethod
    def _beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        folder: Path | None = (info.context or {}).get("folder")
        return path if path is None or folder is None else (folder / path).resolve()

    def require_peers(self) -> Path:
        """The peer list; ConfigError where none is named."""
        if self.peers is None:
            raise ConfigError("the node's configuration has no key 'peers': name the list of keys that your people confirmed")
        return self.peers

    def require_folders(self) -> Self:
        """ConfigError where identity or data do not exist; the state folder is made by the node itself."""
        for key, folder in (("identity", self.identity), ("data", self.data)):
            if not folder.is_dir():
                raise ConfigError(f"the folder {folder} of key '{key}' does not exist: create it or correct the key")
        return self


def load_config(path: Path) -> NodeConfig:
    """Read and check one file. Raises ConfigError with one sentence."""
    return from_toml(NodeConfig, path, "the configuration (--config)", ConfigError, {"folder": path.resolve().parent})
