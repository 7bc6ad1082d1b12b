"""What a node has to say goes with its next poll, again until heard; an older coordinator is told by calls of their own."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing
from typing import Any

import grpc
import pytest
from node_world import Folders, make_folders

from certs.tls import server_credentials
from hospital_node.link import GrpcLink, LinkLost, OrderStale, Said, item_of, poll_of, say_apart
from hospital_node.loop import Conversation
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto import federation_pb2_grpc as rpc
from proto.wire import framed_bytes

ADVERT = pb.PhaseAnswer(session=b"s" * 16, advert=pb.Advert(party="secagg://lidc/hospital/h0"))
TRAINING = pb.NodeReport(round=1, state=pb.NodeReport.TRAINING)
READY = pb.NodeReport(round=1, state=pb.NodeReport.READY, base_digest=b"b" * 32)
Heard = tuple[int, Said | None]


class Line:
    """A connection that hears polls and does with each what the test says: an instruction's id, None (woken), or an error."""

    def __init__(self, *became: int | type[Exception] | None, polls_say: bool = True) -> None:
        self.polls_say = polls_say
        self.became = list(became)
        self.heard: list[Heard] = []
        self.apart: list[Said] = []

    def join(self) -> pb.JoinReply:
        return pb.JoinReply()

    def poll(self, done: int, said: Said | None = None) -> pb.Instruction | None:
        self.heard.append((done, said))
        became = self.became.pop(0)
        if became is None:
            return None
        if isinstance(became, int):
            return pb.Instruction(id=became, wait=pb.Wait())
        raise became("one sentence")

    def report(self, report: pb.NodeReport) -> None:
        self.apart.append(report)

    def answer(self, answer: pb.PhaseAnswer) -> None:
        self.apart.append(answer)

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


class Speaker:
    """A party that says, each time it settles, what the test says; the conversation ends with the words."""

    def __init__(self, *words: Said | None) -> None:
        self.words = list(words)
        self.stop = threading.Event()
        self.say: Callable[[Said], None] = lambda _: None

    def joined(self, reply: pb.JoinReply) -> None:
        pass

    def settle(self, link: Any) -> None:
        if not self.words:
            self.stop.set()
            return
        word = self.words.pop(0)
        if word is not None:
            self.say(word)

    def carry_out(self, link: Any, order: pb.Instruction) -> None:
        pass

    def lost(self, reason: str, wait_s: float) -> None:
        pass


def talked(line: Line, *words: Said | None) -> Line:
    party = Speaker(*words)
    conversation = Conversation(lambda: line, party, party.stop, lambda count: bytes(count))  # type: ignore[arg-type]
    party.say = conversation.say
    conversation.run()
    return line


def test_it_goes_with_the_next_poll_and_is_said_once() -> None:
    assert talked(Line(4, 7), ADVERT, None).heard == [(0, ADVERT), (4, None)]


@pytest.mark.parametrize("cut", [LinkLost, None])
def test_it_is_said_again_where_nobody_knows_whether_it_was_heard(cut: type[LinkLost] | None) -> None:
    assert talked(Line(cut, 4, 7), ADVERT, None, None).heard == [(0, ADVERT), (0, ADVERT), (4, None)]


def test_what_is_not_wanted_is_said_no_more_and_the_poll_is_made_without_it() -> None:
    assert talked(Line(OrderStale, 4), ADVERT).heard == [(0, ADVERT), (0, None)]


def test_a_poll_that_says_nothing_and_is_refused_is_no_answer_out_of_date() -> None:
    with pytest.raises(OrderStale):
        talked(Line(OrderStale), None)


class Answering(Speaker):
    """Answers every instruction with its number."""

    def carry_out(self, link: Any, order: pb.Instruction) -> None:
        self.say(pb.PhaseAnswer(session=bytes([order.id])))


def test_what_an_instruction_made_it_say_is_asked_for_again_after_a_loss() -> None:
    line, party = Line(4, LinkLost, 4, 9), Answering(None, None, None, None)
    conversation = Conversation(lambda: line, party, party.stop, lambda count: bytes(count))  # type: ignore[arg-type]
    party.say = conversation.say
    conversation.run()
    answer = pb.PhaseAnswer(session=b"\x04")
    assert line.heard == [(0, None), (4, answer), (0, None), (4, answer)]


def test_what_is_still_to_be_said_when_a_node_is_stopped_is_said_at_once() -> None:
    line, party = Line(4), Answering(None)
    conversation = Conversation(lambda: line, party, party.stop, lambda count: bytes(count))  # type: ignore[arg-type]
    party.say = conversation.say
    conversation.run()
    assert (line.heard, line.apart) == ([(0, None)], [pb.PhaseAnswer(session=b"\x04")])


