"""The masking protocol: members send integers that look uniformly random, and only their sum can be opened.

numpy and cryptography only; no torch, no sockets, no disk, no clock, no globals. `node` is a member's side,
`coordinate` the coordinator's, `rehearse.run_round` the whole protocol in one function, README.md the specification.
"""

from secagg.errors import REFUSAL_CODES, UNKNOWN, LocalError, RemoteError, SecaggError, TooFewSurvivors
from secagg.graph import Complete, GraphRule, Sparse
from secagg.keystream import Door, faster_door
from secagg.messages import (
    Advert,
    Box,
    BoxDigests,
    Confirmation,
    Revealed,
    RevealedShare,
    ShareKind,
    ShareSet,
    UploadSeal,
)
from secagg.params import PROTOCOL_VERSION, Quantizer, RoundParams, Vector, Words, collusion_bound
from secagg.policy import Policy, effective_cohort

__all__ = [
    "PROTOCOL_VERSION",
    "REFUSAL_CODES",
    "UNKNOWN",
    "Advert",
    "Box",
    "BoxDigests",
    "Complete",
    "Confirmation",
    "Door",
    "GraphRule",
    "LocalError",
    "Policy",
    "Quantizer",
    "RemoteError",
    "Revealed",
    "RevealedShare",
    "RoundParams",
    "SecaggError",
    "ShareKind",
    "ShareSet",
    "Sparse",
    "TooFewSurvivors",
    "UploadSeal",
    "Vector",
    "Words",
    "collusion_bound",
    "effective_cohort",
    "faster_door",
]
