"""What parties are told: one frozen value for each order of proto/federation.proto.

The engine decides in these values; the service alone turns them into protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from secagg.messages import Advert, Confirmation, ShareSet, UploadSeal


@dataclass(frozen=True, slots=True)
class Seat:
    """One member of a masking session, as the session context binds it."""

    uri: str
    public_key: bytes  # SubjectPublicKeyInfo, DER, as seen in the TLS session
    weight: int
    base_digest: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do; the reason is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Train:
    """Train on the model of this digest and report ready. `anew` (buffered rounds): and let go of what is of an older one."""

    round: int
    base_digest: bytes
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """A masking session begins: advertise keys."""

    session: bytes
    round: int
    members: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """Check the adverts and seal shares for their senders."""

    session: bytes
    adverts: tuple[Advert, ...]


@dataclass(frozen=True, slots=True)
class Mask:
    """Open the boxes, commit, upload. `sets` is whole; each reader is sent its own boxes only."""

    session: bytes
    sets: tuple[ShareSet, ...]


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a survivor signed at the end of its upload, for the members that hold its shares."""

    party: str
    seal: UploadSeal
    holders: frozenset[str]


@dataclass(frozen=True, slots=True)
class Confirm:
    """Sign the survivor list. `seals` is whole, and empty in the complete graph; each reader is sent those it has a use for."""

    session: bytes
    survivors: tuple[str, ...]
    seals: tuple[Sealed, ...] = ()


@dataclass(frozen=True, slots=True)
class Reveal:
    """Check the signatures and reveal one kind of share for each peer."""

    session: bytes
    confirmations: tuple[Confirmation, ...]


@dataclass(frozen=True, slots=True)
class RoundResult:
    """How a round ended. Where `opened` is false nothing was opened and the update is gone."""

    round: int
    session: bytes
    survivors: tuple[str, ...]
    sum_digest: bytes
    model_digest: bytes
    opened: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure this model on public data (evaluators only)."""

    round: int
    model_digest: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over."""

    reason: str


Order: TypeAlias = Wait | Train | Open | Share | Mask | Confirm | Reveal | RoundResult | Evaluate | Finished
