"""From a study file to its cells: full products, nothing twice, nothing a method cannot read, every mistake one sentence."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from bench_world import STUDY, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.bench.cells import HOSPITAL_UNITS, Cell, Method
from study.bench.grid import BASELINES, Study, load_study, unread
from study.bench.task import StudyError
from study.presets import PLANS

HEAD = STUDY.partition("[[grid]]")[0]
SWEEP = HEAD.replace("[1, 2]", "[1]")


def study_of(folder: Path, grid: str, head: str = HEAD) -> Study:
    return written(folder, head + grid)


def test_a_table_is_the_product_of_its_lists_and_a_study_their_union(tmp_path: Path) -> None:
    study = study_of(
        tmp_path,
        """
        [[grid]]
        method = ["plain", "masked"]
        "training.local_steps" = [4, 8, 16]
        [[grid]]
        method = "masked"
        "training.local_steps" = [16, 32]
        """,
    )
    cells = study.cells()
    assert len(cells) == 2 * 2 * 3 + 2 * 1  # seeds x ...; masked with 16 steps is in both tables
    assert len({cell.id for cell in cells}) == len(cells)
    assert [cell.plan["training"]["local_steps"] for cell in cells[:6:2]] == [4, 8, 16]
    assert {cell.plan["rounds"] for cell in cells} == {3}  # [set]
    assert {(cell.study, cell.task) for cell in cells} == {("small", "bench_world:TASK")}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    lanes=st.lists(st.integers(2, 5), min_size=1, max_size=3, unique=True),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    method=st.sampled_from(list(Method)),
)
def test_the_number_of_cells_follows_from_what_the_method_reads(
    tmp_path: Path, rounds: list[int], lanes: list[int], seeds: list[int], method: Method
) -> None:
    needed = "epsilon = 8\nhospital_clip = 1.0\n" if method in HOSPITAL_UNITS else ""
    grid = f'[[grid]]\nmethod = "{method}"\nrounds = {rounds}\nseeds = {seeds}\n"masking.lanes" = {lanes}\n{needed}'
    cells = study_of(tmp_path, grid).cells()
    reads_rounds, reads_lanes = method not in BASELINES, method is Method.MASKED
    assert len(cells) == len(seeds) * (len(rounds) if reads_rounds else 1) * (len(lanes) if reads_lanes else 1)
    assert [cell.id for cell in cells] == [cell.id for cell in load_study(tmp_path / "study.toml").cells()]
    assert all(("rounds" in cell.settings) == reads_rounds for cell in cells)


def test_a_cell_survives_its_json(tmp_path: Path) -> None:
    (cell,) = study_of(tmp_path, '[[grid]]\nmethod = "masked"\nepsilon = [inf]\n"network.channels" = [[4, 8]]\n', SWEEP).cells()
    again = Cell.model_validate_json(cell.model_dump_json())
    assert (again, again.id) == (cell, cell.id)
    assert again.settings == {"epsilon": math.inf, "network.channels": [4, 8]}


def test_dotted_names_may_be_quoted_bare_or_tables(tmp_path: Path) -> None:
    forms = [
        '[[grid]]\nmethod = "masked"\n"privacy.clip_norm" = [1.5]\n',
        '[[grid]]\nmethod = "masked"\nprivacy.clip_norm = [1.5]\n',
        '[[grid]]\nmethod = "masked"\n[grid.privacy]\nclip_norm = 1.5\n',
    ]
    found = [cell for form in forms for cell in study_of(tmp_path, form, SWEEP).cells()]
    assert [cell.plan["privacy"]["clip_norm"] for cell in found] == [1.5, 1.5, 1.5]
    assert len({cell.id for cell in found}) == 1


def test_federated_settings_of_training_can_be_varied_and_do_not_multiply_the_baselines(tmp_path: Path) -> None:
    grid = """
    [[grid]]
    method = ["pooled", "plain"]
    "training.proximal" = [0.0, 0.1, 1.0]
    "training.schedule" = ["constant", "cosine"]
    "training.learning_rate_decay" = 1.0
    "training.warmup_rounds" = 1
    """
    cells = study_of(tmp_path, grid, SWEEP).cells()
    assert [cell.method for cell in cells] == ["pooled", *["plain"] * 6]
    assert {(cell.plan["training"]["proximal"], cell.plan["training"]["schedule"]) for cell in cells[1:]} == {
        (mu, schedule) for mu in (0.0, 0.1, 1.0) for schedule in ("constant", "cosine")
    }
    assert cells[1].settings["training.warmup_rounds"] == 1


def test_parts_of_the_network_can_be_varied_by_word_and_by_names(tmp_path: Path) -> None:
    grid = """
    [[grid]]
    method = ["pooled", "masked"]
    "training.parts" = ["all", "norms-and-biases", ["model.2"]]
    [[grid]]
    method = "masked"
    "training.adapter_rank" = [2, 4]
    """
    pooled, *masked = study_of(tmp_path, grid, SWEEP).cells()
    assert pooled.settings == {}
    assert [(cell.plan["training"]["parts"], cell.plan["training"]["adapter_rank"]) for cell in masked] == [
        ("all", None), ("norms-and-biases", None), (["model.2"], None), ("all", 2), ("all", 4)
    ]  # fmt: skip
    assert [cell.settings for cell in masked[2:4]] == [
        {"training.parts": ["model.2"]}, {"training.parts": "all", "training.adapter_rank": 2}
    ]  # fmt: skip


def test_an_argument_of_the_network_can_be_varied_and_its_absence_makes_no_other_cell(tmp_path: Path) -> None:
    grid = """
    [[grid]]
    method = "masked"
    "network.arguments.num_res_units" = [1, 2]
    "network.arguments.kernel_size" = [[3, 3, 5]]
    [[grid]]
    method = "masked"
    """
    first, second, plain = study_of(tmp_path, grid, SWEEP).cells()
    assert [cell.plan["network"]["arguments"] for cell in (first, second, plain)] == [
        {"num_res_units": 1, "kernel_size": [3, 3, 5]}, {"num_res_units": 2, "kernel_size": [3, 3, 5]}, {}
    ]  # fmt: skip
    assert second.settings == {"network.arguments.num_res_units": 2, "network.arguments.kernel_size": [3, 3, 5]}
    assert plain.settings == {}


def test_a_later_field_of_a_plan_leaves_the_ids_of_finished_cells_alone(tmp_path: Path) -> None:
    """A cell that was stored before the field existed is the same cell; `participants` has always been in the id."""
    (cell,) = study_of(tmp_path, '[[grid]]\nmethod = "masked"\n', SWEEP).cells()
    before = {**cell.plan, "network": {name: value for name, value in cell.plan["network"].items() if name != "arguments"}}
    assert cell.model_copy(update={"plan": before}).id == cell.id
    changed = {**cell.plan, "network": {**cell.plan["network"], "arguments": {"num_res_units": 2}}}
    assert cell.model_copy(update={"plan": changed}).id != cell.id
    unasked = {name: value for name, value in cell.plan.items() if name != "participants"}
    assert cell.model_copy(update={"plan": unasked}).id != cell.id


def test_everything_of_a_cell_can_be_varied(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text((PLANS / "hippocampus.toml").read_text())
    grid = """
    [[grid]]
    method = ["plain"]
    plan = ["hippocampus-plain", "other.toml"]
    start = ["random", "public", "${FOLDER}/a.safetensors"]
    hospitals = [4, 8]
    "partition.kind" = ["iid", "dirichlet"]
    "partition.alpha" = 0.1
    "data.folder" = ["a", "b"]
    """
    cells = study_of(tmp_path, grid, SWEEP).cells()
    assert len(cells) == 2 * 3 * 2 * 2 * 2
    last = cells[-1]
    assert (last.start, last.partition.hospitals, last.partition.kind) == ("${FOLDER}/a.safetensors", 8, "dirichlet")
    assert (last.partition.alpha, last.data.folder, last.data.kind) == (0.1, "b", "synthetic")
    assert last.settings["plan"] == "other.toml"
    assert last.settings["hospitals"] == 8


def test_the_recipe_of_a_public_start_is_part_of_the_cell_that_uses_it(tmp_path: Path) -> None:
    public, random = study_of(tmp_path, '[[grid]]\nmethod = "plain"\nstart = ["public", "random"]\n', SWEEP).cells()
    assert public.plan["start"] == {"volumes": 100, "steps": 200, "batch": 4, "learning_rate": 0.01}
    assert public.plan["anatomy"] == "hippocampus"
    assert not {"start", "anatomy"} & random.plan.keys()


def test_what_a_baseline_cannot_read_does_not_make_it_another_cell(tmp_path: Path) -> None:
    grid = """
    [[grid]]
    method = ["pooled", "local"]
    rounds = [3, 6]
    epsilon = [8, inf]
    "masking.lanes" = [2, 3]
    "privacy.inverse_sampling_rate" = [2, 4]
    "ordinary.steps" = [100, 200]
    """
    cells = study_of(tmp_path, grid, SWEEP).cells()
    assert [(cell.method, cell.ordinary.steps) for cell in cells] == [
        ("pooled", 100), ("pooled", 200), ("local", 100), ("local", 200)
    ]  # fmt: skip
    assert [cell.settings for cell in cells] == 2 * [{"ordinary.steps": 100}, {"ordinary.steps": 200}]
    longer = study_of(tmp_path, grid, SWEEP.replace("rounds = 3", "rounds = 9")).cells()
    assert [cell.id for cell in longer] == [cell.id for cell in cells]  # finished baselines outlive a change of the federation


def test_the_recipe_of_ordinary_training_does_not_multiply_federations(tmp_path: Path) -> None:
    cells = study_of(tmp_path, '[[grid]]\nmethod = "masked"\n"ordinary.steps" = [100, 200]\n', SWEEP).cells()
    assert len(cells) == 1
    assert cells[0].settings == {}


def test_pooled_patients_are_dealt_to_nobody_unless_the_deal_changes_the_images(tmp_path: Path) -> None:
    grid = '[[grid]]\nmethod = ["pooled", "local"]\n"partition.kind" = ["sites", "iid", "quality"]\n"partition.by" = "noise"\n'
    cells = study_of(tmp_path, grid, SWEEP).cells()
    assert [(cell.method, cell.partition.kind) for cell in cells] == [
        ("pooled", "sites"), ("pooled", "quality"), ("local", "sites"), ("local", "iid"), ("local", "quality")
    ]  # fmt: skip


def test_no_noise_has_one_form(tmp_path: Path) -> None:
    (plain_plan,) = study_of(tmp_path, '[[grid]]\nmethod = "masked"\n', SWEEP).cells()
    (asked,) = study_of(tmp_path, '[[grid]]\nmethod = "masked"\nepsilon = inf\n', SWEEP).cells()
    (noisy_plan,) = study_of(
        tmp_path, '[[grid]]\nmethod = "masked"\nepsilon = inf\n', SWEEP.replace('"hippocampus-plain"', '"hippocampus"')
    ).cells()
    assert plain_plan.id == asked.id
    assert asked.epsilon == math.inf
    assert noisy_plan.plan["privacy"]["no_guarantee"] is True


def test_noise_without_a_word_about_the_guarantee(tmp_path: Path) -> None:
    cells = study_of(tmp_path, '[[grid]]\nmethod = "masked"\n"privacy.noise_multiplier" = [0.0, 1.5]\n', SWEEP).cells()
    assert [(cell.plan["privacy"]["no_guarantee"], cell.epsilon) for cell in cells] == [(True, math.inf), (False, None)]


@pytest.mark.parametrize(
    ("name", "method", "expected"),
    [
        ("epsilon", Method.POOLED, True),
        ("epsilon", Method.PLAIN, False),
        ("privacy.clip_norm", Method.LOCAL, True),
        ("training.local_steps", Method.LOCAL, True),
        ("training.augment", Method.LOCAL, False),
        ("training.proximal", Method.POOLED, True),
        ("training.schedule", Method.LOCAL, True),
        ("training.weight_decay", Method.PLAIN, False),
        ("network.channels", Method.POOLED, False),
        ("start", Method.POOLED, False),
        ("partition.hospitals", Method.LOCAL, False),
        ("partition.hospitals", Method.POOLED, True),
        ("masking.lanes", Method.PLAIN, True),
        ("masking.lanes", Method.MASKED, False),
        ("ordinary.steps", Method.MASKED, True),
        ("ordinary.steps", Method.POOLED, False),
    ],
)
def test_what_a_method_reads(name: str, method: Method, expected: bool) -> None:
    assert unread(name, method) is expected


def test_who_is_asked_follows_from_the_whole_plan_also_without_masks() -> None:
    assert not unread("masking.lanes", Method.PLAIN, selects=True)
    assert unread("masking.lanes", Method.POOLED, selects=True)
    assert unread("ordinary.steps", Method.PLAIN, selects=True)


BAD = {
    'stuby = "x"\n': "unknown key 'stuby'",
    "[data]\nfoldr = 1\n": "unknown key 'data.foldr'",
    '[set]\n"privacy.nose" = 1\n[[grid]]\nmethod = "plain"\n': "unknown key 'privacy.nose'",
    '[set]\nstudy = "x"\n[[grid]]\nmethod = "plain"\n': "'study' follows from the study itself",
    '[set]\nepsilon = 8\n[[grid]]\nmethod = "plain"\n': "[set], which changes plan fields: 'epsilon' is no field",
    '[[grid]]\nmethod = "plain"\nrunds = 3\n': "[[grid]] 1: 'runds' is no field of a plan",
    '[[grid]]\nmethod = "plain"\n"training.lern" = 3\n': "unknown key 'training.lern'",
    '[[grid]]\nmethod = "plain"\n"rounds.x" = 3\n': "'rounds.x' goes into 'rounds'",
    '[[grid]]\nmethod = "plain"\nrounds = [3, 0]\n': "cell method plain, rounds 0, seed 1: 'rounds'",
    '[[grid]]\nmethod = "plain"\n"training.parts" = ["decoder"]\n': "write beginnings of tensors' names as a list",
    '[[grid]]\nmethod = "plain"\n"training.warmup_rounds" = 99\n': "warmup_rounds 99 leaves none of the",
    '[[grid]]\nmethod = "plain"\n"network.channels" = [4, 8]\n': "one value of 'network.channels' is a list itself",
    '[[grid]]\nmethod = "plain"\nevaluators = ["x"]\n': "'evaluators' follows",
    '[[grid]]\nmethod = "plain"\n"partition.hospitals" = 2\n': "'partition.hospitals'",
    '[[grid]]\nmethod = "plain"\n"partition.kind" = "random"\n': "'partition.kind'",
    '[[grid]]\nmethod = "plain"\n"partition.knd" = "iid"\n': "unknown key 'partition.knd'",
    '[[grid]]\nmethod = "plain"\nplan = "hippocamp"\n': "there is no template 'hippocamp': name one of chest-ct",
    '[[grid]]\nmethod = "plain"\nplan = "x/y.toml"\n': "there is no template",
    '[[grid]]\nmethod = "plain"\nplan = 3\n': "'plan' names a template",
    '[[grid]]\nmethod = "plain"\nepsilon = 0\n': "'epsilon'",
    '[[grid]]\nmethod = "plain"\nepsilon = 1e-9\n': "no noise multiplier",
    '[[grid]]\nmethod = "plain"\nepsilon = 8\n"privacy.noise_multiplier" = 1\n': "epsilon already decides",
    '[[grid]]\nmethod = "plain"\nseeds = ["one"]\n': "'seed'",
    '[[grid]]\nmethod = "plein"\n': "there is no method 'plein'",
    "[[grid]]\nmethod = []\n": "'method' is an empty list",
    "[[grid]]\nrounds = 3\n": "key 'method' is missing",
    "grid = []\n": "'grid': write a table under [[grid]], in two brackets",
    '[grid]\nmethod = "plain"\n': "'grid': write a table under [[grid]], in two brackets",
    "": "key 'grid' is missing",
    "[[grid]\n": "is not valid TOML",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: text.replace("\n", " ") or "no grid")
def test_a_bad_study_file_is_one_sentence_that_names_the_place(tmp_path: Path, text: str) -> None:
    head = 'study = "small"\nplan = "hippocampus-plain"\nseeds = [1]\n'
    with pytest.raises(StudyError) as caught:
        written(tmp_path, head + text)
    assert BAD[text] in str(caught.value)
    assert "\n" not in str(caught.value) or "TOML" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('study = "My study"', "'study': 'My study' is no name: write small letters, digits and dashes"),
        ("seeds = 3", "'seeds': write a list, such as seeds = [1, 2, 3]"),
        ("seeds = []", "'seeds': write a list, such as seeds = [1, 2, 3]"),
    ],
)
def test_a_bad_first_line_is_one_sentence_with_the_remedy(tmp_path: Path, line: str, said: str) -> None:
    head = {"study": 'study = "small"', "seeds": "seeds = [1]", "plan": 'plan = "hippocampus-plain"'}
    head[line.split(maxsplit=1)[0]] = line
    with pytest.raises(StudyError) as caught:
        written(tmp_path, "\n".join(head.values()) + '\n[[grid]]\nmethod = "plain"\n')
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot read the study file"):
        load_study(tmp_path / "none.toml")


def test_a_public_start_needs_a_recipe(tmp_path: Path) -> None:
    template = (PLANS / "hippocampus.toml").read_text().partition("[start]")[0]
    (tmp_path / "bare.toml").write_text(template)
    with pytest.raises(StudyError, match="has no start, so there is no public start of it"):
        study_of(tmp_path, '[[grid]]\nmethod = "plain"\nplan = "bare.toml"\nstart = "public"\n', SWEEP)


EXAMPLES = sorted(path for path in PLANS.parent.glob("*/*.toml") if "[[grid]]" in path.read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_studies_that_come_with_the_product_are_valid(path: Path) -> None:
    assert load_study(path).cells()


def test_the_study_file_in_the_document_is_valid(tmp_path: Path) -> None:
    text = (PLANS.parent / "STUDIES.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    cells = written(tmp_path, block).cells()
    assert len(cells) == 3 * (4 + 4 * 2)
    assert {name for cell in cells for name in cell.settings} == {"epsilon", "privacy.inverse_sampling_rate"}


def test_plan_fields_that_came_later_leave_the_ids_of_finished_cells_alone(tmp_path: Path) -> None:
    cell = study_of(tmp_path, '[[grid]]\nmethod = "masked"\n').cells()[0]
    fields = cell.model_dump(mode="json")
    assert fields["plan"]["masking"]["keep"] == 1
    del fields["plan"]["masking"]["keep"]  # as an earlier version wrote it
    assert Cell.model_validate(fields).id == cell.id
    fields["plan"]["masking"]["keep"] = 0.5
    assert Cell.model_validate(fields).id != cell.id
