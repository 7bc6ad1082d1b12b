"""A federation on loopback for tests: real certificates, real mutual TLS, the real service, and scripted nodes.

A scripted node uses the node side of secagg exactly as a hospital does, with given updates instead of training.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import tomli_w
from coordinator_world import make_plan, uri
from safetensors.numpy import save_file

from certs.authority import create_authority, issue
from certs.identity import Identity, load_identity
from certs.peers import Peer, PeerList, load_peers, write_peers
from certs.tls import channel_credentials
from coordinator.config import CoordinatorConfig, load_config
from coordinator.run import Run
from coordinator.serving import Desk, serve
from proto import federation_pb2 as pb
from proto import federation_pb2_grpc as rpc
from proto.layout import Layout, Vector
from proto.plan import PROTOCOL_VERSION, Plan, role_of, short_name
from proto.wire import (
    PLAN_KEY,
    from_advert,
    from_confirmation,
    from_seals,
    from_share_set,
    open_params,
    to_advert,
    to_confirmation,
    to_revealed,
    to_share_set,
    upload_messages,
    upload_trailer,
)
from secagg import Policy, node

LAYOUT = Layout((("conv.weight", (7, 3)), ("conv.bias", (7,))))
EVALUATOR = "secagg://lidc/evaluator/e0"
COORDINATOR = "secagg://lidc/coordinator/main"
STRANGER = "secagg://lidc/hospital/stranger"  # a certificate of the study's CA that nobody confirmed
PATIENT = {"phase_deadline_s": 60.0, "lost_after_s": 60.0, "training_deadline_s": 60.0}  # nobody is lost on a loaded machine
LOSES_ONE = {"lost_after_s": 4.0}  # where somebody dies: the others wait so long


def make_identities(folder: Path, hospitals: int = 4) -> Path:
    """Certificates for everybody, one folder for each short name."""
    create_authority(folder / "ca", "lidc")
    for party in (*(uri(number) for number in range(hospitals)), EVALUATOR, COORDINATOR, STRANGER):
        issue(folder / "ca", party, folder / short_name(party))
    return folder


def write_study(
    folder: Path, identities: Path, plan: Plan, start: Vector | None = None, layout: Layout | None = None, **extra: object
) -> CoordinatorConfig:
    """Everything that a coordinator reads: plan, start, allow list, configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.toml").write_text(tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    layout = layout or LAYOUT
    vector = np.zeros(layout.length, np.float32) if start is None else start
    save_file(
        {k: np.ascontiguousarray(v) for k, v in layout.split(vector).items()},
        folder / "start.safetensors",
        {"layout": layout.to_json()},
    )
    admitted = [load_identity(identities / short_name(u)) for u in (*(h.uri for h in plan.hospitals), *plan.evaluators)]
    at = datetime(2026, 11, 21, tzinfo=UTC)
    write_peers(folder / "peers.toml", PeerList(tuple(Peer(i.uri, i.fingerprint, "test", at) for i in admitted)))
    fields = {
        "listen": "127.0.0.1:0",
        "identity": str(identities / "main"),
        "allow": "peers.toml",
        "plan": "plan.toml",
        "start": "start.safetensors",
        "state": "state",
        **extra,
    }
    (folder / "coordinator.toml").write_text(tomli_w.dumps(fields), encoding="utf-8")
    (folder / "coordinator.toml").chmod(0o600)  # it may hold a password
    return load_config(folder / "coordinator.toml")


@asynccontextmanager
async def coordinating(config: CoordinatorConfig) -> AsyncIterator[Run]:
    """A coordinator that serves while the block runs."""
    config.state.mkdir(exist_ok=True)
    desk, stop = Desk(config, partial(Run, config, os.urandom)), asyncio.Event()
    run = desk.run
    task = asyncio.create_task(serve([desk], config, stop))
    try:
        await until(lambda: config.address_file.exists() or task.done())
        yield run
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  the condition is a file or another party's state
            await asyncio.sleep(0.02)


