"""An evaluator's node: measures each published model on public cases and says the numbers in clear.

It has no patients to protect, no ledger and no part in masking. An order counts as done only after its numbers were taken, so
that a restart measures again rather than leaving a hole.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from certs.identity import load_identity
from certs.renewal import finish
from hospital_node.config import ConfigError, NodeConfig
from hospital_node.display import Display
from hospital_node.durable import write_whole
from hospital_node.keyring import Keyring
from hospital_node.link import Link, ModelMismatch, OrderStale, dial
from hospital_node.logs import logger
from hospital_node.loop import Conversation, Rand
from hospital_node.measuring import said_meanwhile
from hospital_node.reach import reason_of_loss
from hospital_node.state import StateFolder
from hospital_node.study import plan_offered
from hospital_node.traffic import ByteMeter
from hospital_node.work import Interrupted, Scored, Workshop
from proto import federation_pb2 as pb
from proto import scaffold
from proto.layout import Layout
from proto.plan import Plan, role_of

Clock = Callable[[], float]  # seconds since 1970
Dial = Callable[[NodeConfig, ByteMeter], Link]


def evaluate(
    config: NodeConfig,
    *,
    clock: Clock = time.time,
    rand: Rand = os.urandom,
    stop: threading.Event | None = None,
) -> None:
    """Run an evaluator's node until the study is finished or `stop` is set.

    Raises, in one sentence each: ConfigError, CertificateError, StateError, PlanError, WorkFailed, LinkRefused.
    """
    from hospital_node.workshop import real_workshop

    evaluate_with(config, real_workshop(config), dial=dial, clock=clock, rand=rand, stop=stop or threading.Event())


def evaluate_with(
    config: NodeConfig, workshop: Workshop, *, dial: Dial, clock: Clock, rand: Rand, stop: threading.Event
) -> None:
    """`evaluate` with every heavy part and the connection given."""
    config.require_folders()
    finish(config.identity)
    identity = load_identity(config.identity)
    if role_of(identity.uri) != "evaluator":
        raise ConfigError(f"{config.identity} is the identity of {identity.uri}, which is not an evaluator: use 'run'")
    folder = StateFolder(config.state)
    folder.create()
    with folder.locked():
        keyring = Keyring(config.identity, None, folder.successions, datetime.fromtimestamp(clock(), UTC))
        folder.write_node(identity.uri, identity.name.study, identity.not_after.isoformat())
        meter = ByteMeter()
        evaluator = Evaluator(config, keyring, workshop, folder, meter, clock, stop)
        conversation = Conversation(lambda: dial(config, meter), evaluator, stop, rand)
        evaluator.redial = conversation.redial
        try:
            conversation.run()
        except Interrupted:
            logger().info("stopped while measuring; the model will be measured again")


class Evaluator:
    """One evaluator at work. Implements hospital_node.loop.Party."""

    def __init__(
        self,
        config: NodeConfig,
        keyring: Keyring,
        workshop: Workshop,
        folder: StateFolder,
        meter: ByteMeter,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        identity = keyring.identity
        self._config = config
        self._keyring = keyring
        self.redial: Callable[[], None] = lambda: None
        self._me = identity.uri
        self._workshop = workshop
        self._folder = folder
        self._meter = meter
        self._clock = clock
        self._stop = stop
        self._display = Display(folder, identity.name.study, clock)
        self._log = logger()
        self._met = False
        self._plan: Plan | None = None
        self._layout: Layout | None = None
        self._cases: Sequence[Any] | None = None

    def joined(self, reply: pb.JoinReply) -> None:
        """Compare names and versions; take the plan."""
        plan = plan_offered(reply, self._me, self._config.plan)
        self._met = True
        if self._plan is None or self._plan.digest() != plan.digest():
            self._plan, self._layout, self._cases = plan, self._workshop.layout(plan), None
            self._folder.write_plan(plan)
            self._display.rounds(plan.rounds)
        self._log.info("joined", study=plan.study, plan=plan.digest().hex()[:12])
        self._display.show("waiting", "connected; waiting for a model to measure")

    def settle(self, link: Link) -> None:
        """Renew the certificate in time, and take up a new one: between models, so that none is measured for nothing."""
        self._keyring.renew(link, datetime.fromtimestamp(self._clock(), UTC))
        if self._keyring.changed() and self._keyring.adopt():
            identity = self._keyring.identity
            self._folder.write_node(identity.uri, identity.name.study, identity.not_after.isoformat())
            self.redial()

    def carry_out(self, link: Link, order: pb.Instruction) -> None:
        """One instruction; only models are measured."""
        assert self._plan is not None, "the plan comes with the first reply of every connection"
        assert self._layout is not None, "the layout follows from the plan"
        match order.WhichOneof("order"):
            case "evaluate":
                self._on_evaluate(link, order.evaluate, self._plan, self._layout)
            case "finished":
                self._display.show("finished", order.finished.reason)
                self._log.info("finished", reason=order.finished.reason)
            case _:
                pass

    def lost(self, reason: str, wait_s: float) -> None:
        """Say so; before the first success, find out whether waiting can help at all."""
        if not self._met:
            reason = reason_of_loss(self._config, reason)
        self._log.warning("no connection", reason=reason, wait_s=round(wait_s, 1))
        self._display.show("connecting", f"no connection: {reason}")

    def _on_evaluate(self, link: Link, order: pb.Evaluate, plan: Plan, layout: Layout) -> None:
        started_s = self._clock()
        try:
            length = scaffold.published_length(plan, layout)
            published = link.fetch_model(order.model_digest, order.model_bytes, length, "evaluate")
            model, _ = scaffold.taken_apart(plan, published)
            with said_meanwhile(link, order.round, plan.timing.lost_after_s):
                cases = self._public_cases(plan)
                self._display.show("evaluating", f"measuring the model of round {order.round}", round_number=order.round)
                scored = self._score(cases, self._workshop.scorer(plan, model, self._config.threads))
            self._keep_picture(order.round, cases, scored)
            link.measure(measurement_of(order, plan, scored))
        except (ModelMismatch, OrderStale) as error:
            self._log.warning("not measured", round=order.round, reason=str(error))
            return
        finally:
            self._display.count(self._meter, order.round)
        self._display.show("waiting", f"measured the model of round {order.round}", round_number=order.round)
        self._log.info("measured", round=order.round, cases=len(cases), seconds=round(self._clock() - started_s, 1))

    def _public_cases(self, plan: Plan) -> Sequence[Any]:
        if self._cases is None:
            self._display.show("preparing", "preparing the public cases")
            patients = self._workshop.prepare(plan, self._count_prepared)
            self._cases = [case for patient in patients for case in patient.cases]
        return self._cases

    def _count_prepared(self, done: int, total: int) -> None:
        self._count("preparing", done, total)

    def _score(self, cases: Sequence[Any], score: Callable[[Any], Scored]) -> list[Scored]:
        scored = []
        for done, case in enumerate(cases, start=1):
            scored.append(score(case))
            self._count("evaluating", done, len(cases))
        return scored

    def _count(self, phase: Any, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Interrupted
        self._display.steps(phase, done, total)

    def _keep_picture(self, round_number: int, cases: Sequence[Any], scored: Sequence[Scored]) -> None:
        """The slice of one case with most labelled voxels: image, truth and prediction, for people."""
        index = next((at for at, case in enumerate(cases) if np.any(case.label)), None)
        if index is None:
            return
        truth = np.asarray(cases[index].label)
        z = int(np.count_nonzero(truth, axis=(1, 2)).argmax())
        content = io.BytesIO()
        np.savez(
            content,
            image=np.asarray(cases[index].image[z], dtype=np.float32),
            truth=truth[z],
            prediction=scored[index].prediction[z],
            round=np.int64(round_number),
        )
        write_whole(self._folder.prediction, content.getvalue())


def measurement_of(order: pb.Evaluate, plan: Plan, scored: Sequence[Scored]) -> pb.Measurement:
    """Dice of each case that holds the label, label by label, in the order of the cases."""
    scores = []
    for label in plan.network.labels:
        values = [one.dice[label] for one in scored]
        scores.append(pb.LabelScore(label=label, per_case=[value for value in values if value is not None]))
    return pb.Measurement(round=order.round, model_digest=order.model_digest, scores=scores)
