"""Charging a study on private patients: approved, charged whole or not at all, once, on a real ledger."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from certs import authority
from hospital_node import cli
from hospital_node.accounting import Mechanism
from hospital_node.cap import Cap, CapFilter
from hospital_node.ledger import Charge, Ledger
from hospital_node.ledger_schema import Verified
from hospital_node.state import StateFolder
from proto.plan import Hospital, Network, Plan, Preparation, Privacy, Training, load_toml, short_name
from study.bench.cells import Cell, Data, DataKind, Method, Partition
from study.bench.charge import CELLS_AT_ONCE, charge, plan_to_approve, settle, statement, write_plan_for_approval
from study.bench.task import StudyError

NOW = datetime.now(UTC)
DELTA = 1e-5
CAP = Cap(epsilon=8.0, delta=DELTA)
ST_ANNA = "secagg://lidc/hospital/st-anna"
ROUNDS, STEPS, K, SIGMA = 5, 4, 4, 1.5


def make_plan(
    *, rounds: int = ROUNDS, sigma: float = SIGMA, names: tuple[str, ...] = ("site-a", "site-b", "site-c"), **more: Any
) -> Plan:
    fields: dict[str, Any] = {
        "study": "sweep",
        "rounds": rounds,
        "network": Network(labels=("nodule",)),
        "preparation": Preparation(modality="CT", spacing_xyz_mm=(1.0, 1.0, 1.0), patch_zyx=(16, 16, 16)),
        "training": Training(local_steps=STEPS),
        "privacy": Privacy(noise_multiplier=sigma, inverse_sampling_rate=K, delta=DELTA, no_guarantee=sigma == 0),
        "hospitals": tuple(Hospital(uri=f"secagg://sweep/hospital/{name}", declared_patients=20) for name in names),
        "start_digest": "ab" * 32,
    }
    return Plan.model_validate(fields | more)


def make_cell(ledger: Path | str, *, seed: int = 1, method: Method = Method.MASKED, kind: DataKind = DataKind.PRIVATE) -> Cell:
    return Cell(
        study="sweep",
        task="segmentation",
        method=method,
        seed=seed,
        data=Data(folder="scans", kind=kind, ledger=str(ledger)),
        partition=Partition(),
        start="random",
        plan={"rounds": ROUNDS},
        settings={"clip_norm": 1.0, "seed": seed},
    )


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    """The state folder of a hospital whose ledger exists."""
    folder = StateFolder(tmp_path / "state")
    folder.create()
    Ledger.create(folder.ledger, ST_ANNA, NOW)
    return folder


def approve(state: StateFolder, cell: Cell, plan: Plan, cap: Cap = CAP) -> Plan:
    asked = plan_to_approve(cell, plan, "st-anna")
    Ledger.open(state.ledger).approve(asked, "Dr Keller", "tuning", cap, NOW)
    return asked


def charges(state: StateFolder) -> list[Charge]:
    return [event.entry for event in Ledger.open(state.ledger).events() if isinstance(event.entry, Charge)]


def entries(state: StateFolder) -> int:
    return len(Ledger.open(state.ledger).events())


def refusal(cell: Cell, plan: Plan, at: datetime = NOW) -> str:
    with pytest.raises(StudyError) as caught:
        charge(cell, plan, at, os.urandom)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_approved_cell_is_charged_for_all_its_rounds_in_one_entry(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan()
    asked = approve(state, cell, plan)
    spent = charge(cell, plan, NOW, os.urandom)
    (entry,) = charges(state)
    assert (entry.noise_multiplier, entry.sampling_rate, entry.steps) == (SIGMA, 1 / K, ROUNDS * STEPS)
    assert (entry.plan, entry.round, entry.clip_norm) == (asked.digest().hex(), 1, plan.privacy.clip_norm)
    judge = CapFilter(delta=DELTA, order=2)
    assert spent == judge.spent([Mechanism(SIGMA, 1 / K, STEPS).times(ROUNDS)])
    assert 0 < spent < CAP.epsilon


def test_nothing_is_charged_without_approval_and_the_plan_to_approve_is_written(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan()
    before = entries(state)
    text = refusal(cell, plan)
    (path,) = (state.path / "studies").iterdir()
    assert f"secagg-node approve --config node.toml --plan {path}" in text
    assert load_toml(path) == plan_to_approve(cell, plan, "st-anna")
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "as one release: 20 steps, at most 4 a round" in first
    assert plan.digest().hex() in first
    assert entries(state) == before


def node_of(root: Path, state: Path) -> Path:
    """A node's configuration with a real certificate."""
    authority.create_authority(root / "ca", "lidc")
    authority.issue(root / "ca", ST_ANNA, root / "identity")
    fields = {"coordinator": "localhost:1", "identity": "identity", "state": str(state), "data": "scans"}
    config = root / "node.toml"
    config.write_text(tomli_w.dumps(fields))
    return config


