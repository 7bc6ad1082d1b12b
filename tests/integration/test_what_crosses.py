"""What really leaves a hospital: the whole plain text of real connections, searched for everything the hospital knows.

Four hospitals train for two rounds, each behind a relay that holds both keys. `north` and `east` hold different patients and
different numbers of them; `south` leaks on purpose, so that every way of looking is known to find something.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decrypting_relay import DecryptingRelay
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from http2_requests import Call, calls_in
from small_federation import HOSPITALS, SmallFederation

from hospital_node.prepared_cache import PreparedCache
from hospital_node.state import StateFolder
from hospital_node.validation import is_measured
from proto import federation_pb2 as pb
from proto.plan import Plan
from study import sites
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

TELLING_NODES = Path(__file__).parent / "telling_nodes.py"
LEAKY = "south"
PATIENTS = {"north": 4, "east": 7, "south": 5, "west": 4}  # every plan declares 4
ROUNDS = 2
CHARACTERS = 5  # of a number in decimal text: fewer come up by chance
PARTS = {  # every patient in every step, so that there always is a loss that could be told
    "evaluation": {"every": 1, "share": 0.4, "noise_multiplier": 4.0},
    "privacy": {"noise_multiplier": 2.0, "inverse_sampling_rate": 1, "delta": 1e-3},
}
OPAQUE = {  # fields that hold keys, sealed boxes, signatures, digests and masked words: of fixed sizes, and random to a reader
    *("seal_key", "mask_key", "seed_commitment", "sealed", "digest", "self_mask_seed", "words", "receipt", "signature"),
}
SIZE_VARIES = {"signature"}  # DER of two random numbers: 72 bytes at most, one in five hundred below 70, whatever was signed
INPUT = {method.name: GetMessageClass(method.input_type) for method in pb.DESCRIPTOR.services_by_name["Federation"].methods}


@dataclass
class Told:
    """What one hospital knows and nobody else may."""

    keys: list[str]
    losses: list[float]
    scores: list[float]
    vectors: list[np.ndarray]  # updates and trained models

    @classmethod
    def of(cls, file: Path) -> Told:
        with np.load(file) as found:
            words = json.loads(str(found["words"]))
            return cls(words["keys"], words["losses"], words["scores"], [*found["updates"], *found["trained"]])


@dataclass
class Capture:
    """Everything that a hospital sent, and what it must not have sent."""

    plain: list[bytes]  # of each connection, before encryption
    told: Told
    names: tuple[str, ...]  # files and people of the hospital

    @property
    def calls(self) -> list[Call]:
        return [call for sent in self.plain for call in calls_in(sent)]

    @property
    def messages(self) -> list[Message]:
        return [parsed(call.method, payload) for call in self.calls for payload in call.messages]

    @property
    def reports(self) -> list[pb.NodeReport]:
        return [said for said in map(said_in, self.messages) if isinstance(said, pb.NodeReport)]

    @property
    def haystack(self) -> list[bytes]:
        """Raw connections, then each call's headers and body whole, because frames cut them into pieces."""
        headers = ["\n".join(f"{name}: {value}" for name, value in call.headers).encode() for call in self.calls]
        return [*self.plain, *headers, *(b"".join(call.messages) for call in self.calls)]


def said_in(message: Message) -> Message:
    """What a poll says, where it says anything; other messages speak for themselves."""
    kind = message.WhichOneof("said") if isinstance(message, pb.PollRequest) else None
    return message if kind is None else getattr(message, kind)


def parsed(method: str, payload: bytes) -> Message:
    """The message; AssertionError where it carries anything that the schema does not name."""
    message = INPUT[method].FromString(payload)
    message.DiscardUnknownFields()
    assert message.SerializeToString(deterministic=True) == payload, f"{method} carries more than its fields"
    return message


# ---- looking for secrets ----


