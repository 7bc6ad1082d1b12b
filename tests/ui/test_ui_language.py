"""The screen in Chinese: every sentence that a page shows has one, placeholders agree, and what is not known stays as it is."""

import re
from dataclasses import replace

import pytest
from streamlit import config
from study_world import cells_of, write
from test_ui_states import PAGES, STATES
from worlds import World, make_plan

from hospital_node.budget import budget_view
from hospital_node.ledger import Cap, Charge
from hospital_node.offer import terms
from hospital_node.statement import paragraph, statement
from proto.plan import DECLINE_CODES, Evaluation, Plan
from study.bench.cells import Method
from ui import findings
from ui.language import CATALOGUES, LANGUAGES, PLACEHOLDER, Catalogue, preferred, translate, translated

CHINESE = CATALOGUES["中文"]
OF_THE_USER = {"chest study, board decision 12", "Nobody is charged."}  # what people wrote stays as they wrote it


def chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def test_every_sentence_has_the_same_placeholders_in_both_languages():
    for english, said in CHINESE.sentences.items():
        assert sorted(PLACEHOLDER.findall(english)) == sorted(PLACEHOLDER.findall(said)), english


def test_every_sentence_is_said_in_chinese():
    without = [one for one, said in CHINESE.sentences.items() if not chinese(said)]
    signs = {"of", "at", "epsilon", "ε", "δ", "·", ",", ")"}  # names, numbers and signs alone need no Chinese
    assert [one for one in without if not set(PLACEHOLDER.sub(" ", one).replace("(", " ").split()) <= signs] == []


def test_no_sentence_is_shadowed_by_another():
    """Each one, filled with names and numbers, comes out as its own Chinese."""
    for english, said in CHINESE.sentences.items():
        if not PLACEHOLDER.search(english):
            assert translate(english, "中文") == said, english


@pytest.mark.parametrize(
    ("english", "said"),
    [
        ("Round 7 · st-anna joined", "第 7 轮 · st-anna 加入"),
        (
            "**Within budget**  \nNo round runs that would cross the cap.",
            "**在预算之内**  \n不会运行会超过上限的轮次。",
        ),
        ("lakeside (masked update) and nordklinik (masked update)", "lakeside（掩码更新）、nordklinik（掩码更新）"),
        ("#### Ledger", "#### 账本"),
        ("Smaller is stronger; it never goes down. Rounded up.", "越小越强；它从不下降。向上取整。"),
        ("3 of 6", "3 / 6"),
        ("Dr K. Weber", "Dr K. Weber"),
        ("2.5 kB", "2.5 kB"),
        ("", ""),
    ],
)
def test_sentences_phrases_and_names(english, said):
    assert translate(english, "中文") == said
    assert translate(english, "English") == english


def test_every_method_of_a_study_and_whose_its_epsilon_is_are_known():
    for method in Method:
        assert chinese(translate(method.value, "中文")), method
        assert not re.search("[a-z]{3}", translate(findings.METHODS[method], "中文")), method
    assert translate("3.20 (of a hospital)", "中文") == "3.20（针对一家医院）"


GONE = "it begins anew, and nothing of its update has left"


def test_why_a_hospital_declined_and_what_a_run_records_are_known():
    for reason in DECLINE_CODES.values():
        assert chinese(translate(reason, "中文")), reason
    for text in (
        "Round 2 · cohort of 3: a, b, c · any 3 of them open the sum",
        "Round 2 · 3 of 4 uploaded · without b",
        "Round 2 · model of round 2: mean Dice nodule 0.64",
        "Round 2 · ended without a sum (2 of 4 returned, 3 are needed); its updates are gone, the model stays",
        "Round 6 · the run is over: all 6 rounds are done",
        "Round 4 · h5 has an update from round 1",
        f"Round 4 · h5 is at its update since round 1, longer than the plan allows: {GONE}",
        f"Round 4 · too few hospitals are left at the model of h5: {GONE}",
    ):
        assert all(chinese(part) for part in translate(text, "中文").split(" · ")), text


@pytest.mark.parametrize("noise", [1.25, 0.0])
@pytest.mark.parametrize(("read_by", "hospitals"), [("pld", 1), ("renyi", 2)])
def test_the_guarantee_is_said_in_chinese_whatever_holds(tmp_path, noise, read_by, hospitals):
    world = World(tmp_path, make_plan(3, noise=noise, evaluation=Evaluation(noise_multiplier=3.0, every=1, share=0.2)))
    ledger = world.approve("lakeside")
    charged, cap = [], Cap(epsilon=8.0, delta=1e-5)
    for number in range(3):
        changed = {"read_by": read_by, "hospitals_per_patient": hospitals, "across_hospitals": 2.0}
        view = replace(budget_view(ledger.events(), world.plan), **changed)
        for kept in (None, cap):
            text = paragraph("lakeside", view, charged, kept)
            before = set(CHINESE.missed)
            said = CHINESE.text(text)
            assert CHINESE.missed == before
            assert "satisfies" not in said
            assert chinese(said)
        if number < 2:
            world.charge("lakeside", number + 1)
            ledger = world.ledger("lakeside")
            charged = [event.entry for event in ledger.events() if isinstance(event.entry, Charge)]


