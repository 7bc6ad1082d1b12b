"""A coordinator that draws known session ids and kills itself (SIGKILL) once in every phase, in the middle of its answers.

Exists in the tests only; the installed package has no such entry. Usage: killed_coordinator.py COORDINATOR_TOML FOLDER PHASE...
FOLDER remembers the phases in which it died already, since a killed process remembers nothing.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

import coordinator.run
from coordinator import cli
from coordinator.run import Run
from coordinator.state import Phase, Standing


class KilledRun(Run):
    """Dies at the first answer of each phase that it was told, after that answer was stored and before it is acknowledged."""

    def __init__(self, config, rand, **given):
        del rand
        super().__init__(
            config, lambda size: hashlib.sha256(b"session %d" % self.store.sessions_used()).digest()[:size], **given
        )
        self.dead, self.phases = Path(sys.argv[2]), set(sys.argv[3:])

    def _step(self, event):
        super()._step(event)
        phase, session = self.state.phase, self.state.session
        if session is None:
            half = any(member.standing is Standing.READY for member in self.state.members.values())
        else:
            half = session.answered or phase is Phase.OPENING
        if phase in self.phases and half:
            mark = self.dead / phase.value
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    coordinator.run.Run = KilledRun
    cli.run(Path(sys.argv[1]), until_finished=True)
