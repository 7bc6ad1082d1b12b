"""A run as one folder, and computed again from it: bit for bit, or the first round that differs by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from coordinator_federation import small_plan
from kill_world import KillWorld
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.export import ExportError, export_run
from coordinator.replay import replay
from coordinator.store import open_store
from proto.layout import Layout, model_digest
from proto.plan import Aggregation, Plan, Training

ROUNDS = 3
NOW = datetime(2026, 11, 21, tzinfo=UTC)
FORMS = {
    "momentum": {"aggregation": Aggregation(momentum=0.5, learning_rate_decay=0.9)},
    "adam": {"aggregation": Aggregation(rule="adam", learning_rate=0.1, momentum=0.9, adaptivity=0.01)},
    "adapters": {"training": Training(local_steps=2, parts=("w",), adapter_rank=2)},
}
LAYOUT = Layout((("w.weight", (16, 12)), ("v.bias", (7,))))


def plan_of(form: str) -> Plan:
    return small_plan(4, ROUNDS).model_copy(update=FORMS[form])


@pytest.fixture(scope="module", params=list(FORMS))
def run(request: pytest.FixtureRequest, identities: Path, tmp_path_factory: pytest.TempPathFactory) -> KillWorld:
    """A whole run, killed once on its way."""
    plan = plan_of(request.param)
    world = KillWorld(tmp_path_factory.mktemp("run"), identities, plan, LAYOUT)
    world.kill_at = ("after", 40)
    asyncio.run(world.live())
    assert world.starts == 2
    return world


@pytest.fixture
def exported(run: KillWorld, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    with open_store(run.config.database) as store:
        assert export_run(store, run.config.state / "models", folder, NOW) == ROUNDS
    return folder


def test_every_model_is_computed_again(run, exported):
    with open_store(run.config.database) as store:
        published = [(row.round, row.digest) for row in store.models() if row.round]
    assert [(one.round, one.model) for one in replay(exported)] == published
    assert len(set(published)) == ROUNDS


def test_the_folder_says_what_the_store_says_and_its_sums_hold(run, exported):
    rounds = json.loads((exported / "rounds.json").read_bytes())
    with open_store(run.config.database) as store:
        assert [row["survivors"] for row in rounds] == [list(row.survivors) for row in store.rounds()]
        assert [row["sum_digest"] for row in rounds] == [store.sum_digests()[number] for number in (1, 2, 3)]
        assert len(json.loads((exported / "events.json").read_bytes())) == len([e for e in store.events() if e.round <= ROUNDS])
    named = dict(line.split("  ")[::-1] for line in (exported / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.is_file()}
    assert named.keys() == files.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == digest for name, digest in named.items())


def changed_vector(folder: Path, digest: str) -> str:
    """The least change of one value, under the name that it then has."""
    values = np.fromfile(folder / f"{digest}.f32", "<f4")
    values[3] = np.nextafter(values[3], np.float32(1))
    name = model_digest(values).hex()
    values.tofile(folder / f"{name}.f32")
    return name


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_first_round_that_differs_is_named(exported, number):
    path = exported / "rounds.json"
    rounds = json.loads(path.read_bytes())
    for row in rounds[number - 1 :]:
        row["model_digest"] = changed_vector(exported / "models", row["model_digest"])
    path.write_text(json.dumps(rounds))
    found = replay(exported)
    assert [next(found).round for _ in range(number - 1)] == list(range(1, number))
    with pytest.raises(ExportError, match=f"round {number} differs"):
        next(found)


def test_another_mean_gives_another_model(exported):
    path = exported / "rounds.json"
    rounds = json.loads(path.read_bytes())
    values = np.fromfile(exported / "means" / f"{rounds[1]['mean_digest']}.f32", "<f4") * np.float32(1.5)
    rounds[1]["mean_digest"] = model_digest(values).hex()
    values.tofile(exported / "means" / f"{rounds[1]['mean_digest']}.f32")
    path.write_text(json.dumps(rounds))
    with pytest.raises(ExportError, match="round 2 differs"):
        list(replay(exported))


@pytest.mark.parametrize("damage", ["models", "means", "rounds.json", "plan.json", "another-plan", "no-mean", "format"])
def test_what_is_damaged_is_named(exported, damage):
    rounds = json.loads((exported / "rounds.json").read_bytes())
    match damage:
        case "models" | "means":
            digest = rounds[1]["model_digest" if damage == "models" else "mean_digest"]
            path = exported / damage / f"{digest}.f32"
            path.write_bytes(path.read_bytes()[:-4])
            said = r"the (model|mean) of round 2 is damaged"
        case "another-plan":
            (exported / "plan.json").write_bytes(small_plan(5).canonical())
            said = "not the plan that run.json names"
        case "no-mean":
            rounds[0]["mean_digest"] = None
            (exported / "rounds.json").write_text(json.dumps(rounds))
            said = "round 1 kept no mean"
        case "format":
            about = json.loads((exported / "run.json").read_bytes())
            (exported / "run.json").write_text(json.dumps({**about, "format": 2}))
            said = "format 2, this release reads 1"
        case _:
            (exported / damage).write_text("{")
            said = "is damaged"
    with pytest.raises(ExportError, match=said):
        list(replay(exported))


def test_from_the_command_line(run, tmp_path):
    run_cli = CliRunner().invoke
    where = run.config.state.parent / "coordinator.toml"
    done = run_cli(app, ["export", "--config", str(where), str(tmp_path / "out")])
    assert (done.exit_code, "3 rounds are in" in done.output) == (0, True), done.output
    again = run_cli(app, ["export", "--config", str(where), str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "exists already" in again.output
    done = run_cli(app, ["replay", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "3 opened rounds, every model bit for bit" in done.output
    shutil.rmtree(tmp_path / "out" / "means")
    done = run_cli(app, ["replay", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "the mean of round 1 cannot be read" in done.output


def test_a_folder_is_written_whole_or_not_at_all(run, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(run.config.state / "models", models)
    with open_store(run.config.database) as store:
        (models / f"{store.means()[2]}.mean.f32").unlink()
        with pytest.raises(ExportError, match="cannot be written"):
            export_run(store, models, tmp_path / "export", NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
