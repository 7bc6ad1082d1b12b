"""Orders as protobuf: each reader of a mask order is told what `ShareSet.for_receiver` says, from parts made once."""

import pytest

from coordinator import orders
from coordinator.wire_orders import Instructions
from proto import wire
from secagg.messages import NO_DIGESTS, Box, ShareSet

NAMES = ("a", "b", "c", "d", "e")
EVERYBODY = {name: [other for other in NAMES if other != name] for name in NAMES}
SOME = {"a": ["b", "c"], "b": ["c", "e"], "c": ["a", "d"], "d": ["b", "e"], "e": ["a", "b"]}


def sets_of(receivers, session=b"1"):
    return tuple(
        ShareSet(party, tuple(Box(to, (party + to).encode() + session) for to in told), NO_DIGESTS, b"signed").with_digests()
        for party, told in receivers.items()
    )


def told(instructions, order, reader):
    message = instructions.instruction(7, order, reader, 1)
    assert message.id == 7
    assert message.mask.session == order.session
    return [wire.from_share_set(item) for item in message.mask.sets]


@pytest.mark.parametrize("receivers", [EVERYBODY, SOME, {name: EVERYBODY[name] for name in "ace"}, {}])
def test_each_reader_is_told_its_boxes_and_no_others(receivers):
    order, instructions = orders.Mask(b"1" * 16, sets_of(receivers)), Instructions()
    for reader in (*NAMES, "stranger"):
        assert told(instructions, order, reader) == [item.for_receiver(reader) for item in order.sets]


def test_the_parts_of_an_earlier_session_are_not_used_again():
    instructions = Instructions()
    for session in (b"1", b"2", b"1"):
        order = orders.Mask(session * 16, sets_of(SOME, session))
        assert told(instructions, order, "b") == [item.for_receiver("b") for item in order.sets]