def spellings(told: Told, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(what, how it would look) of everything but vectors, at least five bytes each."""
    for name in (*told.keys, *names):
        raw = name.encode()
        for spelled in (
            raw,
            raw.hex().encode(),
            base64.b64encode(raw)[: len(raw) * 8 // 6],
            name.encode("utf-16-le"),
            raw[::-1],
        ):
            yield "a name", spelled
    for kind, values in (("a loss", told.losses), ("a score", told.scores)):
        for value in values:
            if value in {0.0, 1.0}:  # a score that every untrained model reaches says nothing of anybody
                continue
            for order in "<>":
                yield kind, struct.pack(f"{order}d", value)
            yield kind, in_digits(value)
    for first, second in zip(told.losses, told.losses[1:], strict=False):
        for order in "<>":
            yield "two losses", struct.pack(f"{order}2f", first, second)


def in_digits(value: float) -> bytes:
    """The first characters of a number as text, from the first digit that is not zero: so it is found rounded and cut off."""
    text = f"{value:.12f}"
    first = next(place for place, digit in enumerate(text) if digit in "123456789")
    return text[first : first + CHARACTERS].encode()


def windows(raw: bytes) -> np.ndarray:
    """Every eight bytes in a row, at any place, as one number each."""
    return np.lib.stride_tricks.sliding_window_view(np.frombuffer(raw, np.uint8), 8).copy().view("<u8").ravel()


def of_a_vector(vector: np.ndarray) -> np.ndarray:
    """Every two weights in a row, in both byte orders, as numbers like `windows` gives; two zeros say nothing."""
    found = []
    for order in "<>":
        one = vector.astype(f"{order}f4")
        found += [one[start : start + (len(one) - start) // 2 * 2].view("<u8") for start in (0, 1)]
        found.append(vector.astype(f"{order}f8").view("<u8"))
    every = np.unique(np.concatenate(found))
    return every[every != 0]


def found_in(haystack: list[bytes], told: Told, names: tuple[str, ...]) -> set[str]:
    """Kinds of secrets that occur anywhere."""
    found = {what for what, spelled in spellings(told, names) if any(spelled in straw for straw in haystack)}
    weights = np.concatenate([of_a_vector(vector) for vector in told.vectors])
    if any(np.isin(windows(straw), weights).any() for straw in haystack if len(straw) >= 8):
        found.add("weights")
    return found


# ---- comparing hospitals ----


def shape(message: Message, own: str) -> list[tuple[str, Any]]:
    """Every field: readable ones by value, with the own name taken out, opaque ones by size; lists without their order."""
    found: list[tuple[str, Any]] = []
    for descriptor, value in message.ListFields():
        several = value if descriptor.is_repeated else [value]
        if descriptor.message_type is not None:
            parts = sorted((shape(one, own) for one in several), key=repr)
            found += [(f"{descriptor.name}.{name}", seen) for part in parts for name, seen in part]
            continue
        for one in several:
            if descriptor.name in SIZE_VARIES:
                found.append((descriptor.name, 64 <= len(one) <= 72))
            elif descriptor.name in OPAQUE:
                found.append((descriptor.name, len(one)))
            else:
                found.append((descriptor.name, anonymous(one, own) if isinstance(one, str) else one))
    return found


def anonymous(text: str, own: str) -> str:
    """A party's name as its place among the others, which is what everybody else would put there."""
    others = sorted(set(HOSPITALS) - {own})
    return re.sub(r"/hospital/(\w+)$", lambda name: "/me" if name[1] == own else f"/peer-{others.index(name[1])}", text)


QUESTIONS = {"Poll", "ReadLog"}


def story(capture: Capture, own: str) -> list[tuple[Any, ...]]:
    """Everything sent but questions, call after call, as `shape` shows it; of a poll that says something what it says."""
    told = []
    for call in capture.calls:
        said = [said_in(parsed(call.method, payload)) for payload in call.messages]
        if call.method not in QUESTIONS or any(not isinstance(one, INPUT[call.method]) for one in said):
            told.append((call.method, headers(call), [shape(one, own) for one in said]))
    return told


def asked_with(capture: Capture, method: str) -> set[str]:
    """What questions hold, by field. How many there are and how far they are follows what the coordinator had to say when."""
    asked = [parsed(call.method, payload) for call in capture.calls if call.method == method for payload in call.messages]
    return {descriptor.name for message in asked for descriptor, _ in message.ListFields()}


def headers(call: Call) -> list[tuple[str, str]]:
    """All but the relay's port and what is left of the deadline."""
    return [(name, value) for name, value in call.headers if name not in {":authority", "grpc-timeout"}]


# ---- the federation ----


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Capture]:
    folder = tmp_path_factory.mktemp("capture")
    with Family(1) as family:
        federation = SmallFederation(
            folder, family, rounds=ROUNDS, patients=PATIENTS, timing={"ready_after_s": 4.0}, parts=PARTS
        )
        federation.approve()
        for role in federation.world.cast.hospitals:
            _part_patients(federation.plan, role.data, federation.world.state(role))
        relays = _relays(federation, federation.start_coordinator())
        files = [federation.world.config(role) for role in federation.world.cast.hospitals]
        command = [sys.executable, TELLING_NODES, folder / "told", LEAKY, *files]
        family.start("nodes", [str(word) for word in command], folder / "nodes.log")
        with federation.store() as reader:
            federation.wait(lambda: bool(reader.finished()), 300, "both rounds are done")
            assert [(row.state, len(row.survivors)) for row in reader.rounds()] == [("opened", 4)] * ROUNDS
        for relay in relays.values():
            relay.close()
    return {
        role.name: Capture(
            [bytes(sent) for sent in relays[role.name].sent],
            Told.of(folder / "told" / f"{role.name}.npz"),
            _names(role.data),
        )
        for role in federation.world.cast.hospitals
    }


def _relays(federation: SmallFederation, address: str) -> dict[str, DecryptingRelay]:
    host, port = address.rsplit(":", 1)
    relays = {}
    for role in federation.world.cast.hospitals:
        home = federation.world.home(role)
        relay = DecryptingRelay((host, int(port)), federation.world.coordinator / "identity", home / "identity")
        sites.write_node(federation.world, role, f"127.0.0.1:{relay.port}")
        relays[role.name] = relay
    return relays


