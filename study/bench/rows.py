"""Figures of a federation's rounds, from the coordinator's store and the hospitals' own ledgers, and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from coordinator import store
from coordinator.store import StoreReader
from hospital_node import ledger_rules as rules
from hospital_node.ledger import Ledger
from hospital_node.releases import Release
from proto.plan import Plan, role_of, short_name
from study.bench.cells import RoundRow

ENDED = frozenset({"opened", "aborted"})
OUT = frozenset({"declined", "failed"})


class RoundReader:
    """Makes the row of each ended round once, in order. `ledgers`: hospital's URI -> its ledger file."""

    def __init__(self, reader: StoreReader, plan: Plan, ledgers: Mapping[str, Path]) -> None:
        self._reader = reader
        self._plan = plan
        self._ledgers = ledgers
        self._epsilon = dict.fromkeys(ledgers, 0.0)  # of each hospital after the rounds read so far
        self.rows: list[RoundRow] = []

    def read_to(self, number: int) -> Sequence[RoundRow]:
        """Rows not read before, the start included, up to an ended round. Raises StoreError, LedgerError."""
        ended = {row.number: row for row in self._reader.rounds()}
        fresh = [self._row(place, ended.get(place)) for place in range(len(self.rows), number + 1)]
        self.rows += fresh
        return fresh

    def ended(self) -> int:
        """The newest round that ended; 0 where none did."""
        return max((row.number for row in self._reader.rounds() if row.state in ENDED), default=0)

    def stopped(self) -> dict[str, str]:
        """Name -> reason of each hospital that declined or failed and has had no update since."""
        found: dict[str, str] = {}
        for event in self._reader.events():
            if event.kind in OUT:
                found[short_name(event.party)] = event.text.partition(f" {event.kind}: ")[2]
            elif event.kind == "ready":
                found.pop(short_name(event.party), None)
        return found

    def charged(self) -> tuple[tuple[Release, ...], ...]:
        """What each hospital's ledger was charged, of hospitals that were charged at all; nothing without a guarantee."""
        if self._plan.privacy.no_guarantee:
            return ()
        found = (rules.releases(Ledger.open_readonly(path).events()) for path in self._ledgers.values())
        return tuple(releases for releases in found if releases)

    def _row(self, number: int, ended: store.RoundRow | None) -> RoundRow:
        """Of the start (number 0) or of an ended round."""
        up, down = self._bytes(number)
        members = () if ended is None else ended.cohort
        seconds = 0.0 if ended is None or ended.ended_at is None else (ended.ended_at - ended.started_at).total_seconds()
        return RoundRow(
            round=number,
            survivors=len(ended.survivors) if ended is not None and ended.state == "opened" else 0,
            scores={row.label: list(row.per_case) for row in self._reader.scores(number)},
            epsilon=self._worst_epsilon(number, members),
            upload_bytes=up,
            download_bytes=down,
            seconds=seconds,
        )

    def _bytes(self, number: int) -> tuple[int, int]:
        """From and to all hospitals, as counted on the connection."""
        sums = {"up": 0, "down": 0}
        for row in self._reader.traffic(number):
            if role_of(row.party) == "hospital":
                sums[row.direction] += row.bytes
        return sums["up"], sums["down"]

    def _worst_epsilon(self, number: int, members: Sequence[str]) -> float | None:
        """Largest figure of any hospital after a round; only its members can have charged since the last one."""
        if self._plan.privacy.no_guarantee:
            return None
        for uri in members:
            self._epsilon[uri] = self._spent(self._ledgers[uri], number)
        worst = max(self._epsilon.values())
        return worst if math.isfinite(worst) else None

    def _spent(self, ledger: Path, number: int) -> float:
        """What the hospital's filter reads from its charges up to a round: the figure that decides about the next one."""
        events = Ledger.open_readonly(ledger).events()
        cap = rules.current_cap(events)
        assert cap is not None, "an approval with a guarantee sets a cap"
        charged = rules.releases(events, lambda charge: charge.round <= number)
        return rules.filter_of(events, cap).spent(charged)
