"""What a node holds of the one plan that it serves at a time: its study, its update, its training, its control variate."""

from __future__ import annotations

from dataclasses import dataclass

from hospital_node.local_training import LocalTraining
from hospital_node.release import ReleaseDesk
from hospital_node.study import Study
from hospital_node.variates import Variates


@dataclass(frozen=True, slots=True)
class AtWork:
    """Everything that belongs to one plan; another plan replaces it as a whole."""

    study: Study
    desk: ReleaseDesk
    training: LocalTraining
    variates: Variates | None

    @property
    def idle(self) -> bool:
        """Whether no round is under way here."""
        return not self.training.busy and self.desk.is_empty

    def drop(self) -> None:
        """Forget the round under way and its update."""
        self.training.give_up()
        self.desk.discard()
