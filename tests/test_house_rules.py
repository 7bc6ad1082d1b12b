"""What every file keeps: size, errors that are not swallowed, no unsafe loading, randomness that is secret, fresh stubs.

Each rule is a function from one file to the lines that break it, and each is shown a text that breaks it.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("secagg", "proto", "certs", "coordinator", "hospital_node", "ui", "study")
MAX_FILE_LINES = 450
MAX_TEST_FILE_LINES = 700
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 15
MIN_DOCSTRING = 40  # characters: a module says more than its name

GENERATED = re.compile(r"proto/.*_pb2(_grpc)?\.pyi?$")
TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".proto",
    ".yaml",
    ".yml",
    ".sh",
    ".service",
    ".css",
    ".svg",
    ".txt",
    ".cfg",
    ".ini",
    "",
}
HIDDEN = re.compile(r"\.(?!ci$)")
UNDONE = ("TO" + "DO", "FIX" + "ME", "XX" + "X")  # in two parts, so that this file keeps its own rule
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "manager.py", "misc.py"}
MACHINE_PATH = re.compile(r"(?<![\w.~\-/$}])/(?:work|home|root|tmp|Users)/")
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BROAD = {"Exception", "BaseException"}
# one handler of everything at the edge of a process that must go on serving others; it logs and ends the call. No other file.
PROCESS_EDGES = {"coordinator/service.py"}

# numpy's generators are not secret. Where secrecy or privacy depends on chance, bytes come from the operating system, and a
# Generator may only be built from them; the old global functions (np.random.seed, .normal ...) are used nowhere.
NUMPY_GENERATORS = {"Generator", "BitGenerator", "PCG64", "PCG64DXSM", "Philox", "SFC64", "SeedSequence"}
SECRET_CHANCE = ("secagg", "certs", "coordinator", "hospital_node")
NO_NUMPY_CHANCE = ("secagg", "certs", "coordinator")


@dataclass(frozen=True)
class Source:
    """One tracked text file."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py")

    @property
    def is_test(self) -> bool:
        return self.package == "tests"

    @property
    def prints(self) -> bool:
        """Command lines print, and tests and benchmarks are run from one."""
        return self.name in {"cli.py", "__main__.py"} or self.package in {"tests", "benchmarks"}


Rule = Callable[[Source], Iterator[str]]