def test_a_report_that_is_not_true_any_more_is_not_said() -> None:
    line, party = Line(4), Speaker(None)
    conversation = Conversation(lambda: line, party, party.stop, lambda count: bytes(count))  # type: ignore[arg-type]
    for state in (pb.NodeReport.DECLINED, pb.NodeReport.FAILED, pb.NodeReport.TRAINING, pb.NodeReport.READY):
        conversation.say(pb.NodeReport(round=1, state=state))
    conversation.run()
    assert [one.state for one in line.apart] == [pb.NodeReport.TRAINING]  # type: ignore[union-attr]
    assert [said.state for _, said in line.heard] == [pb.NodeReport.READY]  # type: ignore[union-attr]


def test_two_things_are_both_said_in_their_order() -> None:
    line = Line(None, 4)
    talked(line, ADVERT, READY)
    assert (line.apart, line.heard) == ([ADVERT], [(0, ADVERT), (0, READY)])


def test_a_report_that_may_have_been_heard_gives_way_to_a_newer_one() -> None:
    line = talked(Line(None, 4), TRAINING, READY)
    assert (line.apart, line.heard) == ([], [(0, TRAINING), (0, READY)])


def test_a_report_that_was_not_sent_at_all_does_not() -> None:
    line, party = Line(4), Speaker(None)
    conversation = Conversation(lambda: line, party, party.stop, lambda count: bytes(count))  # type: ignore[arg-type]
    conversation.say(TRAINING)
    conversation.say(READY)
    conversation.run()
    assert (line.apart, line.heard) == ([TRAINING], [(0, READY)])


def test_what_was_to_be_said_of_another_plan_is_forgotten() -> None:
    line, party = Line(4), Speaker(None)
    conversation = Conversation(lambda: line, party, party.stop, lambda count: bytes(count))  # type: ignore[arg-type]
    conversation.say(ADVERT)
    conversation.say_nothing()
    conversation.run()
    assert line.heard == [(0, None)]


@pytest.mark.parametrize("became", [4, None, LinkLost])
def test_an_older_coordinator_is_told_once_whatever_becomes_of_the_poll(became: int | type[LinkLost] | None) -> None:
    line = talked(Line(became, 7, polls_say=False), ADVERT, None)
    assert (line.apart, [said for _, said in line.heard]) == ([ADVERT], [None, None])


# ---- over a connection ----


class Coordinator(rpc.FederationServicer):
    """Notes every call by name; of a release that takes what polls say, or of an older one."""

    def __init__(self, *, polls_say: bool) -> None:
        self.polls_say = polls_say
        self.calls: list[tuple[str, Any]] = []

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        return pb.JoinReply(polls_say=self.polls_say)

    def Poll(self, request: pb.PollRequest, context: grpc.ServicerContext) -> pb.Instruction:
        self.calls.append(("Poll", request))
        return pb.Instruction(id=9, wait=pb.Wait())

    def Report(self, request: pb.NodeReport, context: grpc.ServicerContext) -> pb.Ack:
        self.calls.append(("Report", request))
        return pb.Ack()

    def Answer(self, request: pb.PhaseAnswer, context: grpc.ServicerContext) -> pb.Ack:
        self.calls.append(("Answer", request))
        return pb.Ack()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("study"))


@pytest.fixture(params=[True, False])
def coordinator(request: pytest.FixtureRequest, folders: Folders) -> Iterator[tuple[Coordinator, int]]:
    server, says = grpc.server(futures.ThreadPoolExecutor(2)), Coordinator(polls_say=request.param)
    rpc.add_FederationServicer_to_server(says, server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(folders.root / "main"))
    server.start()
    yield says, port
    server.stop(0).wait()


@pytest.mark.sockets
@pytest.mark.parametrize("said", [ADVERT, READY], ids=["answer", "report"])
def test_an_older_coordinator_is_told_by_a_call_of_its_own(
    coordinator: tuple[Coordinator, int], folders: Folders, said: Said
) -> None:
    says, port = coordinator
    meter = ByteMeter()
    with closing(GrpcLink(folders.config.model_copy(update={"coordinator": f"127.0.0.1:{port}"}), meter)) as link:
        link.join()
        meter.take()
        assert link.polls_say == says.polls_say
        if not link.polls_say:
            say_apart(link, said)
        assert link.poll(5, said if link.polls_say else None) is not None
    own = ("Answer" if isinstance(said, pb.PhaseAnswer) else "Report", said)
    apart = [own, ("Poll", pb.PollRequest(done=5))]
    assert says.calls == ([("Poll", poll_of(5, said))] if says.polls_say else apart)
    sent = meter.take()
    assert sent.pop(item_of(said)) == framed_bytes(poll_of(5, said) if says.polls_say else said)
    assert sent == ({} if says.polls_say else {"poll": framed_bytes(pb.PollRequest(done=5))})
