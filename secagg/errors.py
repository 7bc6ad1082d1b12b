"""Errors of the masking protocol. Each says whose fault it is: our caller's, a peer's, or nobody's.

Nothing relevant to security returns a boolean: a check either returns nothing or raises one of these three.
"""

from __future__ import annotations

UNKNOWN = "unknown"  # culprit of a violation that cannot be pinned on the holder of one signing key

REFUSAL_CODES = {
    "policy": "the session does not meet this party's own policy",
    "unpinned-key": "a member's key is not the one confirmed by this party's people",
    "session-repeated": "the session id was seen before",
    "unknown-party": "a message or list names somebody outside the roster",
    "duplicate-party": "a party appears twice in one list",
    "malformed": "a field has the wrong length or form",
    "bad-signature": "a signature does not fit the statement in this session",
    "repeated-key": "a key or commitment appears twice among the adverts",
    "weak-key": "a Diffie-Hellman key of low order or in a non-canonical form",
    "bad-neighbours": "a member's neighbours are not distinct other members, as many as the graph asks for",
    "own-message-altered": "this party's own message came back altered or not at all",
    "altered-box": "a sealed box is not the one that its sender signed",
    "bad-box": "a box that its sender signed does not open or holds nonsense",
    "not-on-list": "this party is missing from the survivor list",
    "never-shared": "the survivor list names a party that shared nothing",
    "never-uploaded": "no signed upload over this session's sharers is shown for a member on the survivor list",
    "second-question": "a phase that was answered is asked again with other content",
    "bad-upload": "an upload does not fit its signed digest or its size",
    "wrong-shares": "the revealed shares are not one of the right kind for each sharer",
    "unrecoverable": "the revealed shares do not determine the secret that was committed",
    "bad-sum": "the opened sum is outside the range that honest members can reach",
    "result-altered": "the published result is not about the list that was signed",
}


class SecaggError(Exception):
    """Base of all errors of this package; only its children are raised."""


class LocalError(SecaggError):
    """Our own caller is wrong: bad parameters, an update that cannot be sent, a state used twice."""


class RemoteError(SecaggError):
    """Another party broke the protocol.

    `party` is the culprit, or UNKNOWN where the evidence is not under one key (the coordinator relays everything and
    signs nothing). `code` is a key of REFUSAL_CODES, `text` a sentence for people.
    """

    def __init__(self, party: str, code: str, text: str) -> None:
        assert code in REFUSAL_CODES, code
        super().__init__(f"{text} (culprit: {party}, {code})")
        self.party = party
        self.code = code
        self.text = text


class TooFewSurvivors(SecaggError):
    """Not enough parties are left for the session to go on; nobody's fault. `phase` is the one that cannot start."""

    def __init__(self, phase: str, text: str) -> None:
        super().__init__(f"{text} (before phase '{phase}')")
        self.phase = phase
        self.text = text
