"""The documents cannot drift: commands, options, make targets and links that they show exist, and every package says why.

What counts as a command in a document: a line of a fenced block that begins with one of our console scripts or with `make`
(after an optional prompt, path and variables), and an inline code span that does.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("secagg", "proto", "certs", "coordinator", "hospital_node", "ui", "study")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "deploy", "docs")
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

FENCE = re.compile(r"^(?:```|~~~)[^\n]*\n(.*?)^(?:```|~~~)\s*$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:[^`\n]|\n(?!\n))+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
TARGET = re.compile(r"^([a-z][a-z-]*):(?!=)", re.MULTILINE)
VARIABLE = re.compile(r"\$\((?:if |filter-out [^,]*,|or )*\$?\(?([A-Z_]+)\)|^([A-Z_]+) [?:]?=", re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
DECISION = re.compile(r"\b20\d\d-\d\d-\d\d\b")


@dataclass(frozen=True)
class Command:
    """One command line that a document shows: our script or make, and its arguments."""

    program: str
    arguments: tuple[str, ...]

    @property
    def options(self) -> list[str]:
        """Long and short options, without values; what follows a bare -- belongs to another program."""
        own = self.arguments[: self.arguments.index("--")] if "--" in self.arguments else self.arguments
        return [re.split("[=]", word)[0] for word in own if re.match(r"--?[a-z]", word)]

    @property
    def words(self) -> list[str]:
        """Arguments that are neither options nor assignments, as far as the first option."""
        found = []
        for word in self.arguments:
            if word.startswith("-"):
                break
            if not ASSIGNMENT.fullmatch(word):
                found.append(word)
        return found


def shown_lines(text: str) -> list[str]:
    """Lines of fenced blocks, with continued lines joined, and inline code spans."""
    fenced = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    return [*fenced.splitlines(), *spans(text)]


def spans(text: str) -> list[str]:
    """Inline code outside fenced blocks; one that a line break divides is joined."""
    return [" ".join(span.split()) for span in INLINE.findall(FENCE.sub("", text))]


def commands(text: str) -> list[Command]:
    return [command for line in shown_lines(text) for command in read_line(line)]


def read_line(line: str) -> list[Command]:
    """The commands of one shown line, which may join several with && or a pipe."""
    found = []
    for part in re.split(r"&&|\|\||[|;]", line):
        try:
            words = shlex.split(part.strip().removeprefix("$ ").strip(), comments=True)
        except ValueError:  # an apostrophe in a line of output
            continue
        while words and (ASSIGNMENT.fullmatch(words[0]) or words[0] in {"sudo", "exec", "time"}):
            words = words[1:]
        program = words[0].rsplit("/", 1)[-1] if words else ""
        if program in SCRIPTS or program == "make":
            found.append(Command(program, tuple(word for word in words[1:] if word != "&")))
    return found


def documents() -> list[Path]:
    further = (
        ROOT / "study" / "STUDIES.md",
        ROOT / "study" / "AUDIT.md",
        ROOT / "docs" / "TROUBLESHOOTING.md",
        ROOT / "deploy" / "README.md",
    )
    return [ROOT / "README.md", ROOT / "README.zh-CN.md", *(ROOT / package / "README.md" for package in PACKAGES), *further]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def targets(makefile: str) -> set[str]:
    return set(TARGET.findall(makefile))


def variables(makefile: str) -> set[str]:
    return {name for pair in VARIABLE.findall(makefile) for name in pair if name}


@lru_cache
def help_of(program: str, subcommands: tuple[str, ...]) -> str | None:
    """What `program subcommands --help` prints, or None if it refuses."""
    module, function = SCRIPTS[program].split(":")
    code = f"import sys; sys.argv[0] = {program!r}; from {module} import {function}; sys.exit({function}())"
    wide = os.environ | {"COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *subcommands, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=wide,
    )
    return done.stdout if done.returncode == 0 else None


def subcommands_of(command: Command) -> tuple[str, ...]:
    """The leading words that choose a subcommand: each has a help page of its own."""
    chosen: tuple[str, ...] = ()
    for word in command.words:
        page = help_of(command.program, (*chosen, word)) if re.fullmatch(r"[a-z][a-z-]*", word) else None
        if page is None or page == help_of(command.program, chosen):
            break
        chosen = (*chosen, word)
    return chosen


def problem_with(command: Command) -> str | None:
    """Why a shown command would be refused, or None."""
    shown = " ".join((command.program, *command.arguments))
    if command.program == "make":
        return make_problem(command, text_of(ROOT / "Makefile"))
    chosen = subcommands_of(command)
    page = help_of(command.program, chosen)
    if page is None:
        return f"{shown}: {command.program} has no help"
    if not chosen and command.words and "COMMAND" in page:
        return f"{shown}: there is no command '{command.words[0]}'"
    listed = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", page))
    missing = [option for option in command.options if option not in listed]
    return f"{shown}: {', '.join(missing)} is not in its help" if missing else None


def make_problem(command: Command, makefile: str) -> str | None:
    unknown = [word for word in command.words if word not in targets(makefile)]
    assigned = [word.split("=")[0] for word in command.arguments if ASSIGNMENT.fullmatch(word)]
    foreign = [name for name in assigned if name not in variables(makefile)]
    return f"make has no {', '.join(unknown + foreign)}" if unknown or foreign else None


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_shown_can_be_typed(document: Path) -> None:
    problems = [problem for command in commands(text_of(document)) if (problem := problem_with(command))]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(document: Path) -> None:
    local = [link.split("#")[0] for link in LINK.findall(text_of(document)) if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_named_is_there(document: Path) -> None:
    named = [span for span in spans(text_of(document)) if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+", span)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_was_decided_and_when(package: str) -> None:
    _, heading, decisions = text_of(ROOT / package / "README.md").partition("\n## Decisions\n")
    assert heading, "the last section is '## Decisions'"
    assert DECISION.search(decisions), "each decision has a date"
    assert "\n## " not in decisions, "nothing follows the decisions"


def test_the_readme_shows_how_to_begin() -> None:
    shown = {(command.program, *command.words[:1]) for command in commands(text_of(ROOT / "README.md"))}
    assert {("make", "demo"), ("make", "test")} <= shown


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_console_script_explains_itself(script: str) -> None:
    page = help_of(script, ())
    assert page is not None
    assert len(page) > 200


SAMPLE = """
Say `make demo` or `make demo
UI=off`, then see `not make`.

