"""[buffer] of a plan: what it refuses by name, integer factors against real numbers, FedBuff's rule, weights of a session."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_proto_participants import make_plan

from proto import federation_pb2 as pb
from proto.buffering import FACTOR_ONE, Buffer, damping
from proto.layout import Layout
from proto.plan import PlanError, from_canonical, load_toml
from proto.wire import RosterError, open_params

LAYOUT = Layout((("layer", (3,)),))


def buffered(hospitals=8, participants=None, *, updates=3, **changes):
    fields = {"updates": updates, **{name: changes.pop(name) for name in tuple(changes) if name in Buffer.model_fields}}
    return make_plan(hospitals, participants, buffer=fields, **changes)


@settings(max_examples=200)
@given(st.integers(0, 1000), st.floats(0, 8))
def test_a_factor_is_the_power_law_rounded_to_its_parts(staleness, exponent):
    buffer = Buffer(updates=3, max_staleness=1000, staleness_exponent=exponent)
    exact = FACTOR_ONE * (1 + staleness) ** -exponent
    assert abs(buffer.factor(staleness) - max(1.0, exact)) <= 0.5 + 1e-9
    assert buffer.factor(staleness) == 1 or buffer.factor(staleness) <= buffer.factor(max(0, staleness - 1))


def test_factors_that_everybody_has_to_agree_on():
    assert Buffer(updates=3).factors == (1024, 724, 591, 512, 458)
    assert Buffer(updates=3, staleness_exponent=0).factors == (1024,) * 5
    assert Buffer(updates=3, max_staleness=1000, staleness_exponent=8).factors[-1] == 1, (
        "never nothing: it would not be in the sum"
    )


@pytest.mark.parametrize("staleness", [-1, 5])
def test_an_older_update_has_no_factor(staleness):
    with pytest.raises(ValueError, match="is not between 0 and 4"):
        Buffer(updates=3).factor(staleness)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.integers(0, 4), st.floats(-1, 1)), min_size=3, max_size=9))
def test_the_opened_mean_and_its_damping_are_fedbuffs_sum(members):
    """Nguyen et al. 2022, algorithm 1: the mean of factor times update, written out a second time in real numbers."""
    buffer = Buffer(updates=3)
    weights = [weight for weight, _, _ in members]
    session = [weight * buffer.factor(staleness) for weight, staleness, _ in members]
    opened = math.fsum(w * value for w, (_, _, value) in zip(session, members, strict=True)) / sum(session)
    rule = math.fsum(w * (1 + staleness) ** -0.5 * value for w, staleness, value in members) / sum(weights)
    assert opened * damping(weights, session) == pytest.approx(rule, abs=1 / FACTOR_ONE)
    assert 0 < damping(weights, session) <= 1


def test_fresh_updates_are_not_damped():
    assert damping([3, 5], [3 * FACTOR_ONE, 5 * FACTOR_ONE]) == 1


def test_a_plan_without_a_buffer_keeps_its_digest():
    assert b"buffer" not in make_plan(participants=None).canonical()
    plan = buffered()
    assert plan.digest() != make_plan(participants=None).digest()
    assert from_canonical(plan.canonical()) == plan


REFUSED = [
    (
        {"updates": 1},
        "buffer.updates = 1 is asynchronous training without a cohort, in which every sum is one hospital's update",
    ),
    ({"updates": 2}, r"buffer.updates 2 must lie between 3 \(masking.minimum_cohort\) and 8"),
    ({"updates": 9}, "and 8, all hospitals of the plan"),
    ({"updates": 3, "masking": {"minimum_cohort": 4}}, "must lie between 4"),
    ({"participants": 4}, "does not go with participants: they are chosen before a round"),
    (
        {"evaluation": {"every": 2, "share": 0.2, "noise_multiplier": 3.0}},
        "does not go with evaluation: its sums are of one model",
    ),
    ({"training": {"local_steps": 2, "adapter_rank": 2}}, "does not go with training.adapter_rank: the adapters change"),
    (
        {"aggregation": {"rule": "scaffold"}, "training": {"local_steps": 2, "optimizer": "sgd"}},
        "does not go with aggregation.rule",
    ),
    ({"aggregation": {"absent": "momentum"}}, "does not go with aggregation.absent momentum"),
    ({"aggregation": {"weights": "precision"}}, "does not go with aggregation.weights precision"),
    ({"max_staleness": -1}, "greater than or equal to 0"),
    ({"staleness_exponent": math.inf}, "finite"),
]


@pytest.mark.parametrize(
    ("changes", "sentence"), REFUSED, ids=[next(iter(changes)) + str(n) for n, (changes, _) in enumerate(REFUSED)]
)
def test_what_cannot_hold_is_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        buffered(**changes)


def test_a_plan_file_with_one_update_a_sum_is_refused_when_it_is_loaded(tmp_path):
    import tomli_w

    fields = make_plan(participants=None).model_dump(mode="json", exclude_none=True)
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(fields | {"buffer": {"updates": 1}}))
    with pytest.raises(PlanError, match=r"plan.toml: .*every sum is one hospital's update, opened: say 3 or more"):
        load_toml(tmp_path / "plan.toml")


def opened(plan, weights, bases=(b"b" * 32,) * 3):
    members = [
        pb.Member(uri=f"secagg://trial/hospital/h{n}", public_key=b"key%d" % n, weight=weight, base_digest=base)
        for n, (weight, base) in enumerate(zip(weights, bases, strict=True))
    ]
    return open_params(plan, pb.Open(session=bytes(16), round=5, members=members), LAYOUT)


def test_the_context_binds_weight_and_model_of_every_member():
    plan = buffered()
    params = opened(plan, (1024, 1024, 1024))
    assert params.weights == (1024,) * 3
    assert params.context() != opened(plan, (724, 1024, 1024)).context()
    assert params.context() != opened(plan, (1024,) * 3, (b"b" * 32, b"b" * 32, b"c" * 32)).context()


def test_equally_stale_members_have_the_levels_of_fresh_ones():
    plan = buffered()
    fresh, old = opened(plan, (1024,) * 3), opened(plan, (458,) * 3)
    assert fresh.half_steps == old.half_steps
    assert [fresh.offset(p) for p in fresh.participants] == [old.offset(p) for p in old.participants]


@pytest.mark.parametrize("weight", [1, 1023, 2048, 457])
def test_a_weight_that_no_staleness_gives_is_refused(weight):
    with pytest.raises(RosterError, match="another weight than the plan"):
        opened(buffered(), (weight, 1024, 1024))


def test_evaluation_sums_need_one_model_in_the_masks_too():
    from secagg import LocalError, Quantizer, RoundParams

    with pytest.raises(LocalError, match="extra coordinates need one base model"):
        RoundParams(
            session=bytes(16),
            participants=("a", "b", "c"),
            threshold=3,
            length=3,
            quantizer=Quantizer(1.0, 3),
            base_digests=(b"x" * 32, b"x" * 32, b"y" * 32),
            extra_clips=(1.0,),
        )
