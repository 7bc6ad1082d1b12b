"""README's ten commands, taken out of its text and typed in its order by a coordinator and three hospitals.

Nothing is simulated: installed commands, real TLS on loopback, real masking. What is replaced in the documents is listed in
`Play.placed` (hosts and port), `SMALL` (the plan's size) and `Play.said` (the words that people read to each other).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from study import synthetic
from study.processes import Child, Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
HOSPITALS = ("st-anna", "nordklinik", "lakeside")
PATIENTS = 4
STEP = re.compile(r"# (\d) · (coordinator|each hospital): .*")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORDS_OF = re.compile(r"<words of (?:the )?([a-z-]+)>")
SHOWN_WORDS = re.compile(r"^key words +(\S+)$", re.MULTILINE)
SMALL = {
    "rounds": "1",
    "channels": "[4, 8, 8]",
    "spacing_xyz_mm": "[8.0, 8.0, 8.0]",
    "patch_zyx": "[16, 16, 16]",
    "local_steps": "1",
    "phase_deadline_s": "120.0",
    "lost_after_s": "120.0",
}
COMMAND_WITHIN_S = 300
RELEASE_WITHIN_S = 300


@dataclass(frozen=True)
class Step:
    """One numbered step of the README: who acts and what is typed."""

    actor: str
    commands: tuple[str, ...]


def section() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.partition("\n## Two machines, ten commands\n")[2].partition("\n## ")[0]


def steps() -> list[Step]:
    """The first block of the section, by its numbered comments."""
    found: list[tuple[str, list[str]]] = []
    for line in FENCE.findall(section())[0].splitlines():
        if match := STEP.fullmatch(line):
            assert int(match[1]) == len(found) + 1, line
            found.append((match[2], []))
        elif line:
            found[-1][1].append(line)
    return [Step(actor, tuple(commands)) for actor, commands in found]


def looks() -> dict[str, str]:
    """The second block, by the command's second word: init-model, status, check, budget."""
    return {line.split()[1]: line for line in FENCE.findall(section())[1].splitlines()}


def shown_file(document: str, name: str) -> str:
    """The block of a package's README that begins with this file's name."""
    blocks: list[str] = FENCE.findall((ROOT / document).read_text(encoding="utf-8"))
    return next(block for block in blocks if block.startswith(f"# {name}"))


