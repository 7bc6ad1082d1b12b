"""The command line: honest exit codes, one sentence for each mistake, a clean stop."""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tomli_w
from coordinator_federation import LAYOUT, small_plan, write_study
from typer.testing import CliRunner

from certs.audit import Action
from certs.audit_file import AuditLog
from coordinator.cli import app
from coordinator.store_write import StoreWriter
from proto.plan import Evaluation, Masking

COMMAND = [sys.executable, "-c", "from coordinator.cli import main; main()"]
ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "run", "--config", str(folder / "coordinator.toml"), *more]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text().strip()


@pytest.mark.sockets
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(tmp_path, identities, number):
    config = write_study(tmp_path, identities, small_plan())
    process = start(tmp_path)
    address = wait_for(config.address_file, process)
    host, port = address.rsplit(":", 1)
    socket.create_connection((host, int(port)), timeout=120).close()
    process.send_signal(number)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert not config.address_file.exists()
    assert "Listening" in log
    assert "Traceback" not in log


@pytest.mark.sockets
def test_a_busy_port_is_one_sentence_and_exit_code_2(tmp_path, identities):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        write_study(tmp_path, identities, small_plan(), listen=address)
        process = start(tmp_path)
        _, log = process.communicate(timeout=120)
    assert process.returncode == 2
    said = [line for line in log.splitlines() if line.startswith("secagg-coordinator: ")]
    assert len(said) == 1
    assert f"cannot listen on {address}: the port is busy" in said[0]
    assert "choose another" in said[0]
    assert "Traceback" not in log


@pytest.mark.sockets
def test_a_second_coordinator_on_one_state_folder_is_refused(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())
    first = start(tmp_path)
    wait_for(config.address_file, first)
    second = start(tmp_path)
    _, log = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "another coordinator works on" in log
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    assert first.returncode == 0


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda folder: (folder / "plan.toml").unlink(), "cannot read the plan"),
        (lambda folder: (folder / "start.safetensors").unlink(), "there is no model file"),
        (lambda folder: (folder / "peers.toml").unlink(), "cannot read the peer list"),
        (lambda folder: (folder / "state").write_text("a file"), "state"),
        (lambda folder: (folder / "coordinator.toml").write_text("epsilon = 1"), "unknown key 'epsilon'"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(tmp_path, identities, break_it, sentence):
    write_study(tmp_path, identities, small_plan())
    break_it(tmp_path)
    result = CliRunner().invoke(app, ["run", "--config", str(tmp_path / "coordinator.toml")])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_start_that_the_plan_does_not_name_is_refused(tmp_path, identities):
    plan = small_plan().model_copy(update={"start_digest": "ab" * 32})
    write_study(tmp_path, identities, plan)
    result = CliRunner().invoke(app, ["run", "--config", str(tmp_path / "coordinator.toml")])
    assert result.exit_code == 2
    assert "the plan names abababababab" in result.stderr


def test_status_reads_the_store_and_nothing_else(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())
    arguments = ["status", "--config", str(tmp_path / "coordinator.toml")]
    before = CliRunner().invoke(app, arguments)
    assert before.exit_code == 2
    assert "there is no store" in before.stderr
    StoreWriter.create(config.database, small_plan(), LAYOUT).close()
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert shown["study"] == "lidc"
    assert shown["rounds"] == []
    assert [member["state"] for member in shown["members"]] == ["absent"] * 5
    assert "h0" in CliRunner().invoke(app, arguments).stdout


def test_the_audit_log_is_shown_and_its_damage_named(tmp_path, identities):
    config = write_study(tmp_path, identities, small_plan())
    config.state.mkdir(exist_ok=True)
    log = AuditLog.within(config.state)
    log.append(Action(by="Operator", kind="pause", reason="maintenance"), datetime(2026, 11, 21, tzinfo=UTC))
    arguments = ["audit-log", "--config", str(tmp_path / "coordinator.toml")]
    assert "Operator  pause: maintenance" in CliRunner().invoke(app, arguments).stdout
    log.path.write_bytes(log.path.read_bytes().replace(b"maintenance", b"maintenanze"))
    result = CliRunner().invoke(app, [*arguments, "--verify"])
    assert result.exit_code == 2
    assert "line 1 of the audit log" in result.stderr


def test_check_plan_counts_no_hospital_as_spare_that_shared_noise_cannot_lose(tmp_path):
    content = small_plan(10).model_dump(mode="json", exclude_none=True)
    content["training"] = {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0}
    content["privacy"] |= {"noise_mode": "shared", "norm_steps": 3000, "may_drop": 1, "may_collude": 1}
    content["masking"] |= {"lanes": 2, "update_clip": 1.0}
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(content))
    result = CliRunner().invoke(app, ["check-plan", str(path)])
    assert "10 hospitals: any 7 open the sum, 1 may drop out" in result.stdout, result.output


