"""deploy/: what cannot be run in a test is read, and held against what our programs and the formats themselves say.

Units by systemd-analyze where it is installed; YAML by a parser and by the rules that make a pod closed; configurations and
the plan by the loaders of the product; every command by its own help.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from certs.cli import app as certs_app
from coordinator.cli import app as coordinator_app
from coordinator.config import CoordinatorConfig
from hospital_node.cli import app as node_app
from hospital_node.config import NodeConfig, load_config
from proto.plan import load_toml
from ui.cli import command as ui_app

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
PROGRAMS = {"secagg-certs": certs_app, "secagg-coordinator": coordinator_app, "secagg-node": node_app, "secagg-ui": ui_app}
CLOSED_UNIT = {
    "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes",
    "ProtectKernelTunables": "yes", "ProtectKernelModules": "yes", "ProtectControlGroups": "yes", "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes", "LockPersonality": "yes", "CapabilityBoundingSet": "", "UMask": "0077",
}  # fmt: skip
MOST_EXPOSED = 2.0  # of 10, by systemd-analyze's own measure


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections of a unit; a key may come several times."""
    sections: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            sections[section] = {}
            continue
        key, _, value = line.partition("=")
        sections[section].setdefault(key, []).append(value)
    return sections


def refusal(words: list[str]) -> str | None:
    """Why one of our programs would not take these words; None where it would."""
    program = get_command(PROGRAMS[words[0]]) if words[0] != "secagg-ui" else get_command(ui_app)
    known = {"--help"}
    rest = words[1:]
    commands: Any = getattr(program, "commands", {})
    while rest and rest[0] in commands:
        program, rest = commands[rest[0]], rest[1:]
        commands = getattr(program, "commands", {})
    if commands and rest and not rest[0].startswith("-"):
        return f"there is no command '{rest[0]}'"
    for parameter in program.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    return f"{unknown[0]} is not in its help" if unknown else None


def test_a_wrong_command_is_found() -> None:
    assert refusal(["secagg-node", "dance"]) == "there is no command 'dance'"
    assert refusal(["secagg-node", "run", "--fast"]) == "--fast is not in its help"
    assert refusal(["secagg-ui", "--host", "x"]) == "--host is not in its help"
    assert refusal(["secagg-node", "run", "--config", "x"]) is None


