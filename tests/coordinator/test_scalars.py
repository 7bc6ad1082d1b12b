"""TensorBoard events of a run: the store's public figures, read back from the file by its own format."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from coordinator_federation import LAYOUT, small_plan, write_study
from coordinator_world import make_plan, uri
from tensorboardX.proto.event_pb2 import Event
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.export import ExportError
from coordinator.meter import Lane
from coordinator.scalars import Scalar, scalars_of, write_events
from coordinator.store import open_store
from coordinator.store_write import StoreWriter
from proto.evaluation import LabelMean

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
EVALUATOR = "secagg://lidc/evaluator/e0"


def fill(url: str) -> None:
    store = StoreWriter.create(url, make_plan(4), LAYOUT)
    with store.batch() as changes:
        changes.scores(0, EVALUATOR, [("nodule", (0.25, 0.75))])
        changes.round_state(1, "training", NOON)
        changes.phase_seconds(1, "train", 10.0)
        cohort = [uri(0), uri(1), uri(2)]
        changes.round_state(1, "opened", NOON + 60, cohort=cohort, survivors=cohort[:2], dropped={uri(2): "mask"})
        changes.scores(1, EVALUATOR, [("nodule", (0.5, 1.0))])
        seen = LabelMean("nodule", 0.7, 0.05, 40.0)
        changes.validation(1, 0, 2, [seen, LabelMean("vessel", None, None, 1.0)])
        sent = {uri(0): 100, uri(1): 300}
        counts = {Lane(1, party, "up", "mask"): size for party, size in sent.items()}
        changes.traffic_of({**counts, Lane(1, EVALUATOR, "up", "evaluate"): 9})
    store.close()


def events_in(folder: Path) -> Iterator[Event]:
    """Records of a TensorFlow event file: length, its checksum, content, its checksum."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length


def read_back(folder: Path) -> dict[tuple[str, int], tuple[float, float]]:
    return {
        (value.tag, event.step): (value.simple_value, event.wall_time)
        for event in events_in(folder)
        for value in event.summary.value
    }


@pytest.fixture
def url(tmp_path: Path) -> str:
    where = f"sqlite:///{tmp_path / 'store.db'}"
    fill(where)
    return where


def test_events_hold_every_public_figure_at_its_round_and_time(tmp_path: Path, url: str) -> None:
    with open_store(url) as store:
        count = write_events(store, tmp_path / "events")
    found = read_back(tmp_path / "events")
    assert count == len(found)
    wanted = {
        ("dice/e0/nodule", 0): (0.5, NOON),
        ("dice/e0/nodule", 1): (0.75, NOON + 60),
        ("validation/nodule/mean", 0): (0.7, NOON),
        ("validation/nodule/standard_error", 0): (0.05, NOON),
        ("round/opened", 1): (1.0, NOON + 60),
        ("round/survivors", 1): (2.0, NOON + 60),
        ("round/dropped", 1): (1.0, NOON + 60),
        ("seconds/train", 1): (10.0, NOON + 60),
        ("bytes/up", 1): (200.0, NOON + 60),
    }
    assert set(found) == set(wanted)
    for key, (value, at) in wanted.items():
        assert math.isclose(found[key][0], value, rel_tol=1e-6), key
        assert found[key][1] == at, key


def test_nothing_names_a_hospital_or_a_case(url: str) -> None:
    with open_store(url) as store:
        text = " ".join(one.tag for one in scalars_of(store))
    assert not any(f"h{number}" in text for number in range(4))


def test_a_store_without_rounds_has_no_figures(tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path / 'store.db'}"
    StoreWriter.create(where, make_plan(4), LAYOUT).close()
    with open_store(where) as store:
        assert scalars_of(store) == []


def test_a_second_export_into_one_folder_is_refused(tmp_path: Path, url: str) -> None:
    with open_store(url) as store:
        write_events(store, tmp_path / "events")
        with pytest.raises(ExportError, match="holds an export already"):
            write_events(store, tmp_path / "events")
        assert scalars_of(store)[0] == Scalar("bytes/up", 200.0, 1, NOON + 60)


def test_without_the_extra_the_sentence_names_it(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with open_store(url) as store, pytest.raises(ExportError, match=r"pip install 'hospital-secagg\[tensorboard\]'"):
        write_events(store, tmp_path / "events")


def test_the_command_says_how_many_figures_and_mistakes_are_one_sentence(tmp_path: Path, identities: Path) -> None:
    config = write_study(tmp_path, identities, small_plan())
    arguments = ["tensorboard", "--config", str(tmp_path / "coordinator.toml"), "--out", str(tmp_path / "events")]
    missing = CliRunner().invoke(app, arguments)
    assert missing.exit_code == 2
    assert "there is no store" in missing.output
    config.state.mkdir(exist_ok=True)
    fill(config.database)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "9 figures in" in done.output