def test_the_officer_approves_with_the_command_that_the_sentence_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the hospital's ledger is made by this very approval, because nothing was approved there before."""
    folder = StateFolder(tmp_path / "state")
    folder.create()
    folder.write_node(ST_ANNA, "lidc")
    cell, plan = make_cell(folder.path), make_plan()
    words = refusal(cell, plan).split("`")[1].split()
    assert words[:4] == ["secagg-node", "approve", "--config", "node.toml"]
    words[3] = str(node_of(tmp_path, folder.path))
    assert cli.main([*words[1:], "--by", "Dr Keller", "--reason", "tuning", "--epsilon", "8"]) == 0
    assert "st-anna (60 patients)" in " ".join(capsys.readouterr().out.split())
    assert charge(cell, plan, datetime.now(UTC), os.urandom) > 0
    assert len(charges(folder)) == 1


@pytest.mark.parametrize(
    "other",
    [{"rounds": ROUNDS + 1}, {"sigma": 2 * SIGMA}, {"training": Training(local_steps=STEPS, learning_rate=0.5)}],
    ids=str,
)
def test_an_approval_is_for_exactly_one_plan(state: StateFolder, other: dict[str, Any]) -> None:
    cell = make_cell(state.path)
    approve(state, cell, make_plan())
    assert "waits for approval" in refusal(cell, make_plan(**other))
    assert charges(state) == []


def test_as_many_steps_in_other_rounds_are_another_plan(state: StateFolder) -> None:
    cell = make_cell(state.path)
    approve(state, cell, make_plan())
    swapped = make_plan(rounds=STEPS, training=Training(local_steps=ROUNDS))
    assert "waits for approval" in refusal(cell, swapped)


