"""The engine's orders as protobuf instructions, each as its reader may see it. This file decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from coordinator import orders
from proto import federation_pb2 as pb
from proto.wire import to_advert, to_confirmation, to_seal, to_share_set
from secagg.messages import ShareSet
from secagg.relay import Relay

FLOAT32_BYTES = 4


def to_open(order: orders.Open, log_head: bytes = b"") -> pb.Open:
    """The Open order, from which both sides build the same session parameters (proto.wire.open_params)."""
    members = [
        pb.Member(uri=seat.uri, public_key=seat.public_key, weight=seat.weight, base_digest=seat.base_digest)
        for seat in order.members
    ]
    return pb.Open(session=order.session, round=order.round, members=members, log_head=log_head)


class Instructions:
    """Makes instructions; what all readers of a mask order have in common is made once."""

    def __init__(self) -> None:
        self._sets: tuple[orders.Mask, _Sets] | None = None  # of the latest mask order

    def instruction(self, number: int, order: orders.Order, reader: str, length: int) -> pb.Instruction:
        """One instruction for `reader`; `length` is that of the model's vector."""
        message = _instruction(number, order, reader, FLOAT32_BYTES * length)
        if isinstance(order, orders.Mask):
            self._sets_of(order).add_to(message.mask, reader)
        return message

    def _sets_of(self, order: orders.Mask) -> _Sets:
        if self._sets is None or self._sets[0] is not order:
            self._sets = order, _Sets(order.sets)
        return self._sets[1]


class _Sets:
    """The sets of one mask order, encoded without their boxes; a reader's own boxes are added for it."""

    def __init__(self, sets: Sequence[ShareSet]) -> None:
        self._relay = Relay(sets)
        self._signed = [to_share_set(item).SerializeToString() for item in self._relay.signed]
        self._stubs = [to_share_set(item).SerializeToString() for item in self._relay.stubs]

    def add_to(self, message: pb.Mask, reader: str) -> None:
        """What `Relay.for_reader` says, from parts that are encoded already."""
        boxes, own = self._relay.boxes_of(reader), self._relay.place_of(reader)
        for place, stub in enumerate(self._stubs):
            item, box = message.sets.add(), boxes.get(place)
            item.MergeFromString(stub if box is None and place != own else self._signed[place])
            if box is not None:
                item.boxes.add(receiver=box.receiver, sealed=box.sealed)


def _instruction(number: int, order: orders.Order, reader: str, model_bytes: int) -> pb.Instruction:
    message = pb.Instruction(id=number)
    match order:
        case orders.Wait(reason):
            message.wait.CopyFrom(pb.Wait(reason=reason))
        case orders.Train(round_number, digest, anew):
            message.train.CopyFrom(pb.Train(round=round_number, base_digest=digest, base_bytes=model_bytes, anew=anew))
        case orders.Open():
            message.open.CopyFrom(to_open(order))
        case orders.Share(session, adverts):
            message.share.CopyFrom(pb.Share(session=session, adverts=[to_advert(advert) for advert in adverts]))
        case orders.Mask(session):
            message.mask.session = session  # the sets are added by whoever keeps their common parts
        case orders.Confirm(session, survivors, seals):
            held = [to_seal(item.party, item.seal) for item in seals if reader in item.holders]
            message.confirm.CopyFrom(pb.Confirm(session=session, survivors=survivors, seals=held))
        case orders.Reveal(session, confirmations):
            signed = [to_confirmation(confirmation) for confirmation in confirmations]
            message.reveal.CopyFrom(pb.Reveal(session=session, confirmations=signed))
        case orders.RoundResult():
            message.result.CopyFrom(_to_result(order))
        case orders.Evaluate(round_number, digest):
            message.evaluate.CopyFrom(pb.Evaluate(round=round_number, model_digest=digest, model_bytes=model_bytes))
        case orders.Finished(reason):
            message.finished.CopyFrom(pb.Finished(reason=reason))
        case _:
            assert_never(order)
    return message


def phase_of(order: orders.Order) -> str:
    """Phase (coordinator.store.PHASES) whose bytes an order counts among; "" for Wait, which belongs to the present one."""
    match order:
        case orders.Train():
            return "train"
        case orders.Open():
            return "advertise"
        case orders.Share():
            return "share"
        case orders.Mask():
            return "mask"
        case orders.Confirm():
            return "confirm"
        case orders.Reveal():
            return "reveal"
        case orders.RoundResult() | orders.Finished():
            return "result"
        case orders.Evaluate():
            return "evaluate"
        case orders.Wait():
            return ""
        case _:
            assert_never(order)


def _to_result(order: orders.RoundResult) -> pb.RoundResult:
    return pb.RoundResult(
        round=order.round,
        session=order.session,
        survivors=order.survivors,
        sum_digest=order.sum_digest,
        model_digest=order.model_digest,
        opened=order.opened,
        reason=order.reason,
    )
