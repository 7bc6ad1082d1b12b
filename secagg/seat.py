"""One member's place in one session: the parameters, its name, its signing key and its own policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from secagg import identity
from secagg.identity import Purpose
from secagg.params import RoundParams
from secagg.policy import Policy, check_cohort


@dataclass(frozen=True, slots=True, repr=False)
class Seat:
    """Carried unchanged through all states of a node."""

    params: RoundParams
    me: str
    signing_key: ec.EllipticCurvePrivateKey
    policy: Policy
    signed_under: bytes | None = None  # what stands for the session context in signatures (step 3.6); None: itself

    @property
    def place(self) -> int:
        """My index in the roster."""
        return self.params.place(self.me)

    def sign(self, purpose: Purpose, statement: bytes) -> bytes:
        """My signature over a statement in this session."""
        context = self.params.context() if self.signed_under is None else self.signed_under
        return identity.sign(self.signing_key, purpose, context, statement)

    def check_cohort(self, cohort: Sequence[str], phase: str) -> None:
        """My own policy on a list of members; TooFewSurvivors where it falls short."""
        check_cohort(self.params, cohort, self.me, self.policy, phase)
