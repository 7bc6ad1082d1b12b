"""What the round engine is told (events) and what it decides (effects): frozen values, no behaviour.

Messages inside events have been verified by the service already (coordinator/sessions.py); the engine counts and relays.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from coordinator.orders import Order
from proto.evaluation import LabelMean
from secagg.messages import Advert, Confirmation, ShareSet, UploadSeal
from secagg.messages import Revealed as RevealedShares


class Report(StrEnum):
    """Training state that a hospital reports."""

    TRAINING = "training"
    READY = "ready"
    DECLINED = "declined"
    FAILED = "failed"
    LEFT = "left"


# ---- events: who did what ----


@dataclass(frozen=True, slots=True)
class Joined:
    """A hospital connected and was admitted; the key is that of its TLS session."""

    party: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Revoked:
    """A hospital was taken from the list of confirmed keys, or is listed with another key."""

    party: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A hospital was heard of."""

    party: str


@dataclass(frozen=True, slots=True)
class Reported:
    """Training state. `base_digest` names the model trained on, where ready; `code` why, where declined or failed."""

    party: str
    round: int
    report: Report
    base_digest: bytes = b""
    code: str = ""


@dataclass(frozen=True, slots=True)
class SessionNamed:
    """The session id drawn for a NewSession effect is on disk."""

    session: bytes
    roster: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SessionImpossible:
    """The session parameters of this roster do not hold (overflow, bounds); nothing was sent."""

    roster: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Advertised:
    """A verified advert."""

    party: str
    session: bytes
    advert: Advert


@dataclass(frozen=True, slots=True)
class Shared:
    """A verified set of sealed shares."""

    party: str
    session: bytes
    share_set: ShareSet


@dataclass(frozen=True, slots=True)
class UploadAccepted:
    """A whole upload lies in the spool, its digest and signature verified."""

    party: str
    session: bytes
    seal: UploadSeal | None = None  # relayed to those who hold the member's shares, in sparse sessions
    size_bytes: int = 0  # of its words, for people


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A verified signature over the survivor list."""

    party: str
    session: bytes
    confirmation: Confirmation


@dataclass(frozen=True, slots=True)
class Revealed:
    """Verified shares of the peers of one survivor. The engine counts them and never keeps them."""

    party: str
    session: bytes
    shares: RevealedShares | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A member will not go on. `culprit` is another member's URI, or anything else where nobody is named."""

    party: str
    session: bytes
    code: str
    culprit: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """The sum of a session is open; its mean and the next model are on disk. `sums`: of an evaluation that rode along."""

    session: bytes
    sum_digest: bytes
    model_digest: bytes
    sums: tuple[float, ...] = ()
    mean_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class SessionBroken:
    """The session cannot go on for a reason found outside the engine, such as shares that do not combine."""

    session: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class RoundsHeld:
    """The coordinator's people want no further round to be opened; `said` is who and why."""

    said: str


@dataclass(frozen=True, slots=True)
class RoundsLetOn:
    """They let rounds go on."""

    by: str


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """They end the round under way."""

    round: int
    by: str
    reason: str


Asked: TypeAlias = RoundsHeld | RoundsLetOn | RoundEnded
Answer: TypeAlias = Advertised | Shared | UploadAccepted | Confirmed | Revealed
Event: TypeAlias = (
    Joined
    | Revoked
    | Seen
    | Reported
    | SessionNamed
    | SessionImpossible
    | Answer
    | Refused
    | Opened
    | SessionBroken
    | Asked
    | Tick
)


# ---- effects: what the service has to do, in this order, the stored ones in one transaction ----


@dataclass(frozen=True, slots=True)
class Instruct:
    """Put an order into a party's mailbox."""

    party: str
    order: Order


@dataclass(frozen=True, slots=True)
class NewSession:
    """Draw a session id, store it, and come back with SessionNamed."""

    round: int
    roster: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CommitPoint:
    """From now on members may release their updates: a restart must not offer this round again."""

    session: bytes


@dataclass(frozen=True, slots=True)
class CloseList:
    """The survivor list of a session is fixed; no further upload counts."""

    session: bytes
    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenSum:
    """Unmask the sum of the survivors, once, and come back with Opened or SessionBroken."""

    session: bytes
    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AbortSession:
    """Forget a session and its spooled uploads."""

    session: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Name the model of a round, and the sum and mean behind it."""

    round: int
    session: bytes
    survivors: tuple[str, ...]
    sum_digest: bytes
    model_digest: bytes
    mean_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class SaveRound:
    """Store what is known of a round; `state`: training, masking, opened, aborted."""

    number: int
    state: str
    cohort: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    model_digest: bytes | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SaveValidation:
    """Store what the hospitals' validation patients say of the model of `model_round`; it rode in `round`."""

    round: int
    model_round: int
    hospitals: int  # in the sum
    means: tuple[LabelMean, ...]


@dataclass(frozen=True, slots=True)
class SavePhase:
    """Store how long a phase took."""

    round: int
    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """One event for people, stored and logged."""

    round: int
    kind: str
    text: str
    party: str = ""
    phase: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over."""

    reason: str


Effect: TypeAlias = (
    Instruct
    | NewSession
    | CommitPoint
    | CloseList
    | OpenSum
    | AbortSession
    | Publish
    | SaveRound
    | SaveValidation
    | SavePhase
    | Record
    | Finish
)