def tracked(root: Path) -> list[str]:
    """Files of the repository: git's, or where there is no git, everything that is not hidden or built."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0 and listing.stdout:
        return sorted(path for path in listing.stdout.splitlines() if (root / path).is_file())
    skipped = {"__pycache__", "build", "dist", "demo"}
    every = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in every
        if not any(
            part in skipped or part.endswith(".egg-info") or (part.startswith(".") and part != ".ci") for part in path.parts
        )
    )


def sources(root: Path) -> list[Source]:
    names = [name for name in tracked(root) if Path(name).suffix in TEXT_SUFFIXES and not GENERATED.search(name)]
    return [Source(name, (root / name).read_text(encoding="utf-8")) for name in names]


@pytest.fixture(scope="module")
def repository() -> list[Source]:
    found = sources(ROOT)
    assert len([source for source in found if source.is_python]) > 30
    return found


def too_long(source: Source) -> Iterator[str]:
    limit = MAX_TEST_FILE_LINES if source.is_test else MAX_FILE_LINES
    lines = source.text.count("\n")
    if source.is_python and lines > limit:
        yield f"{source.path}: {lines} lines, at most {limit}"


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(source.tree) if source.is_python else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def long_functions(source: Source) -> Iterator[str]:
    for function in functions(source):
        is_command = source.name == "cli.py" and function.decorator_list  # a command's signature is its parser
        if length(function) > MAX_FUNCTION_LINES and not is_command:
            yield f"{source.path}:{function.lineno} {function.name}: {length(function)} lines, at most {MAX_FUNCTION_LINES}"


def broad_excepts(source: Source) -> Iterator[str]:
    spared = 1 if source.path in PROCESS_EDGES else 0
    for handler in [node for node in ast.walk(source.tree) if is_broad(node)][spared:] if source.is_python else ():
        yield f"{source.path}:{handler.lineno} catches everything: name what can happen here"


def is_broad(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(one is None or (isinstance(one, ast.Name) and one.id in BROAD) for one in caught)


def undone(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if any(re.search(rf"\b{word}\b", line) for word in UNDONE):
            yield f"{source.path}:{number} is unfinished: {line.strip()}"


def vague_names(source: Source) -> Iterator[str]:
    if source.name in VAGUE_NAMES:
        yield f"{source.path}: name the file after what is in it"


def machine_paths(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines() if not source.is_test else (), 1):
        if MACHINE_PATH.search(line):
            yield f"{source.path}:{number} names a path of one machine: {line.strip()}"


def missing_docstrings(source: Source) -> Iterator[str]:
    if source.is_python and len(ast.get_docstring(source.tree) or "") < MIN_DOCSTRING:
        yield f"{source.path}: begin with what the module is and the rule that it keeps"


def imported_names(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree) if source.is_python else ():
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def unsafe_loading(source: Source) -> Iterator[str]:
    for line, name in imported_names(source):
        if name in UNSAFE_MODULES:
            yield f"{source.path}:{line} imports {name}: reading its format runs code"
    for line, call, node in calls(source):
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if call == "torch.load" and not is_constant(given.get("weights_only"), value=True):
            yield f"{source.path}:{line} torch.load without weights_only=True runs code of the file"
        if (
            call in {"np.load", "numpy.load"}
            and "allow_pickle" in given
            and not is_constant(given["allow_pickle"], value=False)
        ):
            yield f"{source.path}:{line} numpy.load with allow_pickle runs code of the file"


def calls(source: Source) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(source.tree) if source.is_python else ():
        if isinstance(node, ast.Call):
            yield node.lineno, dotted(node.func), node


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_constant(node: ast.expr | None, *, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def printing(source: Source) -> Iterator[str]:
    for line, call, _ in calls(source):
        if call == "print" and not source.prints:
            yield f"{source.path}:{line} prints: only command lines do"


def weak_chance(source: Source) -> Iterator[str]:
    """Predictable randomness where somebody's privacy depends on it."""
    if source.package not in SECRET_CHANCE or not source.is_python:
        return
    for line, name in imported_names(source):
        if name == "random":
            yield f"{source.path}:{line} imports random, whose numbers can be predicted"
    for node in ast.walk(source.tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        match = re.fullmatch(r"(?:np|numpy)\.random\.(\w+)", name)
        if match and (source.package in NO_NUMPY_CHANCE or match[1] not in NUMPY_GENERATORS):
            yield f"{source.path}:{node.lineno} uses {name}: take bytes from the operating system"
        if name in {"torch.manual_seed", "torch.seed", "torch.random.manual_seed"}:
            yield f"{source.path}:{node.lineno} uses {name}: 64 predictable bits"
    for line, call, node in calls(source):
        seeds = [*node.args, *(keyword.value for keyword in node.keywords)]
        if call.rsplit(".", 1)[-1] in NUMPY_GENERATORS and any(isinstance(seed, ast.Constant) for seed in seeds):
            yield f"{source.path}:{line} seeds a generator with a constant"


RULES: dict[Rule, Source] = {  # rule -> a text that breaks it
    too_long: Source("secagg/a.py", "\n" * 451),
    long_functions: Source("secagg/a.py", "def f():\n" + "    a = 1\n" * 60),
    broad_excepts: Source("ui/a.py", "try:\n    f()\nexcept (OSError, Exception):\n    pass\n"),
    undone: Source("README.md", f"{UNDONE[0]}: write this\n"),
    vague_names: Source("study/utils.py", ""),
    machine_paths: Source("README.md", "cd /home/me/secagg\n"),
    missing_docstrings: Source("ui/a.py", '"""A module."""\n'),
    unsafe_loading: Source("study/a.py", "import pickle\n"),
    printing: Source("certs/authority.py", "print(1)\n"),
    weak_chance: Source("hospital_node/noise.py", "import random\n"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(repository: list[Source], rule: Rule) -> None:
    found = [line for source in repository for line in rule(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_can_be_broken(rule: Rule) -> None:
    assert len(list(rule(RULES[rule]))) == 1


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (broad_excepts, "ui/a.py", "try:\n    f()\nexcept:\n    pass\n"),
        (broad_excepts, "coordinator/service.py", 2 * "try:\n    f()\nexcept Exception:\n    pass\n"),
        (broad_excepts, "ui/a.py", "try:\n    f()\nexcept BaseException:\n    pass\n"),
        (unsafe_loading, "study/a.py", "from pickle import loads\n"),
        (unsafe_loading, "study/a.py", "torch.load(path)\n"),
        (unsafe_loading, "study/a.py", "torch.load(path, weights_only=False)\n"),
        (unsafe_loading, "study/a.py", "np.load(path, allow_pickle=True)\n"),
        (weak_chance, "hospital_node/a.py", "np.random.seed(1)\n"),
        (weak_chance, "hospital_node/a.py", "x = np.random.normal()\n"),
        (weak_chance, "hospital_node/a.py", "rng = np.random.default_rng()\n"),
        (weak_chance, "hospital_node/a.py", "rng = np.random.Generator(np.random.PCG64(7))\n"),
        (weak_chance, "hospital_node/a.py", "torch.manual_seed(seed)\n"),
        (weak_chance, "secagg/a.py", "rng = np.random.Generator(np.random.PCG64(secret))\n"),
        (machine_paths, "Makefile", "\tcp x /tmp/y\n"),
        (long_functions, "ui/a.py", "async def f():\n" + "    a = 1\n" * 60),
        (too_long, "tests/a.py", "\n" * 701),
    ],
)
def test_each_rule_sees_its_variants(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (broad_excepts, "ui/a.py", "try:\n    f()\nexcept (OSError, ValueError):\n    pass\n"),
        (unsafe_loading, "study/a.py", "torch.load(path, weights_only=True)\nnp.load(path, mmap_mode='r')\n"),
        (weak_chance, "hospital_node/a.py", "rng = np.random.Generator(np.random.PCG64(secret))\n"),
        (weak_chance, "study/a.py", "rng = np.random.default_rng(7)\n"),
        (machine_paths, "README.md", "~/tmp/x, https://example.org/home/, ../work/, $HOME/tmp/\n"),
        (printing, "ui/cli.py", "print(1)\n"),
        (long_functions, "ui/cli.py", "@app.command()\ndef f():\n" + "    a = 1\n" * 60),
        (too_long, "tests/a.py", "\n" * 700),
    ],
)
def test_no_rule_is_stricter_than_it_says(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text))) == []


