"""Who may see and do what: the one table of the app's roles. Pages and actions ask here, on the server, each time.

Rules: (1) what is not in a table is allowed to nobody; (2) who has several roles may do what any of them may; (3) without
sign-in there are no roles, and whoever reaches the app may do everything, which is why it then listens on this machine alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Role(StrEnum):
    """What somebody is at a hospital or at the coordinator."""

    OFFICER = "officer"
    RESEARCHER = "researcher"
    OPERATOR = "operator"


class Page(StrEnum):
    """A page, by the name of its file."""

    OVERVIEW = "overview"
    PRIVACY = "privacy"
    SCANS = "scans"
    ACCURACY = "accuracy"
    BANDWIDTH = "bandwidth"
    ROUNDS = "rounds"
    STUDY = "study"
    DECISIONS = "decisions"


class Part(StrEnum):
    """What stands on a page that others may see without it."""

    BUDGETS = "budgets of the hospitals"
    PROGRESS = "what a node does at this moment"
    OFFER = "the plan on offer and its cost"


class Act(StrEnum):
    """What a button asks of a running process."""

    APPROVE = "approve a plan"
    CONFIRM = "confirm a higher cap"
    DECLINE = "decline a plan"
    PAUSE = "pause the node"
    RESUME = "let the node go on"
    WRITE_REPORT = "have the node write a privacy report"
    HOLD_ROUNDS = "hold rounds back"
    LET_ROUNDS_ON = "let rounds go on"
    END_ROUND = "end a round"


Right = Page | Part | Act

OFFICER, RESEARCHER, OPERATOR = Role.OFFICER, Role.RESEARCHER, Role.OPERATOR
EVERYBODY: Final = frozenset(Role)

ALLOWED: Final[Mapping[Right, frozenset[Role]]] = MappingProxyType(
    {
        Page.OVERVIEW: EVERYBODY,
        Page.PRIVACY: frozenset({OFFICER}),
        Page.SCANS: frozenset({OFFICER}),
        Page.ACCURACY: frozenset({OFFICER, RESEARCHER}),
        Page.BANDWIDTH: EVERYBODY,
        Page.ROUNDS: EVERYBODY,
        Page.STUDY: frozenset({OFFICER, RESEARCHER}),
        Page.DECISIONS: frozenset({OFFICER, OPERATOR}),
        Part.BUDGETS: frozenset({OFFICER}),
        Part.PROGRESS: frozenset({OFFICER, OPERATOR}),
        Part.OFFER: frozenset({OFFICER}),
        Act.APPROVE: frozenset({OFFICER}),
        Act.CONFIRM: frozenset({OFFICER}),
        Act.DECLINE: frozenset({OFFICER}),
        Act.PAUSE: frozenset({OFFICER, OPERATOR}),  # whoever sees something wrong may hold it
        Act.RESUME: frozenset({OFFICER}),  # going on spends budget
        Act.WRITE_REPORT: frozenset({OFFICER}),
        Act.HOLD_ROUNDS: frozenset({OPERATOR}),
        Act.LET_ROUNDS_ON: frozenset({OPERATOR}),
        Act.END_ROUND: frozenset({OPERATOR}),
    }
)

HOLDS: Final = frozenset({Act.PAUSE, Act.HOLD_ROUNDS, Act.DECLINE})  # spend nothing: whoever sees something wrong need not wait


def may(roles: Collection[Role], right: Right) -> bool:
    """Whether one of `roles` has this right."""
    return not ALLOWED[right].isdisjoint(roles)


def acting_as(roles: Collection[Role], act: Act) -> Role | None:
    """The role in which somebody does this, the officer's first; None where none of theirs may."""
    return next((role for role in Role if role in roles and role in ALLOWED[act]), None)
