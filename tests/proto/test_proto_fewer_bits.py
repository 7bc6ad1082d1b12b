"""What a plan says about bits reaches the session: clips that follow the round, tensors with clips of their own."""

import pytest
from test_proto_participants import make_plan

from proto import federation_pb2 as pb
from proto.layout import Layout
from proto.plan import Plan, PlanError, from_canonical
from proto.wire import WireError, open_params

LAYOUT = Layout((("encoder.weight", (3, 4)), ("encoder.bias", (3,)), ("head.weight", (2, 3))))


def plan_with(**masking):
    return make_plan(4, None, masking=masking)


def params_of(plan, number=1, layout=LAYOUT):
    members = [pb.Member(uri=h.uri, public_key=bytes([i]), weight=1) for i, h in enumerate(plan.hospitals)]
    for member in members:
        member.base_digest = bytes(32)
    return open_params(plan, pb.Open(session=bytes(16), round=number, members=members), layout)


def test_the_session_has_the_plans_coding():
    quantizer = params_of(plan_with(lanes=10, update_clip=0.5, rotate=True, keep=0.75)).quantizer
    assert (quantizer.lanes, quantizer.clip, quantizer.rotate, quantizer.keep) == (10, 0.5, True, 0.75)


def test_a_plan_without_such_fields_keeps_its_digest_and_its_session():
    plan = plan_with(lanes=3)
    for name in (b"rotate", b"keep", b"tensor_clips", b"clip_decay"):
        assert name not in plan.canonical()
    params = params_of(plan, 7)
    assert (params.quantizer.rotate, params.quantizer.keep, params.tensor_clips) == (False, 1.0, ())
    assert params.quantizer.clip == plan.masking.update_clip


@pytest.mark.parametrize("change", [{"rotate": True}, {"keep": 0.5}, {"clip_decay": 0.9}])
def test_each_field_changes_the_digest_and_survives_the_wire(change):
    plan = plan_with(**change)
    assert plan.digest() != plan_with().digest()
    assert from_canonical(plan.canonical()) == plan


def test_clips_shrink_from_round_to_round_by_products_alone():
    plan = plan_with(update_clip=0.3, clip_decay=0.9, tensor_clips=[{"prefix": "head.", "clip": 2.0}])
    factor = 1.0
    for number in range(1, 40):
        params = params_of(plan, number)
        assert params.quantizer.clip == 0.3 * factor
        assert params.tensor_clips == ((12, 0.3 * factor), (3, 0.3 * factor), (6, 2.0 * factor))
        factor *= 0.9


def test_the_first_fitting_prefix_counts():
    clips = [{"prefix": "encoder.bias", "clip": 3.0}, {"prefix": "encoder", "clip": 0.1}]
    assert params_of(plan_with(tensor_clips=clips)).tensor_clips == ((12, 0.1), (3, 3.0), (6, 1.0))


def test_a_prefix_that_no_tensor_has_is_named():
    with pytest.raises(WireError, match=r"tensor_clips.*'decoder'"):
        params_of(plan_with(tensor_clips=[{"prefix": "decoder", "clip": 1.0}]))


@pytest.mark.parametrize(
    ("masking", "field"),
    [({"keep": 0}, "keep"), ({"keep": 1.5}, "keep"), ({"clip_decay": 0}, "clip_decay"), ({"clip_decay": 1.1}, "clip_decay")],
)
def test_fields_outside_their_range_are_refused_by_name(masking, field):
    with pytest.raises((PlanError, ValueError), match=field):
        Plan.model_validate(plan_with().model_dump() | {"masking": masking})
