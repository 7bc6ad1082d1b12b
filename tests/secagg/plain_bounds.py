"""The bounds of sparse graphs a second time, in exact fractions and from the text of secagg/README.md alone."""

from fractions import Fraction
from math import comb


def hypergeometric(population, good, drawn, at_least):
    """P[at least so many good ones among `drawn` of `population`]."""
    ways = sum(comb(good, x) * comb(population - good, drawn - x) for x in range(at_least, drawn + 1) if x <= good)
    return Fraction(ways, comb(population, drawn))


def choose(total, part):
    return comb(total, part) if 0 <= part <= total else 0


def privacy(n, t, c, k, need):
    """What a coordinator with c colluders may win in one session: at most this."""
    honest, fewest, every = n - c, t - c, comb(n - 1, k)
    terms, last = [], Fraction(0)
    for s in range(1, fewest // 2 + 1):
        enclosed = choose(honest, s) * min(Fraction(1), hypergeometric(n - 1, c + s - 1, k, need)) ** s
        rest = fewest - s
        no_edge = Fraction(choose(n - 1 - rest, k), every) ** s * Fraction(choose(n - 1 - s, k), every) ** rest
        last = choose(honest, s) * choose(honest - s, rest) * no_edge
        terms.append(min(enclosed, last) if s > 1 else enclosed)
    return sum(terms) + last


def failure(n, lost, k, need):
    """Some member keeps fewer than `need` of its k neighbours where `lost` of n vanish by chance: at most this."""
    left = max(0, n - lost - 1)
    return n * (1 - hypergeometric(n - 1, left, k, need))
