"""The coordinator's own configuration: where things are on this machine and nothing that the study depends on.

Whatever two parties must agree on stands in the plan (proto/plan.py). Paths are taken from the folder of the file that
names them, so that a folder can be moved as a whole. This file decides nothing.
"""

from __future__ import annotations

import stat
from pathlib import Path

from pydantic import Field, field_validator

from coordinator.database import StoreError, has_password
from proto.frozen import Frozen, from_toml

WEEK_S = 604_800.0
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class ConfigError(ValueError):
    """A configuration that cannot be used; one sentence that names the file, the key and the remedy."""


class FurtherPlan(Frozen):
    """Another plan that the same program serves on the same address, to its own roster and from its own state folder."""

    allow: Path
    plan: Path
    start: Path
    state: Path
    store_url: str | None = Field(default=None, repr=False)


class CoordinatorConfig(Frozen):
    """Everything that `secagg-coordinator` reads from its TOML file."""

    listen: str = "127.0.0.1:0"  # host:port; port 0 takes a free one, written to state/address
    identity: Path  # folder with node.key, node.crt, ca.crt
    allow: Path  # peers.toml: parties that may connect, by key hash
    plan: Path
    start: Path  # safetensors of the public start
    authority: Path | None = None  # folder of ca.key: certificates of nodes are renewed on the way; None: by people only
    state: Path  # store.db, models/, spool/, address
    store_url: str | None = Field(default=None, repr=False)  # postgresql://...; None: SQLite in the state folder
    metrics: str | None = None  # host:port on this machine for Prometheus; None: no metrics are served
    json_logs: bool = False  # one JSON object a line instead of lines for people
    store_patience_s: float = Field(default=60.0, gt=0, le=3600)  # an open session outlives a store out of reach for so long
    evaluation_patience_s: float = Field(default=3600.0, ge=0, le=WEEK_S)  # a finished run waits so long for evaluators at work
    drill_pause_s: float = Field(default=0.0, ge=0, le=600)  # pause between masking phases, for demonstrations and drills

    further: tuple[FurtherPlan, ...] = ()  # [[further]]: plans beside the one that is named above

    @field_validator("listen", "metrics")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"'{value}' is not of the form host:port")
        return value

    @field_validator("metrics")
    @classmethod
    def _check_loopback(cls, value: str) -> str:
        if value.rpartition(":")[0] not in LOOPBACK:
            raise ValueError(
                f"'{value}' is reachable from other machines: metrics are served without TLS, on {LOOPBACK[0]} only"
            )
        return value

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.store_url or f"sqlite:///{self.state / 'store.db'}"

    def each(self) -> tuple[CoordinatorConfig, ...]:
        """One configuration for each plan, the first one first."""
        others = [self.model_copy(update={**dict(one), "further": ()}) for one in self.further]
        return (self.model_copy(update={"further": ()}), *others)

    @property
    def address_file(self) -> Path:
        """Where a running coordinator writes the address that it listens on."""
        return self.state / "address"


def load_config(path: Path) -> CoordinatorConfig:
    """Read the TOML file at `path`. Raises ConfigError with one sentence."""
    config = from_toml(CoordinatorConfig, path, "the configuration (--config)", ConfigError)
    _check_secret(config, path)
    return _from_folder(config, path.resolve().parent)


def _check_secret(config: CoordinatorConfig, path: Path) -> None:
    """Raise ConfigError where an URL cannot be read, or others can read a password in this file."""
    try:
        secrets = [has_password(one.database) for one in config.each()]
    except StoreError as error:
        raise ConfigError(f"{path}: 'store_url': {error}") from error
    if any(secrets) and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{path} holds the store's password and others can read it: chmod 600 it, or leave the password to PGPASSFILE"
        )


def _from_folder(config: CoordinatorConfig, folder: Path) -> CoordinatorConfig:
    names = ("allow", "plan", "start", "state")
    here = {name: folder / getattr(config, name) for name in (*names, "identity")}
    here["authority"] = None if config.authority is None else folder / config.authority
    further = tuple(one.model_copy(update={name: folder / getattr(one, name) for name in names}) for one in config.further)
    return _check_apart(config.model_copy(update={**here, "further": further}))


def _check_apart(config: CoordinatorConfig) -> CoordinatorConfig:
    """Raise ConfigError where two plans share what is one plan's own."""
    for key in ("state", "database"):
        found = [str(getattr(one, key)) for one in config.each()]
        if len(set(found)) < len(found):
            raise ConfigError(f"two plans share one {'state folder' if key == 'state' else 'store'}: each needs its own")
    return config
