"""Who may import whom. The arrows are data; the checker reads source text, and is itself tested on a tree that breaks them.

"The coordinator cannot look inside a model" and "nothing but the node touches patients" are visible in imports, so that is
where they are kept.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("secagg", "proto", "certs", "coordinator", "hospital_node", "ui", "study")
FREE = ("tests", "benchmarks")  # may import everything

# package -> what else of ours it may import; an entry with a dot admits that module only
ARROWS: dict[str, frozenset[str]] = {
    "secagg": frozenset(),
    "proto": frozenset({"secagg"}),
    "certs": frozenset({"secagg"}),
    "coordinator": frozenset({"secagg", "proto", "certs"}),
    "hospital_node": frozenset({"secagg", "proto", "certs"}),
    "ui": frozenset(
        {
            "proto.plan",
            "proto.frozen",
            *("proto.control", "proto.control_socket"),  # what people decide goes to the running process
            *("certs.audit", "certs.audit_file"),
            *("certs.files", "certs.party"),  # secrets that others may read are refused in one way
            "coordinator.store",
            "study.results",
            *(f"study.bench.{side}" for side in ("cells", "groups", "naming")),
            *(f"hospital_node.{side}" for side in ("ledger", "accounting", "offer", "reports", "scans", "progress")),
            "hospital_node.evidence_shown",
            *("hospital_node.reporting.kept", "hospital_node.reporting.model"),  # signed reports, to read
            "hospital_node.proposals",
        }
    ),
    "study": frozenset({"secagg", "proto", "certs", "coordinator", "hospital_node"}),
}

# distribution -> where it may be imported (a package, or one file)
OWNERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("torch", "opacus", "monai", "SimpleITK"), frozenset({"hospital_node", "study"})),
    "grpc": frozenset(
        {
            *("certs/tls.py", "coordinator/health.py", "coordinator/service.py", "hospital_node/link.py"),
            *("coordinator/dispatch.py", "coordinator/serving.py"),
            *("proto/federation_pb2_grpc.py", "study"),
        }
    ),
    **dict.fromkeys(("streamlit", "altair", "starlette", "anyio"), frozenset({"ui"})),
    "joserfc": frozenset({"ui/id_token.py", "ui/provider.py"}),
    **dict.fromkeys(("authlib", "requests"), frozenset({"ui/provider.py"})),
    "sqlalchemy": frozenset(
        {"coordinator", "hospital_node", "study/results.py", "study/results_tables.py", "study/results_write.py"}
    ),
    **dict.fromkeys(("pydicom", "highdicom"), frozenset({"hospital_node/dicom_seg.py"})),
    "jinja2": frozenset({"hospital_node/reporting/html.py"}),
    "weasyprint": frozenset({"hospital_node/reporting/pdf.py"}),
    "yaml": frozenset({"hospital_node/reporting/registry.py"}),
    "ray": frozenset({"study/bench/engine_ray.py"}),
    "tensorboardX": frozenset({"coordinator/scalars.py"}),
    "typer": frozenset({"certs", "coordinator", "hospital_node", "ui", "study"}),
}
NEVER = frozenset({"flwr", "proto_plus", "syft", "tenseal"})  # frameworks that bring their own protocol, or clash with `proto`

SECAGG_THIRD_PARTY = frozenset({"numpy", "cryptography"})
# no sockets, disk, processes, clock, logs or ambient randomness: time and random bytes are arguments
SECAGG_FORBIDDEN = frozenset(
    {
        *("asyncio", "http", "select", "socket", "ssl", "urllib"),
        *("io", "os", "pathlib", "shutil", "sqlite3", "sys", "tempfile"),
        *("multiprocessing", "subprocess"),
        *("datetime", "time"),
        "logging",
        *("random", "secrets", "uuid"),
    }
)

HEAVY = frozenset(
    {"torch", "opacus", "monai", "SimpleITK", "streamlit", "altair", "matplotlib", "grpc", "sqlalchemy", "dp_accounting", "ray"}
)
LIGHT_NODE_MODULES = ("ledger", "accounting", "progress", "config")  # read by the app and by command lines, without torch


@dataclass(frozen=True)
class Import:
    path: str  # of the importing file, relative to the root
    line: int
    target: str  # dotted name of what is imported

    @property
    def top(self) -> str:
        return self.target.split(".")[0]

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.target}"


def imports_of(root: Path, file: Path) -> Iterator[Import]:
    """Every import in a file, at any depth, static or through importlib with a literal name."""
    path = file.relative_to(root).as_posix()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node.level, node.module)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(path, node.lineno, whole if is_module(root, whole) else base)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield Import(path, node.lineno, argument.value)


def absolute(path: str, level: int, module: str | None) -> str:
    if not level:
        return module or ""
    base = path.split("/")[:-level]
    return ".".join([*base, module] if module else base)


def is_module(root: Path, dotted: str) -> bool:
    place = root.joinpath(*dotted.split("."))
    return place.with_suffix(".py").exists() or place.is_dir()


def called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def files_in(root: Path, package: str) -> list[Path]:
    return sorted((root / package).rglob("*.py"))


def may_cross(imported: Import) -> bool:
    """Whether an import of another of our packages follows an arrow."""
    allowed = ARROWS[imported.package]
    return imported.top in allowed or any(imported.target == one or imported.target.startswith(f"{one}.") for one in allowed)


def owned(imported: Import) -> bool:
    owners = OWNERS.get(imported.top)
    return owners is None or imported.package in owners or imported.path in owners


def violations(root: Path) -> list[str]:
    """Every import below `root` that breaks a rule, one line each."""
    found = []
    for package in PACKAGES:
        for file in files_in(root, package):
            for imported in imports_of(root, file):
                found += [f"{imported}: {reason}" for reason in reasons(imported)]
    return found


def reasons(imported: Import) -> Iterator[str]:
    if imported.top in FREE:
        yield "tests and benchmarks are imported by nobody"
    if imported.top in PACKAGES and imported.top != imported.package and not may_cross(imported):
        yield f"no arrow from {imported.package} to it"
    if not owned(imported):
        yield f"only {', '.join(sorted(OWNERS[imported.top]))} may"
    if imported.top in NEVER:
        yield "never"
    if imported.package == "secagg" and imported.top != "secagg":
        yield from secagg_reasons(imported)
    if imported.path.endswith("/__init__.py") and imported.top in HEAVY:
        yield "a package's __init__ imports nothing heavy"


def secagg_reasons(imported: Import) -> Iterator[str]:
    if imported.top not in sys.stdlib_module_names and imported.top not in SECAGG_THIRD_PARTY and imported.top not in PACKAGES:
        yield "secagg is numpy and cryptography only"
    if imported.top in SECAGG_FORBIDDEN:
        yield "secagg has no sockets, disk, clock or ambient randomness"


def test_every_package_is_there() -> None:
    assert [package for package in PACKAGES if not (ROOT / package / "__init__.py").exists()] == []
    for package in ("secagg", "certs", "coordinator", "hospital_node", "ui", "study"):
        assert len(files_in(ROOT, package)) > 1, package


def test_no_import_points_the_wrong_way() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(found)


BAD = {
    "secagg/a.py": ("import proto.plan", "no arrow from secagg"),
    "secagg/b.py": ("from certs import party", "no arrow from secagg"),
    "secagg/c.py": ("import torch", "only hospital_node, study may"),
    "secagg/d.py": ("import pydantic", "numpy and cryptography only"),
    "secagg/e.py": ("def f():\n    import socket", "no sockets"),
    "secagg/f.py": ("from os import urandom", "no sockets"),
    "secagg/g.py": ("import random", "no sockets"),
    "secagg/h.py": ("import time", "no sockets"),
    "proto/a.py": ("from coordinator import store", "no arrow from proto"),
    "certs/a.py": ("from proto.plan import Plan", "no arrow from certs"),
    "certs/authority.py": ("import grpc", "only certs/tls.py"),
    "coordinator/a.py": ("import hospital_node.ledger", "no arrow from coordinator"),
    "coordinator/b.py": ("import torch.nn as nn", "only hospital_node, study may"),
    "coordinator/c.py": ("import importlib\nimportlib.import_module('torch')", "only hospital_node, study may"),
    "coordinator/d.py": ("from ..study import demo", "no arrow from coordinator"),
    "coordinator/rounds.py": ("from grpc import aio", "only certs/tls.py"),
    "hospital_node/a.py": ("from coordinator.store import open_store", "no arrow from hospital_node"),
    "hospital_node/session.py": ("import grpc.aio", "only certs/tls.py"),
    "hospital_node/b.py": ("import streamlit", "only ui may"),
    "hospital_node/c.py": ("import flwr", "never"),
    "proto/b.py": ("import typer", "only certs, coordinator, hospital_node, study, ui may"),
    "hospital_node/__init__.py": ("import torch", "nothing heavy"),
    "ui/a.py": ("from proto import wire", "no arrow from ui"),
    "ui/b.py": ("from hospital_node import train", "no arrow from ui"),
    "ui/c.py": ("from coordinator import rounds", "no arrow from ui"),
    "ui/d.py": ("import coordinator.store_write", "no arrow from ui"),
    "ui/e.py": ("import SimpleITK as sitk", "only hospital_node, study may"),
    "ui/f.py": ("import study.demo", "no arrow from ui"),
    "ui/g.py": ("if TYPE_CHECKING:\n    import secagg", "no arrow from ui"),
    "study/a.py": ("import ui.cli", "no arrow from study"),
    "study/b.py": ("import tests.certs", "imported by nobody"),
}
GOOD = {
    "secagg/a.py": "import numpy, hashlib, threading, secagg.b\nfrom cryptography import x509\nfrom . import b",
    "proto/a.py": "from secagg import messages",
    "proto/federation_pb2_grpc.py": "import grpc",
    "certs/tls.py": "import grpc\nimport certs.identity",
    "coordinator/service.py": "import grpc\nfrom certs import tls\nfrom proto import wire\nimport secagg",
    "hospital_node/link.py": "from grpc import aio",
    "hospital_node/train.py": "import torch, opacus",
    "hospital_node/cli.py": "import typer",
    "ui/a.py": "from proto import plan\nfrom coordinator import store\nfrom hospital_node.ledger import Ledger\nimport altair",
    "study/a.py": "import torch, grpc, hospital_node.train, coordinator.service",
}


def plant(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that keeps all rules, with the modules that the bad examples refer to."""
    for path, text in GOOD.items():
        plant(tmp_path, path, text)
    for path in ("proto/plan.py", "proto/wire.py", "coordinator/store.py", "hospital_node/ledger.py", "secagg/b.py"):
        plant(tmp_path, path, "")
    return tmp_path