def test_check_plan_says_what_a_study_withstands(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(small_plan(5).model_dump(mode="json", exclude_none=True)))
    result = CliRunner().invoke(app, ["check-plan", str(path)])
    assert result.exit_code == 0
    _, bits, work, paid, *sizes = result.stdout.splitlines()
    assert work == "A round's local work: 1 steps of 5 patients"
    assert paid == "A patient pays for at most 1 steps (noise multiplier 1, rate 1/2)"
    assert bits == (
        "A hospital sends 21.3 bits for a parameter (float32: 32); "
        "rounding moves the mean by at most 1.1e-06 of the clip (root mean square)"
    )
    assert sizes == [
        "3 hospitals: any 3 open the sum, 0 may drop out",
        "4 hospitals: any 3 open the sum, 1 may drop out",
        "5 hospitals: any 4 open the sum, 1 may drop out",
    ]
    unsafe = small_plan(4).model_copy(update={"masking": Masking(max_colluders=3)})
    path.write_text(tomli_w.dumps(unsafe.model_dump(mode="json", exclude_none=True)))
    refused = CliRunner().invoke(app, ["check-plan", str(path)])
    assert refused.exit_code == 2
    assert "no cohort of study 'lidc' is safe against 3 colluders" in refused.stderr


def test_check_plan_says_which_hospital_works_most_and_what_its_patients_pay_for(tmp_path):
    fields = small_plan(4).model_dump(mode="json", exclude_none=True)
    fields["hospitals"][1] |= {"declared_patients": 40, "local_steps": 6}
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(fields))
    result = CliRunner().invoke(app, ["check-plan", str(path)])
    assert result.stdout.splitlines()[2:5] == [
        "A round's local work: 1 steps of 5 patients, the least, at h0",
        "A round's local work: 6 steps of 20 patients, the most, at h1",
        f"A patient pays for at most {6 * fields['rounds']} steps (noise multiplier 1, rate 1/2)",
    ]


def test_check_plan_says_what_an_evaluation_will_tell(tmp_path):
    path = tmp_path / "plan.toml"
    part = Evaluation(every=2, share=0.25, noise_multiplier=0.5)
    plan = small_plan(4, rounds=5).model_copy(update={"evaluation": part})
    path.write_text(tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)))
    said = CliRunner().invoke(app, ["check-plan", str(path)]).stdout.splitlines()
    error = 0.5 * math.sqrt(1 / 2) * math.sqrt(4) * math.hypot(1, 0.6) / 10  # of 4 hospitals, a quarter of 40 patients
    uncertain = f"the noise alone makes a mean of 0.8 uncertain by about {error:.2g}"
    assert said[3:5] == [
        "A patient pays for at most 5 steps (noise multiplier 1, rate 1/2)",
        f"and for 2 evaluations (noise multiplier 0.5, rate 1), on 25% of the patients, who are not trained on: {uncertain}",
    ]


@pytest.mark.parametrize(
    ("masking", "hospitals", "reason"),
    [
        (Masking(lanes=16), 8, "lane of 4 bits cannot hold the sum of 8 members"),
        (Masking(update_clip=1e-18, clip_decay=0.1), 4, "clip"),
    ],
)
def test_check_plan_refuses_bits_that_cannot_carry_the_cohort(tmp_path, masking, hospitals, reason):
    path = tmp_path / "plan.toml"
    plan = small_plan(hospitals).model_copy(update={"masking": masking, "rounds": 50})
    path.write_text(tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)))
    refused = CliRunner().invoke(app, ["check-plan", str(path)])
    assert refused.exit_code == 2
    assert reason in refused.stderr