def plan_text() -> str:
    """As coordinator/README.md says: a template without anatomy and [start], after the lines that it shows."""
    template = (ROOT / "study/plans/chest-ct.toml").read_text(encoding="utf-8").partition("[start]")[0]
    text = shown_file("coordinator/README.md", "plan.toml") + re.sub(r"^anatomy.*\n", "", template, flags=re.MULTILINE)
    for key, value in SMALL.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Play:
    """Four folders as if on four machines, and what was read aloud so far."""

    folder: Path
    family: Family
    port: int = field(default_factory=free_port)
    words: dict[str, str] = field(default_factory=dict)
    running: dict[str, Child] = field(default_factory=dict)

    def home(self, party: str) -> Path:
        return self.folder / party

    def placed(self, text: str) -> str:
        """`text` with hosts and port of loopback instead of the README's."""
        places = {"coordinator.example.org": "localhost", "0.0.0.0": "127.0.0.1", "8443": str(self.port)}
        return re.sub("|".join(map(re.escape, places)), lambda match: places[str(match[0])], text)

    def said(self, command: str) -> str:
        return WORDS_OF.sub(lambda match: self.words[match[1]], command)

    def type(self, party: str, command: str) -> None:
        """One line of the README at one party; `run` stays, everything else ends well."""
        typed = shlex.split(self.placed(self.said(command)), comments=True)
        typed[0] = str(SCRIPTS / typed[0])
        if typed[1] == "run":
            self.running[party] = self.start(party, typed)
            return
        output = self.finish(party, typed)
        if typed[1] in {"init-ca", "request"}:
            self.words["root" if typed[1] == "init-ca" else party] = SHOWN_WORDS.findall(output)[0]

    def finish(self, party: str, typed: list[str]) -> str:
        done = subprocess.run(
            typed,
            cwd=self.home(party),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_WITHIN_S,
        )
        assert done.returncode == 0, f"{party}: {shlex.join(typed)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, party: str, typed: list[str]) -> Child:
        """In the party's own folder, as a person would stand there."""
        place = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.home(party))]
        return self.family.start(party, place + typed, self.folder / f"{party}.log")

    def step(self, one: Step, before_run: Callable[[], None]) -> None:
        if one.actor == "coordinator":
            for command in one.commands:
                if command.split()[1] == "run":
                    before_run()
                for line in for_each_signed(command):
                    self.type("coordinator", line)
            return
        for hospital in HOSPITALS:
            for command in one.commands:
                self.type(hospital, seen_from(hospital, command))

    def carry(self, source: Path, target: Path) -> None:
        """A file on its way between two sites."""
        target.write_bytes(source.read_bytes())

    def wait(self, what: str, reached: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + RELEASE_WITHIN_S
        while not reached():
            ended = [child for child in self.running.values() if child.process.poll()]
            if ended or time.monotonic() > deadline_s:
                logs = "\n".join(f"--- {child.name}\n{child.last_lines(12)}" for child in self.running.values())
                pytest.fail(f"{what}: it does not come\n{logs}")
            time.sleep(0.3)


def seen_from(hospital: str, command: str) -> str:
    """The README's line for st-anna as this hospital types it: the names change places."""
    swapped = {HOSPITALS[0]: hospital, hospital: HOSPITALS[0]}
    return re.sub("|".join(HOSPITALS), lambda match: swapped.get(match[0], match[0]), command)


def for_each_signed(command: str) -> list[str]:
    """A line of the coordinator that names one hospital's request is typed once for each."""
    return [seen_from(hospital, command) for hospital in HOSPITALS] if command.split()[1] == "approve" else [command]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    for index, hospital in enumerate(HOSPITALS):
        (tmp_path / hospital).mkdir()
        synthetic.write_cohort(tmp_path / hospital / "data", index, PATIENTS, 5)
    (tmp_path / "coordinator").mkdir()
    with Family(1) as family:
        yield Play(tmp_path, family)


def prepare_coordinator(play: Play) -> None:
    """Its two files as its README shows them, the start, and what it sends before it runs."""
    home = play.home("coordinator")
    (home / "plan.toml").write_text(plan_text())
    (home / "coordinator.toml").write_text(play.placed(shown_file("coordinator/README.md", "coordinator.toml")))
    play.type("coordinator", looks()["init-model"])
    for hospital in HOSPITALS:
        for path in (*home.glob("*.crt"), home / "plan.toml"):
            play.carry(path, play.home(hospital) / path.name)


def prepare_hospitals(play: Play) -> None:
    text = play.placed(shown_file("hospital_node/README.md", "node.toml"))
    for hospital in HOSPITALS:
        (play.home(hospital) / "node.toml").write_text(text)


def status(play: Play) -> dict[str, Any]:
    command = shlex.split(looks()["status"], comments=True)
    shown: dict[str, Any] = json.loads(play.finish("coordinator", [str(SCRIPTS / command[0]), *command[1:], "--json"]))
    return shown


def check_release(play: Play) -> None:
    [one] = status(play)["rounds"]
    assert one["state"] == "opened"
    assert {uri.rsplit("/", 1)[-1] for uri in one["survivors"]} == set(HOSPITALS)
    assert (play.home("coordinator") / "state" / "models" / f"{one['model_digest']}.f32").is_file()


def test_the_commands_of_the_readme_release_a_round(play: Play) -> None:
    first, second, third, fourth = steps()
    play.step(first, lambda: None)
    play.step(second, lambda: None)
    for hospital in HOSPITALS:
        play.carry(play.home(hospital) / "identity" / "node.csr", play.home("coordinator") / f"{hospital}.csr")
    play.step(third, lambda: prepare_coordinator(play))
    play.wait("the coordinator's store", (play.home("coordinator") / "state" / "address").is_file)
    prepare_hospitals(play)
    play.step(fourth, lambda: None)
    nodes = [play.running[hospital] for hospital in HOSPITALS]
    play.wait("the end of every node", lambda: not any(node.running for node in nodes))
    assert [node.process.returncode for node in nodes] == [0, 0, 0]
    check_release(play)
    play.type(HOSPITALS[0], looks()["budget"])
    play.type(HOSPITALS[0], looks()["check"])
    play.running["coordinator"].process.send_signal(signal.SIGTERM)
    assert play.running["coordinator"].process.wait(180) == 0


def test_the_readme_shows_ten_commands_in_the_order_of_the_steps() -> None:
    shown = steps()
    assert [step.actor for step in shown] == ["coordinator", "each hospital"] * 2
    assert sum(len(step.commands) for step in shown) == 10
    host = re.findall(r'^coordinator = "(.*):\d+"', shown_file("hospital_node/README.md", "node.toml"), re.MULTILINE)
    assert host == re.findall(r"--dns (\S+)", shown[0].commands[1]), "loopback is in every certificate, this name is not"
    assert set(looks()) == {"init-model", "status", "check", "budget"}
