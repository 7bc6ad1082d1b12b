"""Which hospitals a round asks: a public function of plan and round, the same for everybody."""

import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto import federation_pb2 as pb
from proto.layout import Layout
from proto.plan import SELECTION_LABEL, Plan, PlanError, from_canonical
from proto.wire import WireError, open_params


def make_plan(hospitals=8, participants=3, **changes):
    fields = {
        "study": "trial",
        "rounds": 50,
        "network": {"labels": ["nodule"]},
        "preparation": {"modality": "CT", "spacing_xyz_mm": [2, 2, 2], "patch_zyx": [16, 16, 16]},
        "training": {"local_steps": 2},
        "privacy": {"noise_multiplier": 1.0, "inverse_sampling_rate": 4},
        "hospitals": [{"uri": f"secagg://trial/hospital/h{n}", "declared_patients": 40} for n in range(hospitals)],
        "participants": participants,
    }
    return Plan.model_validate(fields | changes)


@settings(max_examples=60)
@given(hospitals=st.integers(3, 30), part=st.data(), number=st.integers(0, 2**32 - 1))
def test_a_round_asks_so_many_hospitals_of_the_plan_each_once_and_always_the_same(hospitals, part, number):
    plan = make_plan(hospitals, part.draw(st.integers(3, hospitals)))
    chosen = plan.selected(number)
    assert len(chosen) == len(set(chosen)) == plan.participants == plan.largest_cohort
    assert [h.uri for h in plan.hospitals if h.uri in chosen] == list(chosen), "in the plan's order"
    assert from_canonical(plan.canonical()).selected(number) == chosen


@settings(max_examples=20)
@given(order=st.permutations(range(8)), number=st.integers(1, 50), epochs=st.integers(1, 9))
def test_the_choice_follows_from_the_digest_and_the_round_alone(order, number, epochs):
    """Written out a second time; other plans, which have other digests, choose for themselves."""
    plan = make_plan(rounds=50 + epochs)
    ranks = {
        h.uri: hashlib.sha256(SELECTION_LABEL + plan.digest() + number.to_bytes(8, "big") + h.uri.encode()).digest()
        for h in plan.hospitals
    }
    assert set(plan.selected(number)) == set(sorted(ranks, key=ranks.get)[:3])
    assert set(plan.selected(number)) == set(sorted((plan.hospitals[n].uri for n in order), key=ranks.get)[:3])


def test_every_hospital_gets_its_share():
    plan, rounds = make_plan(10, 3), 1000
    asked = Counter(uri for number in range(1, rounds + 1) for uri in plan.selected(number))
    assert set(asked) == {h.uri for h in plan.hospitals}
    deviation = (rounds * 0.3 * 0.7) ** 0.5
    assert all(abs(count - 0.3 * rounds) < 4 * deviation for count in asked.values()), asked


def test_another_plan_chooses_others():
    chosen = {make_plan(20, 3, rounds=rounds).selected(1) for rounds in range(1, 12)}
    assert len(chosen) > 5


def test_a_plan_that_names_no_number_asks_everybody():
    plan = make_plan(participants=None)
    assert plan.selected(1) == plan.selected(2) == tuple(h.uri for h in plan.hospitals)
    assert plan.largest_cohort == 8


def test_the_number_is_in_the_digest_and_its_absence_is_in_no_digest():
    """Plans written before it existed keep theirs, and with it the approvals recorded for them."""
    plan = make_plan(participants=None)
    assert "participants" not in json.loads(plan.canonical())
    assert len({plan.digest(), make_plan(participants=3).digest(), make_plan(participants=8).digest()}) == 3
    named = json.dumps({**json.loads(plan.canonical()), "participants": None}, sort_keys=True, separators=(",", ":"))
    with pytest.raises(PlanError, match="canonical form"):
        from_canonical(named.encode())


@pytest.mark.parametrize(
    ("participants", "cohort", "says"),
    [
        (9, 3, "participants 9 must lie between 3 .* and 8, all hospitals"),
        (4, 5, "participants 4 must lie between 5 .masking.minimum_cohort. and 8"),
        (2, 3, "'participants': Input should be greater than or equal to 3"),
    ],
)
def test_a_number_that_no_cohort_can_meet_is_refused_in_a_sentence(participants, cohort, says):
    fields = json.loads(make_plan().canonical()) | {"participants": participants}
    fields["masking"]["minimum_cohort"] = cohort
    with pytest.raises(PlanError, match=says):
        from_canonical(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


def test_a_session_with_a_hospital_that_the_round_does_not_ask_has_no_parameters():
    plan = make_plan()
    inside, outside = list(plan.selected(1)), [h.uri for h in plan.hospitals if h.uri not in plan.selected(1)]

    def order(uris):
        members = [pb.Member(uri=uri, public_key=uri.encode(), weight=1, base_digest=bytes(32)) for uri in sorted(uris)]
        return pb.Open(session=bytes(16), round=1, members=members)

    layout = Layout((("w", (5,)),))
    assert open_params(plan, order(inside), layout).participants == tuple(sorted(inside))
    with pytest.raises(WireError, match=f"puts {outside[0]} into round 1, for which the plan does not select it"):
        open_params(plan, order([*inside, outside[0]]), layout)
