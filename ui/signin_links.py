"""Places of the gate that pages link to, and how they are written; imported without anything that sign-in needs."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

ENTRANCE: Final = "/signin"
START: Final = "/signin/start"
BACK: Final = "/signin/back"
OUT: Final = "/signout"


def start_link(then: str, *, fresh: bool = False) -> str:
    """To the provider and afterwards to `then`; `fresh`: the person has to prove themselves anew."""
    return f"{START}?" + urlencode({"to": then, **({"fresh": "1"} if fresh else {})})


def sign_out_link(key: str) -> str:
    """Out of the session of this key."""
    return f"{OUT}?" + urlencode({"session": key})
