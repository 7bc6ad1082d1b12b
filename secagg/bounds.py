"""How sparse a graph may be: the probability that a sparse session shows more than a sum, and that it cannot be opened.

Adversary: the coordinator and c members that were its own before anybody drew neighbours. It then sees all neighbours and
chooses who drops out and when, within the rules that nodes enforce: the survivor list U has t signatures of the n members,
c < 2t - n, and every survivor has at least t_k of its k outgoing neighbours in U. It wins one of two ways (README, Graph):

1. an honest member has t_k corrupt neighbours: they hold both of its secrets;
2. the honest survivors fall into two parts without a mask between them: the smaller part, S of size s, is opened alone.

For one given S two bounds hold. Inside S every member found t_k of its k neighbours among S and the colluders, whatever was
dropped: P[Hyp(n - 1, c + s - 1, k) >= t_k]^s. And some set T of t - c - s honest members has no edge with S:
(C(n-1-|T|, k) / C(n-1, k))^s (C(n-1-s, k) / C(n-1, k))^|T|, times the ways to choose T. `privacy_log2` adds the smaller of the
two over all S of two members and more, and the first for every single member: that is event 1, and a single member without an
honest neighbour is in event 1 as well. Hypergeometric sums are exact, in log space.
After Bell et al. 2020, section 3.1 and 4, who bound the same events for dropouts that the adversary does not choose.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from secagg.errors import LocalError
from secagg.graph import Complete, GraphRule, Sparse
from secagg.params import MAX_PARTIES

PRIVACY_BITS = 40  # in all sessions together the adversary wins with probability 2**-40 at most
SESSIONS = 1 << 10  # a coordinator may open and abandon sessions until it likes the neighbours: each is one more try
FAILURE_BITS = 20  # one session in a million cannot be opened although no more dropped out than was stated
LARGEST_COMPLETE = 100  # members; beyond, the pairs cost more than the vector
DROPOUT_SHARE = 0.2  # of the members between adverts and reveals, where nobody states another rate
ALLOWED_LOG2 = -PRIVACY_BITS - log2(SESSIONS)  # for one session

Logs = NDArray[np.float64]


def privacy_log2(members: int, threshold: int, colluders: int, rule: Sparse) -> float:
    """log2 of a bound on the probability that one session shows more than the sum over all honest survivors.

    Requires colluders < 2 * threshold - members and threshold - colluders >= 2, which `policy` checks.
    """
    honest, fewest = members - colluders, threshold - colluders  # fewest honest survivors on a signed list
    binomial = _Binomials(members)
    small = np.arange(1, fewest // 2 + 1)  # sizes s; a larger smaller part contains one of the last size
    rest = fewest - small
    choices = binomial.log2(honest, small)
    drawn = np.arange(rule.neighbour_threshold, rule.degree + 1)[:, None]
    among = (colluders + small - 1)[None, :]
    tails = _sum(binomial.log2(among, drawn) + binomial.log2(members - 1 - among, rule.degree - drawn), axis=0)
    every = binomial.log2(members - 1, rule.degree)
    enclosed = choices + small * np.minimum(tails - every, 0.0)
    apart = choices + binomial.log2(honest - small, rest)
    apart = apart + small * (binomial.log2(members - 1 - rest, rule.degree) - every)
    apart = apart + rest * (binomial.log2(members - 1 - small, rule.degree) - every)
    return float(_sum(np.concatenate([enclosed[:1], np.minimum(enclosed, apart)[1:], apart[-1:]]), axis=0))


def failure_log2(members: int, lost: int, rule: Sparse) -> float:
    """log2 of a bound on the probability that some secret cannot be recovered, where `lost` members drop out by chance."""
    binomial = _Binomials(members)
    left = max(0, members - lost - 1)  # of the others of a member that is left itself
    drawn = np.arange(min(rule.neighbour_threshold, rule.degree + 1))
    tail = binomial.log2(left, drawn) + binomial.log2(members - 1 - left, rule.degree - drawn)
    return log2(members) + float(_sum(tail, axis=0)) - float(binomial.log2(members - 1, rule.degree))


def choose(members: int, corrupt_share: float, dropout_share: float, threshold: int | None = None) -> Sparse:
    """The smallest degree, and for it the smallest threshold, that keep both promises at the stated rates.

    `corrupt_share` of the members work for the coordinator, `dropout_share` drop out between adverts and reveals;
    `threshold` is that of the list, two thirds where it is not given. LocalError where no sparse graph does.
    """
    if not (0 <= corrupt_share < 1 and 0 <= dropout_share < 1 and 3 <= members <= MAX_PARTIES):
        raise LocalError("rates are shares of 3 members or more, at least 0 and below 1")
    threshold = 2 * members // 3 + 1 if threshold is None else threshold
    colluders, lost = ceil(corrupt_share * members - 1e-9), ceil(dropout_share * members - 1e-9)
    if not (colluders < 2 * threshold - members and threshold - colluders >= 2):
        raise LocalError(f"a threshold of {threshold} of {members} does not withstand {colluders} colluders in any graph")
    for degree in range(2, members):
        rule = _least_threshold(members, colluders, degree)
        while rule is not None and failure_log2(members, lost, rule) <= -FAILURE_BITS:
            if privacy_log2(members, threshold, colluders, rule) <= ALLOWED_LOG2:
                return rule
            rule = Sparse(degree, rule.neighbour_threshold + 1) if rule.neighbour_threshold < degree else None
    raise LocalError(f"no sparse graph of {members} members withstands {colluders} colluders and {lost} dropouts")


@lru_cache(maxsize=64)
def graph_for(members: int, threshold: int, colluders: int) -> GraphRule:
    """The graph of a session of this size under a plan: complete up to 100 members or where no sparse graph is enough."""
    if members <= LARGEST_COMPLETE:
        return Complete()
    try:
        return choose(members, colluders / members, DROPOUT_SHARE, threshold)
    except LocalError:
        return Complete()


@lru_cache(maxsize=64)
def is_private(members: int, threshold: int, colluders: int, rule: GraphRule) -> bool:
    """Whether a session on this graph is secret against so many colluders; the complete graph always is (README, Bounds)."""
    return isinstance(rule, Complete) or privacy_log2(members, threshold, colluders, rule) <= ALLOWED_LOG2


def _least_threshold(members: int, colluders: int, degree: int) -> Sparse | None:
    """The smallest threshold that some member's corrupt neighbours reach with the allowed probability only."""
    binomial, corrupt = _Binomials(members), np.arange(degree + 1)
    terms = binomial.log2(colluders, corrupt) + binomial.log2(members - 1 - colluders, degree - corrupt)
    allowed = ALLOWED_LOG2 - log2(members - colluders) + float(binomial.log2(members - 1, degree))
    fits = [need for need in range(2, degree + 1) if float(_sum(terms[need:], axis=0)) <= allowed]
    return Sparse(degree, fits[0]) if fits else None


class _Binomials:
    """log2 of binomial coefficients up to `members`, minus infinity where they are zero."""

    def __init__(self, members: int) -> None:
        self._factorials: Logs = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, members + 1)))])

    def log2(self, total: NDArray[np.int64] | int, part: NDArray[np.int64] | int) -> Logs:
        """log2 C(total, part), entry by entry."""
        total, part = np.asarray(total), np.asarray(part)
        rest = total - part
        valid = (part >= 0) & (rest >= 0)
        logs = self._factorials[total] - self._factorials[np.where(valid, part, 0)] - self._factorials[np.where(valid, rest, 0)]
        return np.where(valid, logs, -np.inf)


def _sum(logs: Logs, axis: int) -> Logs:
    """log2 of the sum of numbers given by their log2."""
    top = logs.max(axis=axis, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):  # a sum of zero has the log minus infinity
        total: Logs = np.log2(np.exp2(logs - shift).sum(axis=axis))
    return total + shift