```console
$ make test PYTEST_ARGS="-k x"
secagg-certs: a line of output, the server's own
$ .venv/bin/secagg-certs issue secagg://a/coordinator/b \\
    --ca ca --out c   # a remark with --nonsense
  A=1 sudo secagg-certs fingerprint c && secagg-certs init-ca x --out y
```

~~~
secagg-certs peers a b --out=p.toml -- --foreign
~~~
"""


def test_commands_are_found_in_blocks_and_spans() -> None:
    assert commands(SAMPLE) == [
        Command("make", ("test", "PYTEST_ARGS=-k x")),
        Command("secagg-certs", ("issue", "secagg://a/coordinator/b", "--ca", "ca", "--out", "c")),
        Command("secagg-certs", ("fingerprint", "c")),
        Command("secagg-certs", ("init-ca", "x", "--out", "y")),
        Command("secagg-certs", ("peers", "a", "b", "--out=p.toml", "--", "--foreign")),
        Command("make", ("demo",)),
        Command("make", ("demo", "UI=off")),
    ]
    assert [problem_with(command) for command in commands(SAMPLE)] == [None] * 7


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("make dmeo", "make has no dmeo"),
        ("make demo COLOUR=red", "make has no COLOUR"),
        ("secagg-certs bless x", "there is no command 'bless'"),
        ("secagg-certs issue x --ca ca --output c", "--output is not in its help"),
        ("secagg-certs init-ca x --ca=y", "--ca is not in its help"),
        ("secagg-certs -q fingerprint x", "-q is not in its help"),
    ],
)
def test_a_command_that_would_be_refused_is_found(line: str, problem: str) -> None:
    (found,) = [problem_with(command) for command in commands(f"```\n{line}\n```\n")]
    assert found is not None
    assert problem in found