class Naming:
    """A stub whose calls name a plan."""

    def __init__(self, stub: rpc.FederationStub, plan: Plan | str) -> None:
        name = plan if isinstance(plan, str) else plan.digest().hex()
        self._stub, self._metadata = stub, ((PLAN_KEY, name),)

    def __getattr__(self, name: str):
        return partial(getattr(self._stub, name), metadata=self._metadata)


@asynccontextmanager
async def connected(
    config: CoordinatorConfig, identity: Path, plan: Plan | str | None = None
) -> AsyncIterator[rpc.FederationStub]:
    """A stub on a connection of the party in `identity`; its calls name `plan`."""
    address = config.address_file.read_text().strip()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.secure_channel(address, channel_credentials(identity), options=options) as channel:
        stub = rpc.FederationStub(channel)
        yield stub if plan is None else Naming(stub, plan)


async def refusal_of(call: object) -> tuple[grpc.StatusCode, str]:
    """Status and sentence with which a call is refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call was not refused")


@dataclass
class ScriptedNode:
    """A hospital's node whose training is a given function of the round."""

    config: CoordinatorConfig
    plan: Plan
    folder: Path
    pinned: dict[str, bytes]
    train: Callable[[int], Vector]
    die_before: str = ""
    last_round: int = 0  # dies when it is asked to train in a later one
    tamper: Callable[[Iterator[pb.UploadChunk]], Iterator[pb.UploadChunk]] = field(default=lambda messages: messages)
    refuse: dict[str, tuple[str, str]] = field(default_factory=dict)  # phase -> code, culprit
    done: int = 0
    results: list[pb.RoundResult] = field(default_factory=list)
    finished: str = ""
    refused: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    updates: dict[int, Vector] = field(default_factory=dict)
    uploaded: list[tuple[bytes, int]] = field(default_factory=list)
    names_plan: bool = False

    def __post_init__(self) -> None:
        self.identity: Identity = load_identity(self.folder)
        self.params = None
        self.state: object = None
        self.round = 0

    async def live(self) -> None:
        """Join and carry out orders until the run is over, or until it is time to die."""
        async with connected(self.config, self.folder, self.plan if self.names_plan else None) as stub:
            await stub.Join(pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version="test"))
            while not self.finished:
                order = await stub.Poll(pb.PollRequest(done=self.done))
                self.done = order.id
                kind = order.WhichOneof("order")
                phase = {"open": "advertise"}.get(kind, kind)
                if phase == self.die_before or (kind == "train" and 0 < self.last_round < order.train.round):
                    return
                if phase in {"share", "mask", "confirm", "reveal"} and self.state is None:
                    self.refuse[phase] = "unknown-session", "unknown"  # it was restarted meanwhile
                if phase in self.refuse:
                    code, culprit = self.refuse.pop(phase)
                    session = getattr(order, kind).session
                    refusal = pb.Refusal(code=code, culprit=culprit)
                    await stub.Answer(pb.PhaseAnswer(session=session, refusal=refusal))
                    continue
                try:
                    await getattr(self, f"_on_{kind}")(stub, getattr(order, kind))
                except grpc.aio.AioRpcError as error:
                    self.refused.append((error.code(), error.details() or ""))
                    if kind == "mask":  # tell at once, so that nobody waits for the deadline
                        leaving = pb.Refusal(code="bad-upload")
                        await stub.Answer(pb.PhaseAnswer(session=order.mask.session, refusal=leaving))

    async def _on_wait(self, stub, order) -> None:
        del stub, order

    async def _on_train(self, stub, order) -> None:
        data = b"".join([chunk.data async for chunk in stub.FetchModel(pb.ModelRequest(digest=order.base_digest))])
        assert len(data) == order.base_bytes
        self.round, self.base = order.round, order.base_digest
        if order.round not in self.updates:
            self.updates[order.round] = self.train(order.round)
        ready = pb.NodeReport(round=order.round, state=pb.NodeReport.READY, base_digest=order.base_digest)
        await stub.Report(ready)

    async def _on_open(self, stub, order) -> None:
        if order.round not in self.updates:  # it was restarted
            refusal = pb.Refusal(code="no-update", culprit="unknown")
            await stub.Answer(pb.PhaseAnswer(session=order.session, refusal=refusal))
            return
        self.params = open_params(self.plan, order, LAYOUT)
        policy = Policy(self.pinned, minimum_cohort=3, max_colluders=1)
        self.state, advert = node.advertise(self.params, self.identity.uri, self.identity.key, policy, os.urandom)
        answer = pb.PhaseAnswer(session=order.session, advert=to_advert(advert))
        await stub.Answer(answer)
        await stub.Answer(answer)  # a lost acknowledgement: the same answer again

    async def _on_share(self, stub, order) -> None:
        self.state, share_set = node.share(self.state, [from_advert(a) for a in order.adverts], os.urandom)
        await stub.Answer(pb.PhaseAnswer(session=order.session, shares=to_share_set(share_set)))

    async def _on_mask(self, stub, order) -> None:
        ready = node.ready_to_mask(self.state, [from_share_set(s) for s in order.sets])
        self.state, upload = node.mask(ready, self.updates[self.round])
        self.uploaded.append((order.session, self.round))
        sent = upload_messages(order.session, upload.total_bytes, b"receipt", upload.pieces())
        messages = [pb.UploadChunk.FromString(part.SerializeToString()) for part in sent]
        seal = upload.finish()
        messages.append(upload_trailer(seal.digest, seal.signature))
        await stub.Upload(self.tamper(iter(messages)))

    async def _on_confirm(self, stub, order) -> None:
        self.state, confirmation = node.confirm(self.state, list(order.survivors), from_seals(order.seals))
        await stub.Answer(pb.PhaseAnswer(session=order.session, confirmation=to_confirmation(confirmation)))

    async def _on_reveal(self, stub, order) -> None:
        self.state, revealed = node.reveal(self.state, [from_confirmation(c) for c in order.confirmations])
        await stub.Answer(pb.PhaseAnswer(session=order.session, revealed=to_revealed(revealed)))

    async def _on_result(self, stub, order) -> None:
        del stub
        self.results.append(order)

    async def _on_finished(self, stub, order) -> None:
        del stub
        self.finished = order.reason