def _part_patients(plan: Plan, data: Path, state: Path) -> None:
    """Give the node a secret under which it has patients to train on and patients to measure."""
    for number in range(256):
        secret = StateFolder(state).patient_secret
        secret.write_bytes(bytes([number]) * 32)
        cache = PreparedCache.open(state / "tried", plan.preparation, len(plan.network.labels), secret)
        if len({is_measured(plan, cache.patient_key(person)) for person in _people(data)}) > 1:
            return
    raise AssertionError("no secret parts the patients")


def _people(data: Path) -> set[str]:
    return {row.split(",")[1] for row in (data / "patients.csv").read_text().split()[1:]}


def _names(data: Path) -> tuple[str, ...]:
    """Of every file, and every word of the list of patients."""
    files = {path.stem for path in data.rglob("*") if path.suffix in {".mhd", ".raw"}}
    people = _people(data)
    assert files
    assert people
    return tuple(sorted(files | people))


@pytest.mark.parametrize("name", [name for name in HOSPITALS if name != LEAKY])
def test_nothing_that_a_hospital_knows_is_in_what_it_sends(captures: dict[str, Capture], name: str) -> None:
    capture = captures[name]
    assert len(capture.told.keys) == PATIENTS[name]
    assert len(capture.told.losses) > ROUNDS
    assert capture.told.scores, "some patients are measured"
    assert len(capture.told.vectors) == 2 * ROUNDS
    sent = {call.method for call in capture.calls}
    assert sent == {"Join", "Poll", "FetchModel", "Upload", "ReadLog"}
    assert found_in(capture.haystack, capture.told, capture.names) == set()


def test_a_hospital_that_leaks_is_found_out(captures: dict[str, Capture]) -> None:
    capture = captures[LEAKY]
    assert found_in(capture.haystack, capture.told, capture.names) == {"a loss"}
    texts = [report.code for report in capture.reports]
    assert any(in_digits(loss).decode() in text for text in texts for loss in capture.told.losses)


def test_different_patients_make_no_difference_to_what_is_sent(captures: dict[str, Capture]) -> None:
    """Same calls but questions in the same order, same values in every readable field, same sizes of everything else."""
    north, east, west = (story(captures[name], name) for name in ("north", "east", "west"))
    assert len(captures["north"].told.keys) != len(captures["east"].told.keys)
    assert captures["north"].told.losses != captures["west"].told.losses
    assert north == east
    assert north == west
    assert [asked_with(captures[name], "Poll") for name in HOSPITALS] == [{"done", "answer", "report"}] * len(HOSPITALS)
    assert all(asked_with(captures[name], "ReadLog") <= {"after"} for name in HOSPITALS)
    leaky = story(captures[LEAKY], LEAKY)
    assert len(leaky) > len(north), "one message too many is seen"
    assert [seen for seen in leaky if seen not in north], "a value that is another one is seen"


Plant = Callable[[Told, tuple[str, ...]], bytes]
PLANTS: dict[str, tuple[str, Plant]] = {
    "a patient's key": ("a name", lambda told, _: told.keys[-1].encode()),
    "a file name in hexadecimal": ("a name", lambda _, names: names[0].encode().hex().encode()),
    "a file name in base64": ("a name", lambda _, names: base64.b64encode(names[0].encode())),
    "a file name backwards": ("a name", lambda _, names: names[0].encode()[::-1]),
    "a loss as a double": ("a loss", lambda told, _: struct.pack("<d", told.losses[0])),
    "a loss as a double of the network": ("a loss", lambda told, _: struct.pack(">d", told.losses[-1])),
    "a loss in digits": ("a loss", lambda told, _: f"{told.losses[1]:.7f}".encode()),
    "a loss cut off": ("a loss", lambda told, _: f"loss={told.losses[1]:.9f}"[:13].encode()),
    "two losses as floats": ("two losses", lambda told, _: np.array(told.losses[:2], "<f4").tobytes()),
    "three weights": ("weights", lambda told, _: told.vectors[-1][501:504].astype("<f4").tobytes()),
    "three weights of the network": ("weights", lambda told, _: told.vectors[0][100:103].astype(">f4").tobytes()),
    "one weight as a double": ("weights", lambda told, _: told.vectors[0][7:8].astype("<f8").tobytes()),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_whatever_is_planted_is_found(captures: dict[str, Capture], plant: str) -> None:
    """In the middle of masked words, at a place that is no multiple of anything."""
    capture = captures["north"]
    what, make = PLANTS[plant]
    straw = bytearray(max(capture.haystack, key=len))
    planted = make(capture.told, capture.names)
    place = len(straw) // 2 | 1
    straw[place : place + len(planted)] = planted
    assert what in found_in([bytes(straw)], capture.told, capture.names)


def test_a_field_that_nobody_named_is_found(captures: dict[str, Capture]) -> None:
    poll = next(message for message in captures["north"].messages if said_in(message) is not message)
    number = bytes([15 << 3, 7])  # field 15: the number of patients
    report = pb.PollRequest(report=pb.NodeReport.FromString(captures["north"].reports[0].SerializeToString() + number))
    for unknown in (poll.SerializeToString() + number, report.SerializeToString()):
        with pytest.raises(AssertionError, match="more than its fields"):
            parsed("Poll", unknown)
