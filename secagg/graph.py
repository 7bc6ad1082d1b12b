"""Who holds shares of whose secrets, and which pairs share a mask: the complete graph, or a sparse one (README, Graph).

Rule: the edges follow from the signed adverts and from nothing else, so that everybody derives the same ones. In a sparse
session each member draws its own outgoing neighbours and signs them in its advert (Bell et al., *Secure Single-Server
Aggregation with (Poly)Logarithmic Overhead*, 2020, section 4). Shares of its secrets go to those alone, since the drawing
is its own: colluders can choose a member as their neighbour, but not make themselves holders of its shares. A mask is
shared along an edge in either direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.errors import LocalError, TooFewSurvivors
from secagg.shamir import Rand, draw

TICKET_BYTES = 16  # one ticket for each other member; two are alike with probability 2**-128


@dataclass(frozen=True, slots=True)
class Complete:
    """Every pair of members shares a mask, and every member holds shares of every other."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """Each member draws `degree` others; any `neighbour_threshold` of them recover its secret. `bounds` chooses both."""

    degree: int
    neighbour_threshold: int

    def __post_init__(self) -> None:
        if not 2 <= self.neighbour_threshold <= self.degree:
            raise LocalError(
                f"a sparse graph needs 2 <= neighbour_threshold <= degree, not {self.neighbour_threshold} and {self.degree}"
            )


GraphRule = Complete | Sparse


def draw_neighbours(rule: GraphRule, place: int, members: int, rand: Rand) -> tuple[int, ...]:
    """README, step 1.2: the outgoing neighbours of the member at `place`, as ascending places; () in the complete graph.

    Every other member gets a ticket of 16 random bytes, in the order of places; the smallest `degree` tickets are drawn.
    """
    if isinstance(rule, Complete):
        return ()
    others = [other for other in range(members) if other != place]
    tickets = draw(rand, TICKET_BYTES * len(others))
    ticket_of = {other: tickets[TICKET_BYTES * at : TICKET_BYTES * (at + 1)] for at, other in enumerate(others)}
    return tuple(sorted(sorted(others, key=ticket_of.__getitem__)[: rule.degree]))


def are_neighbours(rule: GraphRule, place: int, members: int, neighbours: Sequence[int]) -> bool:
    """Whether these can be the outgoing neighbours of the member at `place`: distinct, ascending, others, `degree` of them."""
    if isinstance(rule, Complete):
        return not neighbours
    ascending = list(neighbours) == sorted(set(neighbours))
    return (
        len(neighbours) == rule.degree
        and ascending
        and 0 <= neighbours[0] <= neighbours[-1] < members
        and place not in neighbours
    )


class Graph(ABC):
    """The edges among the members that advertised. All answers are names in the order of names."""

    def __init__(self, advertised: Iterable[str]) -> None:
        self.advertised = tuple(sorted(advertised))
        self._row = {party: row for row, party in enumerate(self.advertised)}

    def __contains__(self, party: str) -> bool:
        return party in self._row

    @abstractmethod
    def receivers(self, party: str) -> tuple[str, ...]:
        """Members to whom `party` sends a box; they and itself hold shares of its secrets."""

    @abstractmethod
    def sends(self, party: str, reader: str) -> bool:
        """Whether `reader` is one of the receivers of `party`; both have advertised."""

    @abstractmethod
    def senders(self, party: str) -> tuple[str, ...]:
        """Members that send `party` a box."""

    @abstractmethod
    def masked_with(self, party: str) -> tuple[str, ...]:
        """Members with whom `party` shares a mask."""

    @abstractmethod
    def check_kept(self, parties: Sequence[str], present: Iterable[str], phase: str) -> None:
        """TooFewSurvivors where one of `parties` has fewer than neighbour_threshold receivers among `present`."""


class CompleteGraph(Graph):
    """Everybody with everybody; the threshold of the whole roster is the only one."""

    def receivers(self, party: str) -> tuple[str, ...]:
        """Every other member."""
        row = self._row[party]
        return self.advertised[:row] + self.advertised[row + 1 :]

    def sends(self, party: str, reader: str) -> bool:
        """To every other member."""
        return party != reader

    def senders(self, party: str) -> tuple[str, ...]:
        """Every other member."""
        return self.receivers(party)

    def masked_with(self, party: str) -> tuple[str, ...]:
        """Every other member."""
        return self.receivers(party)

    def check_kept(self, parties: Sequence[str], present: Iterable[str], phase: str) -> None:
        """Nothing to check: whoever counts the survivors has counted the holders."""


class SparseGraph(Graph):
    """Edges from drawn neighbours. `outgoing` gives the places that each advertised member drew."""

    def __init__(self, rule: Sparse, roster: Sequence[str], outgoing: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(outgoing)
        self._need = rule.neighbour_threshold
        self._roster = roster
        self._outgoing = outgoing
        self._place = {party: place for place, party in enumerate(roster)}
        self._drawn: NDArray[np.int64] = np.array([outgoing[party] for party in self.advertised], dtype=np.int64)
        # rows sorted by the place they drew: the senders of a place are one run of `_drawers`, in the order of names
        flat = self._drawn.ravel()
        order = np.argsort(flat, kind="stable")
        self._drawers = order // rule.degree
        self._runs = np.searchsorted(flat[order], np.arange(len(roster) + 1))

    def receivers(self, party: str) -> tuple[str, ...]:
        """The advertised ones among the neighbours that it drew."""
        drawn = [self._roster[place] for place in self._outgoing[party]]
        return tuple([other for other in drawn if other in self._row])

    def sends(self, party: str, reader: str) -> bool:
        """To the neighbours that it drew."""
        return self._place[reader] in self._outgoing[party]

    def senders(self, party: str) -> tuple[str, ...]:
        """Members that drew it."""
        place = self._place[party]
        return tuple([self.advertised[row] for row in self._drawers[self._runs[place] : self._runs[place + 1]].tolist()])

    def masked_with(self, party: str) -> tuple[str, ...]:
        """Either direction."""
        return tuple(sorted({*self.receivers(party), *self.senders(party)}))

    def check_kept(self, parties: Sequence[str], present: Iterable[str], phase: str) -> None:
        """All parties at once: this is asked about everybody, by everybody."""
        here = np.zeros(len(self._roster), dtype=np.bool_)
        here[[self._place[party] for party in present]] = True
        kept = here[self._drawn[[self._row[party] for party in parties]]].sum(axis=1)
        for party, count in zip(parties, kept.tolist(), strict=True):
            if count < self._need:
                text = f"{party} has {count} of its neighbours left where {self._need} are needed to recover its secret"
                raise TooFewSurvivors(phase, text)


def graph_of(rule: GraphRule, roster: Sequence[str], outgoing: Mapping[str, tuple[int, ...]]) -> Graph:
    """The graph of one session from its adverts' neighbours."""
    return CompleteGraph(outgoing) if isinstance(rule, Complete) else SparseGraph(rule, roster, outgoing)
