"""Many simulated nodes in one process, each with its own certificate and connection, against a real coordinator.

They play the protocol and check nothing (`masking_round.trust_everything`), keep no ledger and train nothing: what is measured
is the coordinator. One round only, since they take what all of them are shown from the first who was shown it.
`python -m benchmarks.crowd START_MODEL NODE_TOML...`
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import certs  # noqa: F401  sets the TLS floor before anything imports grpc
from benchmarks.masking_round import trust_everything, update_of
from certs.identity import load_identity
from certs.tls import channel_credentials
from hospital_node.config import NodeConfig, load_config
from hospital_node.link import stub_of
from proto import federation_pb2 as pb
from proto import wire
from proto.bulk import UploadPart
from proto.layout import Layout, Vector
from proto.modelfile import read_model
from proto.plan import PROTOCOL_VERSION, Plan, from_canonical
from secagg import Door, node
from secagg.policy import policy_of
from secagg.upload import PackedUpload

import grpc  # isort: skip  after certs

DEADLINE_S = 600.0
ATTEMPTS = 20
AGAIN_AFTER_S = 2.0
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
JOINING_AT_ONCE = 32  # handshakes; the rest waits its turn
OPTIONS = [("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1)]


class Common:
    """What all nodes hold alike, read once."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.update: Vector = update_of(layout.length)
        self.joining = asyncio.Semaphore(JOINING_AT_ONCE)
        self.plan: Plan | None = None
        self.shown: dict[str, tuple[Any, ...]] = {}

    def plan_of(self, canonical: bytes) -> Plan:
        """The plan that everybody is handed."""
        self.plan = self.plan or from_canonical(canonical)
        return self.plan


class Simulated:
    """One node."""

    def __init__(self, config: NodeConfig, common: Common) -> None:
        identity = load_identity(config.identity)
        self._uri, self._key, self._common = identity.uri, identity.key, common
        self._channel = grpc.aio.secure_channel(config.coordinator, channel_credentials(config.identity), options=OPTIONS)
        self._stub = stub_of(self._channel)
        self._plan: Plan | None = None
        self._state: Any = None
        self._answers: dict[str, pb.PhaseAnswer] = {}
        self._made: PackedUpload | None = None
        self._done = 0

    async def live(self) -> None:
        """Until the run is over; a lost connection is made again, as a node does, and what was said is said again."""
        for _ in range(ATTEMPTS):
            try:
                await self._converse()
            except grpc.aio.AioRpcError as error:
                if error.code() not in LOST:
                    raise
                await asyncio.sleep(AGAIN_AFTER_S)
            else:
                break
        await self._channel.close()

    async def _converse(self) -> None:
        async with self._common.joining:
            request = pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version="crowd")
            reply = await self._stub.Join(request, timeout=DEADLINE_S)
        self._plan = self._common.plan_of(reply.plan)
        while True:
            order = await self._stub.Poll(pb.PollRequest(done=self._done), timeout=DEADLINE_S)
            kind = order.WhichOneof("order")
            if kind == "finished":
                return
            await self._carry_out(kind, order)
            self._done = max(self._done, order.id)

    async def _carry_out(self, kind: str, order: pb.Instruction) -> None:
        match kind:
            case "train":
                await self._train(order.train)
            case "mask":
                await self._upload(order.mask)
            case "open" | "share" | "confirm" | "reveal":
                if kind not in self._answers:
                    self._answers[kind] = getattr(self, f"_{kind}")(getattr(order, kind))
                await self._stub.Answer(self._answers[kind], timeout=DEADLINE_S)
            case _:
                pass

    async def _train(self, order: pb.Train) -> None:
        async for _ in self._stub.FetchModel(pb.ModelRequest(digest=order.base_digest), timeout=DEADLINE_S):
            pass
        ready = pb.NodeReport(round=order.round, state=pb.NodeReport.READY, base_digest=order.base_digest)
        await self._stub.Report(ready, timeout=DEADLINE_S)

    def _open(self, order: pb.Open) -> pb.PhaseAnswer:
        assert self._plan is not None
        plan, layout = self._plan, self._common.layout
        (params,) = self._once("params", lambda: (wire.open_params(plan, order, layout),))
        self._state, advert = node.advertise(params, self._uri, self._key, policy_of(params), os.urandom)
        return pb.PhaseAnswer(session=order.session, advert=wire.to_advert(advert))

    def _share(self, order: pb.Share) -> pb.PhaseAnswer:
        adverts = self._once("adverts", lambda: tuple(wire.from_advert(item) for item in order.adverts))
        self._state, sets = node.share(self._state, adverts, os.urandom)
        return pb.PhaseAnswer(session=order.session, shares=wire.to_share_set(sets))

    def _confirm(self, order: pb.Confirm) -> pb.PhaseAnswer:
        seals = wire.from_seals(order.seals)
        self._state, confirmation = node.confirm(self._state, tuple(order.survivors), seals)
        return pb.PhaseAnswer(session=order.session, confirmation=wire.to_confirmation(confirmation))

    def _reveal(self, order: pb.Reveal) -> pb.PhaseAnswer:
        signed = self._once("signed", lambda: tuple(wire.from_confirmation(item) for item in order.confirmations))
        self._state, revealed = node.reveal(self._state, signed)
        return pb.PhaseAnswer(session=order.session, revealed=wire.to_revealed(revealed))

    async def _upload(self, order: pb.Mask) -> None:
        if self._made is None:
            ready = node.ready_to_mask(self._state, [wire.from_share_set(item) for item in order.sets])
            self._state, self._made = node.mask(ready, self._common.update, Door.CTR)
        await self._stub.Upload(_parts(order.session, self._made), timeout=DEADLINE_S)

    def _once(self, what: str, make: Any) -> tuple[Any, ...]:
        if what not in self._common.shown:
            self._common.shown[what] = make()
        return self._common.shown[what]


async def _parts(session: bytes, upload: PackedUpload) -> AsyncIterator[UploadPart]:
    for part in wire.upload_messages(session, upload.total_bytes, bytes(32), upload.pieces()):
        yield part
    seal = upload.finish()
    yield wire.upload_trailer(seal.digest, seal.signature)


async def play(start: Path, configs: Sequence[Path]) -> None:
    """All of them until the end."""
    common = Common(read_model(start).layout)
    nodes = [Simulated(load_config(path), common) for path in configs]
    with trust_everything():
        await asyncio.gather(*(one.live() for one in nodes))


if __name__ == "__main__":
    first, *others = (Path(argument) for argument in sys.argv[1:])
    asyncio.run(play(first, others))