class ScriptedEvaluator(ScriptedNode):
    """An evaluator that measures what its `train` says."""

    async def _on_evaluate(self, stub, order) -> None:
        data = b"".join([chunk.data async for chunk in stub.FetchModel(pb.ModelRequest(digest=order.model_digest))])
        value = float(np.clip(np.abs(np.frombuffer(data, "<f4")).mean(), 0, 1))
        score = pb.LabelScore(label="nodule", per_case=[value, 0.5])
        await stub.Measure(pb.Measurement(round=order.round, model_digest=order.model_digest, scores=[score]))


def hospitals(config: CoordinatorConfig, identities: Path, plan: Plan) -> list[ScriptedNode]:
    """One scripted node for each hospital of the plan; hospital k sends k + 1 hundredths, with a sign of its own per value."""
    pins = load_peers(config.allow).pinned
    nodes = []
    for place, entry in enumerate(plan.hospitals):
        others = {u: key for u, key in pins.items() if u != entry.uri and role_of(u) == "hospital"}
        nodes.append(ScriptedNode(config, plan, identities / short_name(entry.uri), others, update_of(place)))
    return nodes


def update_of(place: int) -> Callable[[int], Vector]:
    """Updates that differ by hospital, round and coordinate, so that any double count or omission shows."""

    def train(number: int) -> Vector:
        seed = int.from_bytes(hashlib.sha256(f"{place} {number}".encode()).digest()[:8], "little")
        return np.random.default_rng(seed).uniform(-0.5, 0.5, LAYOUT.length).astype(np.float32)

    return train


async def live_all(nodes: list[ScriptedNode], seconds: float = 180.0) -> None:
    """Let all nodes live until each is finished or dead."""
    async with asyncio.timeout(seconds):
        await asyncio.gather(*(one.live() for one in nodes))


async def give_up(task: asyncio.Task[None]) -> None:
    """Kill a node."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def small_plan(hospitals_count: int = 4, rounds: int = 1, **timing: float) -> Plan:
    """A plan for loopback, on which nobody is given up unless `timing` says so."""
    return make_plan(hospitals_count, rounds, **{**PATIENT, **timing})
