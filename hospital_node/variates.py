"""The hospital's own control variate on disk, and the one that takes its place once a round is known to have counted.

Rules:
1. a variate is a function of updates that the ledger was charged for, of nothing else: `propose` is called after the commit,
   and a training that was given up leaves no trace;
2. `propose` is durable before the first masked byte leaves, so that a node that is killed later still knows what it sent;
3. a proposal takes the variate's place when the round's result has this hospital in the sum, and is dropped otherwise: then the
   coordinator's common variate has not moved by it either. A hospital that sits a round out keeps its variate;
4. both belong to one plan; under another plan a hospital begins at zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hospital_node.durable import sync_folder, write_whole
from hospital_node.logs import logger
from hospital_node.work import WorkFailed
from proto.layout import Layout, Vector
from proto.modelfile import Model, ModelFileError, encode_model, read_model
from proto.plan import Plan

PLAN, SESSION = "plan", "session"  # in a file's provenance


class VariatesDamaged(RuntimeError):
    """A variate that cannot be read; the text names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Variates:
    """The variate of one hospital under one plan. `kept` and `proposed` are files of its state folder."""

    kept: Path
    proposed: Path
    plan: Plan
    layout: Layout

    def own(self) -> Vector:
        """c_i. Raises VariatesDamaged."""
        model = self._read(self.kept)
        return np.zeros(self.layout.length, dtype=np.float32) if model is None else model.vector

    def propose(self, session: bytes, own: Vector) -> None:
        """Keep c_i+ beside c_i until the result of `session` is known (1, 2)."""
        write_whole(self.proposed, encode_model(Model(self.layout, own, {PLAN: self._name, SESSION: session.hex()})))

    def settle(self, session: bytes, *, counted: bool) -> None:
        """Take or drop what was proposed in `session`; anything else stays as it is (3)."""
        try:
            model = self._read(self.proposed)
        except VariatesDamaged:
            self.drop_unsettled()
            return
        if model is None or model.provenance.get(SESSION) != session.hex():
            return
        if counted:
            self.proposed.replace(self.kept)
            sync_folder(self.kept.parent)
        else:
            self.proposed.unlink()

    def drop_unsettled(self) -> None:
        """Before another round: a proposal whose result never came here is dropped, and people are told."""
        if self.proposed.exists():
            self.proposed.unlink()
            logger().warning("control variate out of step", reason="the result of the round that it belongs to never came")

    @property
    def _name(self) -> str:
        return self.plan.digest().hex()

    def _read(self, path: Path) -> Model | None:
        """None where there is none of this plan."""
        if not path.exists():
            return None
        try:
            model = read_model(path)
        except ModelFileError as error:
            raise VariatesDamaged(
                f"{path} is damaged: restore it from a copy, or delete it, and this hospital's control variate begins at zero"
            ) from error
        fits = model.provenance.get(PLAN) == self._name and model.layout == self.layout
        return model if fits else None


def drift_of(variates: Variates | None, common: Vector | None) -> Vector | None:
    """C - c_i of a round that begins, where the plan has control variates. Raises WorkFailed."""
    if variates is None or common is None:
        return None
    variates.drop_unsettled()
    try:
        return common - variates.own()
    except VariatesDamaged as error:
        raise WorkFailed("training-failed", f"{error}.") from error
