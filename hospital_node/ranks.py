"""How many processes of one hospital train a round together, as training sees it: usually one.

Rule: however many there are, the round is the same mechanism. Coins come from one key a step, every drawn patient is in exactly
one process, sums of clipped gradients are added up, and noise is added once, by the first process. process_group.py is the
other kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.noise import KEY_BYTES, Rand, StepCoins

Patients = TypeVar("Patients", bound=Sequence[Any])


class Ranks(Protocol):
    """The processes of a hospital in one round."""

    def round(self, patients: Sequence[Any]) -> AbstractContextManager[None]:
        """The whole round, from before the first step until after the last; whatever ends it early ends it everywhere."""
        ...

    def key(self, rand: Rand) -> bytes:
        """The key of the next step's coins, the same in every process; only the first one draws from `rand`."""
        ...

    def share(self, patients: Patients, coins: StepCoins, inverse_rate: int) -> Patients | Sequence[Any]:
        """Those of `patients` that this process has to look at in a step."""
        ...

    def optimizer(self, kind: type[PatientOptimizer]) -> Callable[..., PatientOptimizer]:
        """What makes the optimizer instead of `kind`: the same, with one sum and one noise for all processes."""
        ...


class OneProcess:
    """A round in one process. Implements Ranks."""

    @contextmanager
    def round(self, patients: Sequence[Any]) -> Iterator[None]:  # noqa: ARG002
        """Nobody else waits."""
        yield

    def key(self, rand: Rand) -> bytes:
        """A new one."""
        return rand(KEY_BYTES)

    def share(self, patients: Patients, coins: StepCoins, inverse_rate: int) -> Patients:  # noqa: ARG002
        """All of them; the step itself asks the coins."""
        return patients

    def optimizer(self, kind: type[PatientOptimizer]) -> Callable[..., PatientOptimizer]:
        """Itself."""
        return kind


ONE_PROCESS = OneProcess()
