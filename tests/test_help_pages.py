"""The troubleshooting page knows every reason and every line of `check`; the notebook of the quick start runs."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proto.plan import DECLINE_CODES

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
SYMPTOMS = ("It cannot connect", "It is slow", "It runs out of memory", "It does not converge", "It declines")
COMMAND = re.compile(r"`((?:secagg-|journalctl)[^`]*)`")


def section(title: str) -> str:
    assert f"\n## {title}\n" in PAGE, title
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_every_symptom_begins_with_a_command_that_tells(symptom: str) -> None:
    assert COMMAND.search(section(symptom).split("\n\n")[0]), symptom


def test_every_reason_to_decline_is_explained() -> None:
    explained = re.findall(r"^\| `([a-z-]+)` \|", section("It declines"), re.MULTILINE)
    assert explained == list(DECLINE_CODES)


def test_every_line_of_check_that_stands_for_a_connection_is_explained() -> None:
    explained = re.findall(r"^\| `([a-z-]+)` \|", section("It cannot connect"), re.MULTILINE)
    assert explained == ["certificate", "names", "dns", "tcp", "tls", "identity", "clock"]


def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DOCS / "quickstart.ipynb").read_text(encoding="utf-8"))
    return content


def code_of(content: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_the_form_of_one_and_keeps_no_output() -> None:
    content = notebook()
    assert (content["nbformat"], content["nbformat_minor"] >= 5) == (4, True)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["cell_type"] in {"markdown", "code"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.sockets
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Cell after cell in one process, as a kernel would run them; one round instead of three."""
    environment = os.environ | {"QUICKSTART_FOLDER": str(tmp_path / "quickstart"), "QUICKSTART_ROUNDS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code_of(notebook()))],
        cwd=DOCS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1: opened, 4 hospitals in the sum" in done.stdout
    assert len(re.findall(r"epsilon [\d.]+ of [\d.]+ at delta", done.stdout)) == 4
    assert len(re.findall(r"bytes sent in round 1", done.stdout)) == 4
