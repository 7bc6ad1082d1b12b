"""Who sits before the screen, for pages: what they may see, and in whose name a decision is asked for. Asked anew at each use.

Without sign-in there is no person and everything is allowed. With it, a session that is over, unknown or absent allows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import cast

import streamlit as st

from proto.control import ControlError, Proved
from ui.roles import HOLDS, Act, Right, acting_as, may
from ui.sessions import OPEN, USER_KEY, Session
from ui.settings import Settings


def session() -> Session | None:
    """The session of this page, as long as it lasts."""
    key = cast("Mapping[str, object]", st.user).get(USER_KEY)
    return OPEN.find(key, time.time()) if isinstance(key, str) else None


def is_here(settings: Settings) -> bool:
    """Whether anything may be shown to whoever looks at this page."""
    return settings.signin is None or session() is not None


def allowed(settings: Settings, right: Right) -> bool:
    """Whether whoever looks at this page has this right."""
    if settings.signin is None:
        return True
    found = session()
    return found is not None and may(found.person.roles, right)


def is_fresh(settings: Settings) -> bool:
    """Whether this person proved who they are recently enough to decide something."""
    found = session()
    if settings.signin is None or found is None:
        return settings.signin is None
    return time.time() - found.proved_at_s <= settings.signin.decision_minutes * 60


def is_ready(settings: Settings, act: Act) -> bool:
    """Whether this person may do this without proving themselves anew: what only holds asks for no recent proof."""
    return act in HOLDS or is_fresh(settings)


def in_whose_name(settings: Settings, act: Act, typed: str) -> tuple[str, Proved | None]:
    """The name to record and its proof, checked at this moment; what was typed counts only without sign-in.

    Raises ControlError where this person may not do this, or has to prove themselves anew first.
    """
    if settings.signin is None:
        return typed, None
    found = session()
    if found is None:
        raise ControlError("your session is over: sign in again, and decide again; nothing was changed")
    role = acting_as(found.person.roles, act)
    if role is None:
        raise ControlError(f"your role does not allow you to {act}: ask {settings.signin.contact}; nothing was changed")
    if not is_ready(settings, act):
        raise ControlError("it is too long ago that you proved who you are: sign in again, and decide again")
    who = found.person
    proved = Proved.model_validate({"issuer": who.issuer, "subject": who.subject, "role": role.value})
    return who.name, proved