def test_the_checker_accepts_a_good_tree(tree: Path) -> None:
    assert violations(tree) == []


@pytest.mark.parametrize("path", BAD)
def test_the_checker_finds_each_wrong_import(tree: Path, path: str) -> None:
    text, reason = BAD[path]
    plant(tree, path, text)
    found = violations(tree)
    assert [line for line in found if line.startswith(f"{path}:") and reason in line], found


WITHOUT = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Refuse())
modules = {modules!r}
for package in {packages!r}:
    place = importlib.import_module(package).__path__
    modules += [one.name for one in pkgutil.iter_modules(place, package + ".")]
for module in modules:
    importlib.import_module(module)
print(len(modules))
"""


def import_without(blocked: set[str], modules: list[str], packages: list[str]) -> subprocess.CompletedProcess[str]:
    """Import all of `modules`, and every module of `packages`, in a process in which `blocked` cannot be imported."""
    code = WITHOUT.format(blocked=blocked, modules=modules, packages=packages)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


TORCH = {"torch", "opacus", "monai", "SimpleITK"}


def test_a_coordinator_runs_where_torch_is_not_installed() -> None:
    done = import_without(TORCH | {"streamlit", "dp_accounting"}, [], ["coordinator", "secagg", "proto", "certs"])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_the_masking_protocol_runs_with_numpy_and_cryptography_alone() -> None:
    done = import_without(TORCH | {"grpc", "google", "pydantic", "sqlalchemy", "typer", "proto", "certs"}, [], ["secagg"])
    assert done.returncode == 0, done.stderr


def test_the_app_reads_a_node_without_torch() -> None:
    done = import_without(TORCH, [f"hospital_node.{name}" for name in LIGHT_NODE_MODULES], [])
    assert done.returncode == 0, done.stderr


def test_results_of_a_study_are_read_without_torch() -> None:
    modules = ["study.results", "study.results_write", "study.bench.groups"]
    done = import_without(TORCH | {"dp_accounting", "matplotlib", "ray"}, modules, [])
    assert done.returncode == 0, done.stderr


def test_packages_load_without_anything_heavy() -> None:
    done = import_without(set(HEAVY), list(PACKAGES), [])
    assert done.returncode == 0, done.stderr


def test_the_refusal_works() -> None:
    assert import_without(TORCH, ["torch"], []).returncode != 0
    assert "torch is not installed here" in import_without(TORCH, ["hospital_node.train"], []).stderr
