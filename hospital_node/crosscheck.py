"""A second opinion on epsilon, by another library and another method: Opacus' composition of privacy random variables (PRV).

Rule: it is shown beside the first figure and decides nothing. Opacus (Gopi, Lee and Wutschitz 2021, arXiv 2106.02848) shares no
code with dp-accounting, so a fault of either shows as a difference. It brings torch along: only the node's own commands ask.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Final

from hospital_node.accounting import Mechanism, epsilon, is_shared, merged

LARGEST_EPSILON: Final = 20.0  # beyond it nobody needs a second opinion, and it would take minutes
MOST_STEPS: Final = 20_000
ERROR: Final = 0.01  # of Opacus' figure, which is an upper bound that includes it
TOLERANCE: Final = 0.02  # relative: twice what the two libraries differ by


def prv_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float | None:
    """Opacus' upper bound on epsilon at `delta`; None where it has none to give, infinite without noise.

    That is beyond LARGEST_EPSILON or MOST_STEPS, and where noise was shared.
    """
    canonical = merged(mechanisms)
    if not canonical:
        return 0.0
    first = epsilon(canonical, delta)
    if math.isinf(first):
        return math.inf
    if is_shared(canonical):  # it reads continuous noise, which shares of discrete noise only resemble
        return None
    if first > LARGEST_EPSILON or sum(one.steps for one in canonical) > MOST_STEPS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus warns of its own imports
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(one.noise_multiplier, one.sampling_rate, one.steps) for one in canonical]
        return float(accountant.get_epsilon(delta, eps_error=ERROR))


def agree(pld: float, prv: float | None) -> bool:
    """Whether two opinions are the same figure, as far as they can be."""
    if prv is None or pld == prv:
        return True
    return math.isfinite(prv) and abs(prv - pld) <= 2 * ERROR + TOLERANCE * pld