def test_a_withdrawn_approval_counts_no_more(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan()
    asked = approve(state, cell, plan)
    Ledger.open(state.ledger).withdraw(asked, "Dr Keller", "second thoughts", NOW)
    assert "waits for approval" in refusal(cell, plan)


def test_all_rounds_fit_under_the_cap_or_nothing_is_charged(tmp_path: Path) -> None:
    whole = CapFilter(delta=DELTA, order=2).spent([Mechanism(SIGMA, 1 / K, STEPS * ROUNDS)])
    for share, fits in ((0.999, False), (1.001, True)):
        folder = StateFolder(tmp_path / f"state-{fits}")
        folder.create()
        Ledger.create(folder.ledger, ST_ANNA, NOW)
        cell, plan = make_cell(folder.path), make_plan()
        approve(folder, cell, plan, Cap(epsilon=share * whole, delta=DELTA))
        if fits:
            assert charge(cell, plan, NOW, os.urandom) == pytest.approx(whole)
        else:
            before = entries(folder)
            assert "above the cap" in refusal(cell, plan)
            assert entries(folder) == before


def test_cells_add_up_until_the_cap_stops_the_study(state: StateFolder) -> None:
    judge, cell_cost = CapFilter(delta=DELTA, order=2), Mechanism(SIGMA, 1 / K, STEPS * ROUNDS)
    cap = Cap(epsilon=1.001 * judge.spent([cell_cost.times(2)]), delta=DELTA)
    plan, cells = make_plan(), [make_cell(state.path, seed=seed) for seed in (1, 2, 3)]
    for done, cell in enumerate(cells[:2], 1):
        approve(state, cell, plan, cap)
        assert charge(cell, plan, NOW, os.urandom) == pytest.approx(judge.spent([cell_cost.times(done)]))
        settle(cell, NOW)
    approve(state, cells[2], plan, cap)
    assert "above the cap" in refusal(cells[2], plan)
    assert len(charges(state)) == 2


def test_what_the_hospital_spent_elsewhere_counts(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan()
    federation = make_plan(names=("st-anna", "x", "y"))
    ledger = Ledger.open(state.ledger)
    ledger.approve(federation, "Dr Keller", "study", CAP, NOW)
    ledger.commit(ledger.authorize(federation, 1), b"u" * 32, b"s" * 16, NOW)
    ledger.record_verified(federation, 1, NOW)
    approve(state, cell, plan)
    both = CapFilter(delta=DELTA, order=2).spent([Mechanism(SIGMA, 1 / K, STEPS * (ROUNDS + 1))])
    assert charge(cell, plan, NOW, os.urandom) == pytest.approx(both)


def test_an_interrupted_cell_is_spent_and_another_seed_is_another_charge(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan()
    approve(state, cell, plan)
    charge(cell, plan, NOW, os.urandom)
    text = refusal(cell, plan, NOW + timedelta(hours=1))
    assert f"charged on {NOW:%Y-%m-%d} and has no result" in text
    assert "budget is spent" in text
    assert "change the seed" in text
    assert len(charges(state)) == 1
    other = make_cell(state.path, seed=2)
    assert "waits for approval" in refusal(other, plan), "the same plan under another seed is not approved yet"
    approve(state, other, plan)
    charge(other, plan, NOW, os.urandom)
    assert len(charges(state)) == 2


def test_an_interrupted_cell_stays_refused_where_its_plan_changed_since(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan()
    approve(state, cell, plan)
    charge(cell, plan, NOW, os.urandom)
    approve(state, cell, make_plan(start_digest="cd" * 32))
    assert "budget is spent" in refusal(cell, make_plan(start_digest="cd" * 32))


def test_cells_that_come_to_nothing_pause_the_ledger_and_results_keep_it_going(state: StateFolder) -> None:
    plan = make_plan(rounds=1)
    for seed in range(1, CELLS_AT_ONCE + 1):
        approve(state, make_cell(state.path, seed=seed), plan)
        charge(make_cell(state.path, seed=seed), plan, NOW, os.urandom)
    last = make_cell(state.path, seed=99)
    approve(state, last, plan)
    assert "secagg-node resume" in refusal(last, plan)
    settle(make_cell(state.path, seed=1), NOW)
    charge(last, plan, NOW, os.urandom)
    assert len(charges(state)) == CELLS_AT_ONCE + 1


def test_people_who_hold_the_node_hold_the_study(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan()
    approve(state, cell, plan)
    Ledger.open(state.ledger).pause("Dr Keller", "audit", NOW)
    assert "paused this node ('audit')" in refusal(cell, plan)
    assert charges(state) == []


def test_a_result_is_recorded_only_for_a_charge(state: StateFolder) -> None:
    before = entries(state)
    with pytest.raises(StudyError, match="was never charged for it: put back the ledger that paid"):
        settle(make_cell(state.path), NOW)
    assert entries(state) == before


def test_a_result_is_recorded_once_and_for_its_own_cell(state: StateFolder) -> None:
    plan, cells = make_plan(rounds=1), [make_cell(state.path, seed=seed) for seed in (1, 2)]
    for cell in cells:
        approve(state, cell, plan)
        charge(cell, plan, NOW, os.urandom)
    before = entries(state)
    for _ in range(2):
        settle(cells[0], NOW)
    assert entries(state) == before + 1
    last = Ledger.open(state.ledger).events()[-1].entry
    assert last == Verified(plan=plan_to_approve(cells[0], plan, "st-anna").digest().hex(), round=1)


def test_only_the_rounds_that_a_patient_can_be_in_are_charged(state: StateFolder) -> None:
    """The plan asks three of nine parts in a round; each patient is in one part, and everybody can compute which are asked."""
    cell, plan = make_cell(state.path), make_plan(rounds=12, names=tuple(f"part-{at}" for at in range(9)), participants=3)
    asked = [sum(part.uri in plan.selected(number) for number in range(1, 13)) for part in plan.hospitals]
    approve(state, cell, plan)
    charge(cell, plan, NOW, os.urandom)
    (entry,) = charges(state)
    assert entry.steps == max(asked) * STEPS < 12 * STEPS
    assert plan_to_approve(cell, plan, "st-anna").participants is None


@pytest.mark.parametrize("method", [Method.POOLED, Method.LOCAL])
def test_ordinary_training_is_refused_on_private_patients(state: StateFolder, method: Method) -> None:
    cell, plan = make_cell(state.path, method=method), make_plan()
    approve(state, cell, plan)
    assert "ordinary training, which protects nobody" in refusal(cell, plan)
    assert charges(state) == []


@pytest.mark.parametrize("method", [Method.PLAIN, Method.MASKED])
def test_a_plan_without_noise_is_refused_on_private_patients(state: StateFolder, method: Method) -> None:
    before = entries(state)
    assert "no noise" in refusal(make_cell(state.path, method=method), make_plan(sigma=0))
    assert entries(state) == before
    assert not (state.path / "studies").exists(), "nobody is asked to approve it"


@pytest.mark.parametrize("kind", [DataKind.PUBLIC, DataKind.SYNTHETIC])
@pytest.mark.parametrize("method", list(Method))
def test_public_and_synthetic_patients_are_charged_to_nobody(state: StateFolder, kind: DataKind, method: Method) -> None:
    before = entries(state)
    cell = make_cell(state.path, method=method, kind=kind)
    assert charge(cell, make_plan(sigma=0), NOW, os.urandom) == 0.0
    settle(cell, NOW)
    assert entries(state) == before


def test_a_folder_without_any_ledger_is_named(tmp_path: Path) -> None:
    assert "needs data.ledger" in refusal(make_cell(""), make_plan())
    assert "is no folder" in refusal(make_cell(tmp_path / "nowhere"), make_plan())
    assert "no node ever ran there" in refusal(make_cell(tmp_path), make_plan())
    assert list(tmp_path.iterdir()) == []


def edited(database: Path) -> None:
    database.write_bytes(database.read_bytes().replace(b"Dr Keller", b"Dr Kellex"))


def without_counter(database: Path) -> None:
    database.with_suffix(".counter").unlink()


@pytest.mark.parametrize("harm", [edited, without_counter])
def test_a_ledger_that_does_not_verify_lets_nothing_train(state: StateFolder, harm: Callable[[Path], None]) -> None:
    cell, plan = make_cell(state.path), make_plan()
    approve(state, cell, plan)
    harm(state.ledger)
    assert "does not train" in refusal(cell, plan)


def test_a_charge_that_cannot_be_kept_is_no_leave_to_train(state: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, plan = make_cell(state.path), make_plan()
    approve(state, cell, plan)
    monkeypatch.setattr("hospital_node.ledger_store.BUSY_TIMEOUT_S", 0.0)
    with Ledger.open(state.ledger)._files.appending():
        assert "another program holds the ledger" in refusal(cell, plan)
    assert charges(state) == []


def test_the_plan_to_approve_is_the_cells_plan_with_the_real_hospital() -> None:
    cell, plan = make_cell("state"), make_plan()
    asked = plan_to_approve(cell, plan, "st-anna")
    assert {short_name(one.uri): one.declared_patients for one in asked.hospitals} == {
        "site-a": 20,
        "site-b": 20,
        "site-c": 20,
        "st-anna": 60,
    }
    same = {"network", "preparation", "privacy", "masking", "timing", "aggregation", "start_digest"}
    assert asked.model_dump(include=same) == plan.model_dump(include=same)
    assert (asked.rounds, asked.training) == (1, plan.training.model_copy(update={"local_steps": ROUNDS * STEPS}))
    assert cell.id in asked.study
    assert len(plan_to_approve(cell, make_plan(), "site-b").hospitals) == 3, "a part with the hospital's own name is replaced"


def test_a_warm_up_over_rounds_is_none_in_the_one_release_that_is_approved() -> None:
    plan = make_plan(training=Training(local_steps=STEPS, schedule="cosine", warmup_rounds=ROUNDS - 1))
    asked = plan_to_approve(make_cell("state"), plan, "st-anna")
    assert (asked.training.schedule, asked.training.warmup_rounds) == ("cosine", 0)


def test_every_change_of_plan_or_cell_gives_another_plan_to_approve() -> None:
    asked = {
        plan_to_approve(cell, plan, "st-anna").digest()
        for cell in (make_cell("a"), make_cell("a", seed=2), make_cell("b"))
        for plan in (make_plan(), make_plan(rounds=6), make_plan(sigma=2.0), make_plan(names=("p", "q", "r")))
    }
    assert len(asked) == 12


def test_long_names_of_studies_still_name_the_cell() -> None:
    name = "a" * 27 + "-" + "b" * 35
    plan = make_plan(study=name, hospitals=[{"uri": f"secagg://{name}/hospital/{n}", "declared_patients": 9} for n in "xyz"])
    cell = make_cell("a")
    assert cell.id in plan_to_approve(cell, plan, "st-anna").study


def test_a_plan_is_written_so_that_it_reads_back(tmp_path: Path) -> None:
    asked = plan_to_approve(make_cell("a"), make_plan(), "st-anna")
    for remark in ("", "two\nlines"):
        path = write_plan_for_approval(asked, tmp_path / "new" / "folder", remark)
        assert load_toml(path).digest() == asked.digest()
    assert path.read_text().startswith("# two lines\n")
    assert [one.name for one in path.parent.iterdir()] == [f"{asked.study}.toml"]


def test_a_study_says_whose_budget_it_spends() -> None:
    public, synthetic = (statement(Data(kind=kind)) for kind in (DataKind.PUBLIC, DataKind.SYNTHETIC))
    private = statement(Data(kind=DataKind.PRIVATE, ledger="nodes/st-anna/state"))
    assert "are public: no ledger is charged" in public
    assert "are synthetic: no ledger is charged" in synthetic
    assert "nodes/st-anna/state" in private
    assert "data.ledger is missing" in statement(Data(kind=DataKind.PRIVATE))
    for text in (public, synthetic, private):
        assert text.endswith(".")
        assert text.count(". ") == 0
