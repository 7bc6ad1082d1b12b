"""The folders of a federation in one process: certificates, pinned keys, configuration and ledgers, as on real sites.

They are made for one plan and one run. Nobody compares key words here and no officer reads the plan: the lists and the ledgers
say so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from certs.party import CertificateError
from hospital_node.cap import Cap
from hospital_node.config import NodeConfig, NodePolicy, load_config
from hospital_node.ledger import LedgerError
from hospital_node.logs import ALLOWED
from hospital_node.state import StateError
from proto.modelfile import Model, encode_model
from proto.plan import Plan, short_name
from study import approvals, sites
from study.bench.task import StudyError
from study.cast import Cast, Role
from study.sites import COORDINATOR, Sites

OFFICER = "nobody (a study in one process)"
REASON = "a run of a study; its ledger begins and ends with it"
NOWHERE = "127.0.0.1:9"  # a node's configuration needs an address; nothing is dialled there
UNLIMITED_EPSILON = 1e4  # a cap where the caller names none: what costs more has no finite epsilon in the ledger either
LOGGED = ALLOWED | {"party", "kind", "where"}


def build(folder: Path, plan: Plan, start: Model, cap: Cap | None, *, data_is_public: bool) -> Sites:
    """Make everything that the parties of `plan` read, in a fresh `folder`. Raises StudyError."""
    world = Sites(folder, _cast(folder, plan))
    granted = cap or Cap(epsilon=UNLIMITED_EPSILON, delta=plan.privacy.delta)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "start.safetensors"
    model.write_bytes(encode_model(start))
    try:
        sites.certify(world)
        sites.write_coordinator(world, plan, model, drill_pause_s=0.0)
        for role in world.roles:
            sites.write_node(world, role, NOWHERE)
        for role in world.cast.hospitals:
            state, uri = world.state(role), world.uri(role)
            approvals.approve(state, uri, plan, granted, OFFICER, REASON, data_is_public=data_is_public)
    except (CertificateError, LedgerError, StateError) as error:
        raise StudyError(f"the federation of study '{plan.study}' cannot be set up: {error}") from error
    return world


def node_config(world: Sites, role: Role, plan: Plan) -> NodeConfig:
    """A node's configuration as written, with the plan's own demands as its policy: here nobody has others."""
    policy = NodePolicy(minimum_cohort=plan.masking.minimum_cohort, max_colluders=plan.masking.max_colluders)
    return load_config(world.config(role)).model_copy(update={"policy": policy})


@contextmanager
def logs_to(path: Path) -> Iterator[None]:
    """Warnings of all parties go to `path` and nothing to the terminal while the block runs; then logging is as it was."""
    before = structlog.get_config() if structlog.is_configured() else None
    with path.open("a", encoding="utf-8") as stream:
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _only_logged,
                structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(stream),
            cache_logger_on_first_use=False,
        )
        try:
            yield
        finally:
            structlog.reset_defaults()
            if before is not None:
                structlog.configure(**before)


def _cast(folder: Path, plan: Plan) -> Cast:
    if len(plan.evaluators) != 1:
        raise StudyError(f"a federation of a study has one evaluator, the plan of '{plan.study}' names {len(plan.evaluators)}")
    roles = tuple(_role(folder, hospital.uri, hospital.declared_patients) for hospital in plan.hospitals)
    evaluator = _role(folder, plan.evaluators[0], 1)
    names = [COORDINATOR, sites.AUTHORITY, evaluator.name, *(role.name for role in roles)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise StudyError(f"two parties of study '{plan.study}' would share the folder '{twice[0]}': give one another name")
    return Cast(plan.study, "none", roles, evaluator, "")


def _role(folder: Path, uri: str, patients: int) -> Role:
    return Role(short_name(uri), folder / short_name(uri), patients)  # the patients themselves stay in the process


def _only_logged(_: object, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """As hospital_node.logs.only_allowed, with the fields that say which party and where."""
    return {name: value for name, value in fields.items() if name in LOGGED}
