"""A hospital's node: carries out the coordinator's orders, in the order in which they protect the patients.

For each round: ask the ledger (`authorize`) -> train -> report ready -> advertise, share -> check every box -> charge the
ledger (`commit`) -> only now the first masked byte leaves (hospital_node/release.py). Whatever fails, the sentence is on the
screen of the hospital and a coarse code goes to the coordinator. A lost connection ends nothing; a restart drops what was in
memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from certs.identity import load_identity
from certs.renewal import finish
from hospital_node import people
from hospital_node.at_work import AtWork
from hospital_node.buffered import older_report
from hospital_node.config import ConfigError, NodeConfig
from hospital_node.display import Display
from hospital_node.evidence import Evidence
from hospital_node.keyring import Keyring
from hospital_node.ledger import Authorization, Ledger, LedgerError
from hospital_node.link import Link, ModelMismatch, OrderStale, Said, dial
from hospital_node.local_training import Failed, LocalTraining, Ready
from hospital_node.logs import logger
from hospital_node.loop import Conversation, Rand
from hospital_node.memory import Memory
from hospital_node.progress import NodePhase
from hospital_node.reach import reason_of_loss
from hospital_node.release import Outcome, ReleaseDesk, UpdateUnusable, refusal_answer
from hospital_node.sending import offset_bytes, parts_of
from hospital_node.session import Member, SessionRefused
from hospital_node.state import StateFolder
from hospital_node.study import Study, plan_offered, policy_obstacle
from hospital_node.traffic import ByteMeter
from hospital_node.variates import Variates, drift_of
from hospital_node.work import Background, Trainer, WorkFailed, Workshop
from proto import federation_pb2 as pb
from proto import scaffold
from proto.control import Answer
from proto.control_socket import listening
from proto.layout import Layout
from proto.parts import sent_layout
from proto.plan import DECLINE_CODES, Plan, role_of
from secagg import Policy, faster_door

Clock = Callable[[], float]  # seconds since 1970
Dial = Callable[[NodeConfig, ByteMeter], Link]


def run(
    config: NodeConfig,
    *,
    train: Trainer | None = None,
    clock: Clock = time.time,
    rand: Rand = os.urandom,
    stop: threading.Event | None = None,
) -> None:
    """Run a hospital's node until the study is finished or `stop` is set. `train` may wrap the real trainer.

    Raises, in one sentence each: ConfigError, CertificateError, StateError, PlanError, LedgerError, LinkRefused.
    """
    from hospital_node.workshop import real_workshop

    workshop = real_workshop(config) if train is None else real_workshop(config, train)
    run_with(config, workshop, dial=dial, clock=clock, rand=rand, stop=stop or threading.Event())


def run_with(config: NodeConfig, workshop: Workshop, *, dial: Dial, clock: Clock, rand: Rand, stop: threading.Event) -> None:
    """`run` with every heavy part and the connection given."""
    config.require_folders()
    finish(config.identity)
    identity = load_identity(config.identity)
    if role_of(identity.uri) != "hospital":
        raise ConfigError(f"{config.identity} is the identity of {identity.uri}, which is not a hospital: use 'evaluate'")
    config.require_peers()
    folder = StateFolder(config.state, config.ledger_counter)
    folder.create()
    folder.share_ledger(config.ledger)
    with folder.locked():
        keyring = Keyring(config.identity, config.peers, folder.successions, datetime.fromtimestamp(clock(), UTC))
        hospital = Hospital(config, keyring, workshop, folder, clock, rand)
        try:
            with listening(folder.path, hospital.asked):
                hospital.converse(dial, stop)
        finally:
            hospital.close()


class Hospital:
    """One node at work. Implements hospital_node.loop.Party; only `converse` and `asked` may be called by others."""

    def __init__(
        self,
        config: NodeConfig,
        keyring: Keyring,
        workshop: Workshop,
        folder: StateFolder,
        clock: Clock,
        rand: Rand,
    ) -> None:
        identity = keyring.identity
        self._config = config
        self._me = identity.uri
        self._keyring = keyring
        self._workshop = workshop
        self._folder = folder
        self._clock = clock
        self._rand = rand
        self._log = logger()
        policy = Policy(dict(keyring.pinned), config.policy.minimum_cohort, config.policy.max_colluders)
        door = faster_door(time.perf_counter)
        self._log.info("fastest way to masks on this machine", door=door.value)
        self._member = Member(identity.uri, identity.key, policy, rand, door)
        self._meter = ByteMeter()
        self._display = Display(folder, identity.name.study, clock)
        self._background = Background()
        self._wake: Callable[[], None] = lambda: None
        self._redial: Callable[[], None] = lambda: None
        self._say: Callable[[Said], None] = lambda _: None
        self._say_nothing: Callable[[], None] = lambda: None
        self._stop = threading.Event()
        self._leaves = threading.Event()  # people asked for it; once no round is under way
        self._write_node()
        self._met = False
        self._at_work: AtWork | None = None
        self._put_off: pb.Train | None = None
        self._read_result = b""  # session of the last result
        self._evidence = Evidence(folder, lambda: keyring.identity, self._meter, self._ledger, self._now)
        self._memory = Memory()

    def converse(self, dial: Dial, stop: threading.Event) -> None:
        """Talk to the coordinator until the study is finished or `stop` is set."""
        conversation = Conversation(lambda: dial(self._config, self._meter), self, stop, self._rand)
        self._wake, self._redial, self._stop = conversation.wake, conversation.redial, stop
        self._say, self._say_nothing = conversation.say, conversation.say_nothing
        self._display.show("connecting", f"connecting to {self._config.coordinator}")
        conversation.run()

    def asked(self, data: bytes) -> Answer:
        """A request of the people here, in a thread of its own; the conversation looks at the ledger again at once."""
        said = people.answer(self._config, data, self._now(), self._leaves.set)
        self._log.info("a decision of the people here", done=said.done)
        self._wake()
        return said

    def close(self) -> None:
        """Give up work in progress and write the last figures."""
        if self._at_work is not None:
            self._at_work.drop()
        self._background.close()
        self._display.count(self._meter, self._display.shown.round)

    # ---- the conversation ----

    def joined(self, reply: pb.JoinReply) -> None:
        """Compare names and versions; take the plan."""
        plan = plan_offered(reply, self._me, self._config.plan)
        self._met = True
        if self._at_work is None or self._at_work.study.digest != plan.digest():
            self._take_plan(plan)
        self._evidence.joined(reply)
        self._log.info("joined", study=plan.study, plan=plan.digest().hex()[:12], round=reply.rounds_done)
        self._display.show("waiting", "connected; waiting for the coordinator", only_after=("connecting",))

    def settle(self, link: Link) -> None:
        """Say what ended in the background, and take up an order that was put off if people lifted the reason."""
        self._tend_keys(link)
        self._collect()
        self._read_log(link)
        self._leave_if_asked(link)
        at_work, order = self._at_work, self._put_off
        if self._leaves.is_set():
            return
        if at_work is not None and order is not None and self._allowed_now(at_work, order):
            self._log.info("the reason for declining is lifted", round=order.round)
            self._on_train(link, at_work, order)

    def _read_log(self, link: Link) -> None:
        """After a new connection: another history than the one kept ends what is under way."""
        if not self._evidence.due:
            return
        try:
            self._evidence.follow(link)
        except OrderStale as error:
            self._log.info("log of rounds not read", reason=str(error))
        except WorkFailed as error:
            self._take_no_part(error)

    def _take_no_part(self, error: WorkFailed) -> None:
        if self._at_work is not None:
            self._at_work.drop()
        self._put_off = None
        self._say(pb.NodeReport(round=self._display.shown.round, state=pb.NodeReport.DECLINED, code=error.code))
        self._display.show("declined", str(error))

    @property
    def _leaves_now(self) -> bool:
        """Asked to leave, and no round is under way."""
        return self._leaves.is_set() and (self._at_work is None or self._at_work.idle)

    def _leave_if_asked(self, link: Link | None) -> None:
        """Say goodbye between two rounds, and stop; without a connection there is nobody to say it to."""
        if not self._leaves_now:
            return
        if link is not None:
            try:
                link.report(pb.NodeReport(state=pb.NodeReport.LEFT))
            except OrderStale as error:
                self._log.info("goodbye not wanted any more", reason=str(error))
        self._display.show("left", "this node left between two rounds: start it again to come back")
        self._log.info("left")
        self._stop.set()

    def _tend_keys(self, link: Link) -> None:
        """Renew in time; take up new keys and lists between sessions, over a new connection."""
        in_session = self._at_work is not None and self._at_work.desk.in_session
        if not in_session and self._keyring.tend(link, self._now()):
            self._write_node()
            self._redial()

    def _write_node(self) -> None:
        identity = self._keyring.identity
        self._folder.write_node(identity.uri, identity.name.study, identity.not_after.isoformat())

    def carry_out(self, link: Link, order: pb.Instruction) -> None:
        """One instruction."""
        at_work = self._at_work
        assert at_work is not None, "the plan comes with the first reply of every connection"
        match order.WhichOneof("order"):
            case "train" if self._leaves_now:
                pass  # it came while people asked: the goodbye is said before the next poll
            case "train":
                self._on_train(link, at_work, order.train)
            case "open" | "share" | "mask" | "confirm" | "reveal" as phase:
                self._on_session(link, at_work.desk, phase, getattr(order, phase))
            case "result":
                self._on_result(link, at_work, order.result)
            case "finished":
                self._evidence.finished()
                self._display.show("finished", order.finished.reason)
                self._log.info("finished", reason=order.finished.reason)
            case _:  # `wait`, and orders of a later protocol version
                pass
        self._memory.trim()

    def lost(self, reason: str, wait_s: float) -> None:
        """Say so; before the first success, find out whether waiting can help at all."""
        if not self._met:
            reason = reason_of_loss(self._config, reason)
        self._log.warning("no connection", reason=reason, wait_s=round(wait_s, 1))
        if self._at_work is None or not self._at_work.training.busy:
            self._display.show("connecting", f"no connection: {reason}")
        self._leave_if_asked(None)

    # ---- plan ----

    def _take_plan(self, plan: Plan) -> None:
        if self._at_work is not None:
            self._at_work.drop()
        self._say_nothing()
        study = Study(plan, plan.digest(), self._workshop.layout(plan))
        sent = sent_layout(plan, study.layout)
        self._evidence.take_plan(plan)
        self._memory.expect(4 * study.layout.length)
        self._folder.write_plan(plan)
        shop, told, threads = self._workshop, self._display, self._config.threads
        training = LocalTraining(plan, self._me, shop, self._background, told, self._clock, self._wake, threads, self._rand)
        variates = self._variates(plan, sent)
        desk = ReleaseDesk(self._member, plan, sent, self._folder, self._ledger, self._clock, variates, self._evidence.attended)
        self._at_work, self._put_off = AtWork(study, desk, training, variates), None
        self._display.rounds(plan.rounds)
        if self._is_approved(plan):
            training.prepare(len(self._ledger().withdrawals().entries))

    def _variates(self, plan: Plan, layout: Layout) -> Variates | None:
        return Variates(self._folder.variate, self._folder.proposed_variate, plan, layout) if scaffold.is_used(plan) else None

    def _ledger(self) -> Ledger:
        """Opened, and so verified, for every question: people may write to it while the node runs."""
        return self._folder.open_ledger(self._me, self._now())

    def _is_approved(self, plan: Plan) -> bool:
        try:
            return self._ledger().approval(plan) is not None
        except LedgerError:
            return False  # said when the coordinator offers a round

    # ---- training ----

    def _on_train(self, link: Link, at_work: AtWork, order: pb.Train) -> None:
        self._put_off = None
        older = older_report(at_work.study.plan, at_work.desk, at_work.training, order)
        if older is not None:
            self._say(older)
            return
        if at_work.desk.holds(order.round, order.base_digest):
            self._say(pb.NodeReport(round=order.round, state=pb.NodeReport.READY, base_digest=order.base_digest))
            return
        failed = at_work.training.failed_at(order.round, order.base_digest)
        if failed is not None:
            self._say_failed(failed)
            return
        if not at_work.training.is_at(order.round, order.base_digest):
            at_work.drop()
            self._display.count(self._meter, self._display.shown.round, at_once=False)
            try:
                self._begin(link, at_work, order)
            except (LedgerError, WorkFailed) as error:
                self._decline(order, error.code, str(error))
                self._put_off = order if isinstance(error, LedgerError) else None
                return
            except OrderStale as error:
                self._log.info("model not offered any more", round=order.round, reason=str(error))
                return
        self._say(pb.NodeReport(round=order.round, state=pb.NodeReport.TRAINING))

    def _leave_to_train(self, at_work: AtWork, order: pb.Train) -> Authorization:
        plan = at_work.study.plan
        obstacle = policy_obstacle(plan, self._me, self._config.policy, self._keyring.pinned, order.round)
        if obstacle is not None:
            raise WorkFailed("policy", f"This node's policy refuses the plan: {obstacle}.")
        return self._ledger().authorize(plan, order.round)

    def _allowed_now(self, at_work: AtWork, order: pb.Train) -> bool:
        try:
            self._leave_to_train(at_work, order)
        except (LedgerError, WorkFailed):
            return False
        return True

    def _begin(self, link: Link, at_work: AtWork, order: pb.Train) -> None:
        authorization = self._leave_to_train(at_work, order)
        self._evidence.before_training(link, order)
        at_work.training.prepare(authorization.withdrawn)
        length = scaffold.published_length(at_work.study.plan, at_work.study.layout)
        try:
            published = link.fetch_model(order.base_digest, order.base_bytes, length, "train")
        except ModelMismatch as error:
            raise WorkFailed("wrong-model", f"{error}.") from error
        base, common = scaffold.taken_apart(at_work.study.plan, published)
        at_work.training.begin(authorization, order.base_digest, base, drift_of(at_work.variates, common))
        self._log.info("training begins", round=order.round, bytes=4 * length)

    def _collect(self) -> None:
        at_work = self._at_work
        became = None if at_work is None else at_work.training.collect()
        if at_work is None or became is None:
            return
        if isinstance(became, Ready):
            try:
                at_work.desk.hold(became.update, became.base_digest, became.authorization, became.sums, became.drift)
            except UpdateUnusable as error:
                became = Failed(became.authorization.round, "training-failed", str(error))
        if isinstance(became, Failed):
            self._say_failed(became)
            return
        number = became.authorization.round
        self._say(pb.NodeReport(round=number, state=pb.NodeReport.READY, base_digest=became.base_digest))
        self._display.show("ready", "trained; waiting for the others", round_number=number)
        self._log.info("update ready", round=number)

    def _say_failed(self, failed: Failed) -> None:
        """To the people here, and to the coordinator."""
        self._display.show("failed", failed.sentence, round_number=failed.round)
        self._log.warning("no update", round=failed.round, code=failed.code)
        self._evidence.declined(failed.round, "failed", failed.code)
        state = pb.NodeReport.FAILED if failed.code == "training-failed" else pb.NodeReport.DECLINED
        self._say(pb.NodeReport(round=failed.round, state=state, code=failed.code))

    def _decline(self, order: pb.Train, code: str, sentence: str) -> None:
        self._evidence.declined(order.round, "declined", code)
        phase: NodePhase = "paused" if code == "paused" else "declined"
        self._display.show(phase, sentence, round_number=order.round)
        self._log.warning("declined", round=order.round, code=code, reason=DECLINE_CODES[code])
        self._say(pb.NodeReport(round=order.round, state=pb.NodeReport.DECLINED, code=code))

    # ---- masking ----

    def _on_session(self, link: Link, desk: ReleaseDesk, phase: str, order: Any) -> None:
        started_s = self._clock()
        try:
            try:
                self._answer(link, desk, phase, order)
            except SessionRefused as refusal:
                self._log.warning("refused", phase=phase, code=refusal.code, culprit=refusal.culprit, detail=refusal.detail)
                self._display.show("waiting", f"this node left the masking session: {refusal.detail}")
                self._say(refusal_answer(order.session, refusal))
        except OrderStale as error:
            self._log.info("answer not wanted any more", phase=phase, reason=str(error))
        else:
            self._log.info(
                "answered", phase=phase, round=self._display.shown.round, seconds=round(self._clock() - started_s, 2)
            )

    def _answer(self, link: Link, desk: ReleaseDesk, phase: str, order: Any) -> None:
        self._evidence.before_answer(link, phase, order)
        match phase:
            case "open":
                self._keyring.learn(order, self._now())
                desk.use(self._keyring.member_for(order, self._member))
                answer = desk.open(order)
                self._display.show("masking", f"masking with {len(order.members)} hospitals", round_number=order.round)
            case "share":
                answer = desk.share(order)
            case "mask":
                charged, upload = desk.mask(order)
                self._log.info("charge committed", round=self._display.shown.round, bytes=upload.total_bytes)
                link.upload(parts_of(charged, upload, offset_bytes(upload, order)), upload.total_bytes)
                return
            case "confirm":
                answer = desk.confirm(order)
            case _:
                answer = desk.reveal(order)
        self._say(answer)

    def _on_result(self, link: Link, at_work: AtWork, order: pb.RoundResult) -> None:
        if order.session == self._read_result:
            return  # said again after a restart of the coordinator
        self._read_result = order.session
        try:
            outcome = at_work.desk.result(order)
        except LedgerError as error:
            self._log.warning("the result could not be recorded", round=order.round, code=error.code)
            outcome = Outcome.LOST
        sent_bytes = self._display.count(self._meter, order.round)
        reason = order.reason or outcome.value
        self._log.info("round over", round=order.round, survivors=len(order.survivors), bytes=sent_bytes, reason=reason)
        try:
            self._evidence.result(link, order, at_work.desk.take_recorded())
        except WorkFailed as error:
            self._take_no_part(error)
            return
        still_held = at_work.study.plan.buffer is not None and outcome is Outcome.NOT_HERE
        if self._display.shown.phase in {"masking", "ready", "waiting"} and not still_held:
            self._display.show("waiting", f"round {order.round} is over: {outcome.value}", round_number=order.round)
        self._memory.give_back()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)