# ---- systemd ----


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_closed_and_starts_our_program(path: Path) -> None:
    service = unit(path)["Service"]
    assert {key: service.get(key) for key in CLOSED_UNIT} == {key: [value] for key, value in CLOSED_UNIT.items()}
    assert service["User"][0] not in {"", "root"}
    assert service["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    words = shlex.split(service["ExecStart"][0])
    assert refusal([words[0].rsplit("/", 1)[-1], *words[1:]]) is None
    assert unit(path)["Install"]["WantedBy"] == ["multi-user.target"]


def test_the_node_reaches_nobody_that_was_not_named() -> None:
    service = unit(DEPLOY / "systemd" / "secagg-node.service")["Service"]
    assert service["IPAddressDeny"] == ["any"]
    assert service["IPAddressAllow"] == ["localhost"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_itself_reads_the_unit(path: Path) -> None:
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    problems = [line for line in said.stderr.splitlines() if path.name in line and "is not executable" not in line]
    assert problems == []
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", rated.stdout)
    if exposure is None:
        pytest.skip("this systemd rates no units offline")
    assert float(exposure[1]) <= MOST_EXPOSED


# ---- the container ----


def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile, continued lines joined."""
    text = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_image_runs_as_nobody_special_and_copies_every_package() -> None:
    found = instructions()
    assert found[-1][0] == "CMD"
    last_stage = found[max(place for place, (word, _) in enumerate(found) if word == "FROM") :]
    [user] = [value for word, value in last_stage if word == "USER"]
    assert user == "10001:10001"
    assert {word for word, _ in last_stage} <= {"FROM", "ARG", "LABEL", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME",
                                                "STOPSIGNAL", "CMD"}  # fmt: skip
    copied = {value.split()[0] for word, value in found if word == "COPY"}
    packages = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert {one.rstrip("*") for one in packages} <= copied
    for path in copied - {"--from=build"}:
        assert (DEPLOY.parent / path).exists(), path


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text(encoding="utf-8"))
    return content


def test_every_service_of_the_demonstration_is_closed() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] == "10001:10001", name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["networks"]) <= compose()["networks"].keys(), name
        assert set(service.get("depends_on", {})) <= compose()["services"].keys(), name
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:"), "the demonstration is for this machine only"
        if service["command"][0] in PROGRAMS:
            assert refusal(service["command"]) is None, name
    assert compose()["networks"]["federation"] == {"internal": True}, "hospitals of the demonstration reach nothing outside"


def test_the_demonstration_agrees_with_itself() -> None:
    demo = DEPLOY / "container" / "demo"
    plan, node = load_toml(demo / "plan.toml"), load_config(demo / "node.toml")
    coordinator = CoordinatorConfig.model_validate(tomllib.loads((demo / "coordinator.toml").read_text()))
    hospitals = {one.uri.rsplit("/", 1)[-1] for one in plan.hospitals}
    script = (demo / "prepare.sh").read_text(encoding="utf-8")
    assert hospitals <= compose()["services"].keys()
    assert hospitals == set(re.search(r'hospitals="(.*)"', script)[1].split())  # type: ignore[index]
    host, port = node.coordinator.split(":")
    assert (host in compose()["services"], coordinator.listen.split(":")[1]) == (True, port)
    assert f"--dns {host}" in script


def test_the_preparation_types_commands_that_exist() -> None:
    script = DEPLOY / "container" / "demo" / "prepare.sh"
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    ours = [shlex.split(line) for line in lines if line.startswith("secagg-")]
    assert len(ours) >= 6
    assert [refusal(words) for words in ours] == [None] * len(ours)
    checked = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert (checked.returncode, checked.stderr) == (0, "")


# ---- Kubernetes ----


def objects(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def pod(path: Path) -> dict[str, Any]:
    [deployment] = [one for one in objects(path) if one["kind"] == "Deployment"]
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_whole(path: Path) -> None:
    found = objects(path)
    assert [one["kind"] for one in found if one["kind"] in {"Namespace", "Deployment", "NetworkPolicy"}] == [
        "Namespace", "Deployment", "NetworkPolicy",
    ]  # fmt: skip
    for one in found:
        assert {"apiVersion", "kind", "metadata"} <= one.keys()
        if one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == found[0]["metadata"]["name"]
    assert found[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    [deployment] = [one for one in found if one["kind"] == "Deployment"]
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]["type"]) == (1, "Recreate")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_pod_is_restricted_and_every_mount_is_there(path: Path) -> None:
    spec = pod(path)
    security = spec["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, 10001, 10001)
    assert security["fsGroupChangePolicy"] == "OnRootMismatch", "else node.key is opened to the group at every start"
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    volumes = {one["name"] for one in spec["volumes"]}
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {one["name"] for one in container["volumeMounts"]} <= volumes
        if "args" in container and container["args"][0] in PROGRAMS:
            assert refusal(container["args"]) is None


def test_nothing_comes_into_a_hospital_and_one_port_goes_out() -> None:
    [policy] = [one for one in objects(DEPLOY / "kubernetes" / "node.yaml") if one["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"] == {}
    assert (policy["spec"]["policyTypes"], policy["spec"]["ingress"]) == (["Ingress", "Egress"], [])
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == [53, 53, 8443]
    assert not [one for one in objects(DEPLOY / "kubernetes" / "node.yaml") if one["kind"] in {"Service", "Ingress"}]


def test_the_coordinators_key_is_copied_closed() -> None:
    spec = pod(DEPLOY / "kubernetes" / "coordinator.yaml")
    [secret] = [one["secret"] for one in spec["volumes"] if "secret" in one]
    assert secret["defaultMode"] == 0o400
    assert "install -m 0600 /secret/node.key" in spec["initContainers"][0]["args"][0]


def test_configurations_in_the_manifests_are_read_by_our_loaders() -> None:
    for path, schema in (("node.yaml", NodeConfig), ("coordinator.yaml", CoordinatorConfig)):
        [content] = [one["data"] for one in objects(DEPLOY / "kubernetes" / path) if one["kind"] == "ConfigMap"]
        [text] = content.values()
        schema.model_validate(tomllib.loads(text))


def test_the_text_says_what_was_not_run() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert "not run" in text
