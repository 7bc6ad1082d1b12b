"""Numbers and states in words. The rule: no number that means nothing (0, inf, nan) stands where a sentence should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo

from proto.plan import DECLINE_CODES, short_name

NO_GUARANTEE = "no guarantee"
PHASES: dict[str, str] = {  # in the order of a round
    "join": "joining",
    "broadcast": "model out",
    "train": "training",
    "advertise": "keys",
    "share": "key shares",
    "mask": "masked update",
    "confirm": "survivor list",
    "reveal": "opening the sum",
    "result": "result",
    "evaluate": "evaluation",
}


def phase(name: str) -> str:
    """A phase as people call it; unknown names pass through."""
    return PHASES.get(name, name)


def party(uri: str) -> str:
    """A party's short name."""
    return short_name(uri)


def listing(names: Sequence[str]) -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """1 round, 2 rounds."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {plural or noun + 's'}"


def size(count: float) -> str:
    """Bytes with a decimal unit: 9.6 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.{0 if count >= 100 * scale else 1}f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """2 min 10 s; milliseconds below one second."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def age(since: datetime, now: datetime) -> str:
    """How long ago, coarsely, so that a page does not flicker every second."""
    seconds = max((now - since) / timedelta(seconds=1), 0.0)
    if seconds < 10:
        return "just now"
    for limit, word, unit_s in ((60, "s", 10), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            count = int(seconds // unit_s)
            return f"{count * 10 if word == 's' else count} {word} ago"
    return f"{counted(int(seconds // 86400), 'day')} ago"


def moment(at: datetime, zone: tzinfo) -> str:
    """21 Nov 2026 14:32, on the reader's clock."""
    local = at.astimezone(zone)
    return f"{local.day} {local:%b %Y %H:%M}"


def clock(at: datetime, zone: tzinfo) -> str:
    """14:32:05, on the reader's clock."""
    return f"{at.astimezone(zone):%H:%M:%S}"


def epsilon(value: float) -> str:
    """Two decimals rounded up, never down; `no guarantee` where there is none."""
    if math.isinf(value) or math.isnan(value):
        return NO_GUARANTEE
    return f"{math.ceil(value * 100 - 1e-9) / 100:.2f}"


def plain(value: float) -> str:
    """A parameter without trailing zeros: 8, 1.1, 1e-05 as 1e-5."""
    mantissa, _, exponent = f"{value:g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def percent(share: float) -> str:
    """34 %; below one percent with one decimal."""
    return f"{share * 100:.1f} %" if 0 < share < 0.01 else f"{share * 100:.0f} %"


def decline(code: str) -> str:
    """Why a hospital declined, in words."""
    return DECLINE_CODES.get(code, code)
