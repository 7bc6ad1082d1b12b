"""summary.json and the table: from stored facts, null where there is no guarantee, never 0."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from rich.console import Console

from coordinator.store import RoundRow
from hospital_node.ledger import BudgetView
from proto.plan import Plan
from study import presets, summary
from study.approvals import low_cap
from study.cast import Cast, Role

URIS = tuple(f"secagg://demo/hospital/{name}" for name in ("a", "b", "c", "d"))


def _plan(name="chest-ct", **changes):
    preset = presets.load(name)
    hospitals = [{"uri": uri, "declared_patients": 40} for uri in URIS]
    return Plan.model_validate({**preset.fields, "study": "demo", "hospitals": hospitals, **changes})


def _view(state="within budget", by_round=((1, 1.5), (2, 2.0))):
    return BudgetView(state, "", 2.0, 8.0, 1e-5, 6.0, "pld", "demo", 2, 3, 1, 3, 2.4, by_round=by_round)


def _row(number=2):
    now = datetime.now(UTC)
    return RoundRow(number, "opened", now, now, URIS, URIS[:3], {URIS[3]: "confirm"}, "ab", {"mask": 0.12345})


def test_one_round_in_names_and_numbers():
    traffic = {(2, uri, "up"): 50_000 for uri in URIS} | {(2, URIS[0], "down"): 90_000}
    views = {uri: _view() for uri in URIS}
    one = summary._round(_row(), {2: {"nodule": 0.61}}, views, traffic, 100_000)
    assert one.survivors == ("a", "b", "c")
    assert one.dropped == {"d": "confirm"}
    assert one.epsilon == dict.fromkeys("abcd", 2.0)
    assert one.times_smaller == 2.0
    assert one.worst_epsilon == 2.0
    assert one.download_bytes == {"a": 90_000}


def test_no_guarantee_is_null_and_said_in_words():
    views = {uri: _view("no guarantee", ((1, float("inf")), (2, float("inf")))) for uri in URIS}
    one = summary._round(_row(), {}, views, {}, 100)
    assert set(one.epsilon.values()) == {None}
    assert summary.cells(one)[3] == "no guarantee"
    whole = summary.Summary(_plan(), {}, (one,))
    assert json.loads(json.dumps(whole.as_json(), allow_nan=False))["rounds"][0]["epsilon"]["a"] is None


def test_one_hospital_without_guarantee_makes_the_worst_unknown():
    views = {uri: _view() for uri in URIS[:3]} | {URIS[3]: _view("no guarantee")}
    assert summary._round(_row(), {}, views, {}, 100).worst_epsilon is None


def test_epsilon_of_a_hospital_that_sat_out_stays_where_it_was():
    one = summary._round(_row(3), {}, {URIS[0]: _view(), URIS[1]: _view(by_round=())}, {}, 100)
    assert one.epsilon == {"a": 2.0, "b": 0.0}


def test_table_shows_start_rounds_and_losses():
    views = {uri: _view() for uri in URIS}
    one = summary._round(_row(), {2: {"nodule": 0.61}}, views, {(2, URIS[0], "up"): 50_000}, 100_000)
    console = Console(width=200, record=True)
    console.print(summary.table(summary.Summary(_plan(), {"nodule": 0.3}, (one,))))
    text = console.export_text()
    for expected in ("start", "0.300", "0.610", "a, b, c", "d lost in confirm", "2.00", "50.0 kB"):
        assert expected in text


def test_summary_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "summary.json"
    summary.write(summary.Summary(_plan(), {"nodule": 0.3}, ()), path)
    assert json.loads(path.read_text())["start_dice"] == {"nodule": 0.3}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["chest-ct", "chest-ct-plain", "hippocampus", "hippocampus-plain", "luna16", "luna16-plain"])
def test_every_template_makes_a_valid_plan_that_survives_toml(name, tmp_path):
    plan = _plan(name)
    presets.write_toml(plan, tmp_path / "plan.toml")
    from proto.plan import load_toml

    assert load_toml(tmp_path / "plan.toml").digest() == plan.digest()
    assert plan.privacy.no_guarantee == name.endswith("-plain")


@pytest.mark.parametrize("name", ["chest-ct", "hippocampus", "luna16"])
def test_templates_with_noise_end_below_epsilon_8_and_the_low_cap_stops_in_between(name):
    from hospital_node.accounting import Mechanism, epsilon

    plan = _plan(name)
    one = Mechanism(plan.privacy.noise_multiplier, 1 / plan.privacy.inverse_sampling_rate, plan.training.local_steps)
    assert epsilon([one.times(plan.rounds)], plan.privacy.delta) <= 8.0
    cap = low_cap(plan)
    fits = [count for count in range(1, plan.rounds + 1) if epsilon([one.times(count)], plan.privacy.delta) <= cap]
    assert 1 <= len(fits) < plan.rounds


def test_admitted_hospitals_declare_what_the_cast_says(tmp_path):
    roles = tuple(Role(name, tmp_path, 40 + index) for index, name in enumerate("abc"))
    cast = Cast("demo", "chest-ct", roles, Role("public", tmp_path, 3), "")
    admitted = presets.admitted(cast, lambda role: f"secagg://demo/hospital/{role.name}")
    assert [hospital.declared_patients for hospital in admitted] == [40, 41, 42]
    assert np.unique([hospital.weight for hospital in admitted]).tolist() == [1]