def test_functions_are_short_in_every_package(repository: list[Source]) -> None:
    for package in PACKAGES:
        lengths = [length(one) for source in repository if source.package == package for one in functions(source)]
        assert statistics.median(lengths) <= MAX_MEDIAN_FUNCTION_LINES, package


def test_test_files_have_names_of_their_own(repository: list[Source]) -> None:
    names = Counter(
        source.name for source in repository if source.is_test and source.is_python and source.name != "conftest.py"
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_tests_are_not_packages(repository: list[Source]) -> None:
    assert [source.path for source in repository if source.is_test and source.name == "__init__.py"] == []


@pytest.mark.parametrize("stub", ["federation_pb2.py", "federation_pb2.pyi", "federation_pb2_grpc.py"])
def test_committed_stubs_are_fresh(fresh_stubs: Path, stub: str) -> None:
    made, committed = fresh_stubs / "proto" / stub, ROOT / "proto" / stub
    assert committed.read_text() == made.read_text(), "run: make stubs"


@pytest.fixture(scope="module")
def fresh_stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    places = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *places, "proto/federation.proto"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_the_listing_without_git_is_the_same_kind_of_thing(tmp_path: Path) -> None:
    for name in ("a.py", ".venv/b.py", "demo/c.py", "x.egg-info/d.py", ".ci/run", "ui/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert tracked(tmp_path) == [".ci/run", "a.py", "ui/e.py"]