def test_the_guarantee_of_shared_noise_is_said_in_chinese(tmp_path):
    plan = make_plan(5, noise=1.5).model_dump(mode="json")
    plan["training"] |= {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0}
    plan["privacy"] |= {"noise_mode": "shared", "norm_steps": 500, "may_drop": 1, "may_collude": 1}
    plan["masking"] |= {"update_clip": 1.0, "clip_decay": 1.0, "tensor_clips": []}
    world = World(tmp_path, Plan.model_validate(plan))
    world.approve("lakeside")
    world.charge("lakeside", 1)
    made = statement(world.ledger("lakeside").events(), world.plan)
    before = set(CHINESE.missed)
    said = [CHINESE.text(made.paragraph), *(CHINESE.text(assumption.text) for assumption in made.assumptions)]
    said += [CHINESE.text(one.explanation) for one in made.fields if one.label in {"attacker", "best guess"}]
    said += [CHINESE.text(asked) for name, asked in terms(world.plan, "lakeside").items() if name != "digest"]
    assert CHINESE.missed == before
    assert all(chinese(one) for one in said)
    assert "与 1 家医院串通" in said[0]
    assert any("协调方连同至多 1 家医院判断" in one for one in said)


def test_what_is_not_known_stays_and_is_noted():
    catalogue = Catalogue({"a known one": "知道"})
    assert catalogue.text("an unknown sentence") == "an unknown sentence"
    assert catalogue.missed == {"an unknown sentence"}


def test_what_people_wrote_keeps_its_commas_and_a_list_of_names_takes_those_of_the_language():
    assert (
        translate("By Dr K. Weber: board decision 12, chest study.", "中文")
        == "由 Dr K. Weber 批准：board decision 12, chest study。"
    )
    assert "lakeside、st-anna" in translate("Lost: lakeside, st-anna.", "中文")


def test_a_number_in_a_placeholder_takes_no_words():
    catalogue = Catalogue({"{count} of {number}": "{count} / {number}"})
    assert catalogue.text("two of three") == "two of three"
    assert catalogue.text("1,200 of 2,000") == "1,200 / 2,000"


def test_texts_of_a_chart_are_found_at_any_depth():
    spec = {"layer": [{"encoding": {"x": {"title": "round", "field": "text"}}, "data": {"values": [{"text": "float32 1 kB"}]}}]}
    found = translated(spec, "中文", ("title", "text"))
    assert found["layer"][0]["encoding"]["x"] == {"title": "轮次", "field": "text"}
    assert found["layer"][0]["data"]["values"] == [{"text": "float32 1 kB"}]


@pytest.mark.parametrize(("locale", "language"), [("zh-CN", "中文"), ("zh", "中文"), ("de-DE", "English"), (None, "English")])
def test_the_browser_says_which_language_comes_first(locale, language):
    assert preferred(locale) == language
    assert language in LANGUAGES


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return write(folder, cells_of(folder, 2))


@pytest.mark.parametrize("state", ["nothing yet", "running", "spent", "damaged", "stale"])
def test_every_page_speaks_chinese(open_page, tmp_path, study, state):
    config.set_option("server.address", "127.0.0.1")
    world = STATES[state][0](tmp_path)
    before = set(CHINESE.missed)
    for page in PAGES:
        app = open_page([*world.arguments(), "--study", str(study)], page, language="中文")
        assert chinese(app.title[0].value), page
    assert CHINESE.missed - before - OF_THE_USER == set()


def test_no_guarantee_in_chinese_is_words_too(open_page, tmp_path):
    world = World(tmp_path, make_plan(3, noise=0.0))
    world.start()
    world.approve_all()
    world.round(1)
    app = open_page(world.arguments(), "privacy", language="中文")
    assert {metric.label: metric.value for metric in app.metric}["已用"] == "没有保证"


def test_the_choice_is_in_the_side_bar_and_in_the_address(open_page, tmp_path):
    app = open_page(World(tmp_path).arguments())
    assert app.title[0].value == "Overview"
    app.selectbox(key="language").select("中文").run()
    assert app.title[0].value == "总览"
