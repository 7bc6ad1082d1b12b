"""The committed vectors: made by the plain implementation, matched by the library, and every named bad case refused."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from secagg_round import Drbg, Federation, small_params

from secagg import LocalError, Quantizer, RemoteError, TooFewSurvivors, node
from secagg.coordinate import open_sum, verify_upload_seal
from secagg.messages import Advert, Box, BoxDigest, Confirmation, ShareSet, UploadSeal

VECTORS = Path(__file__).parent.parent / "vectors"
sys.path.insert(0, str(VECTORS))

import numpy as np  # noqa: E402
from make_vectors import FILES, text_of  # noqa: E402

ROUND = json.loads((VECTORS / "round.json").read_text())
BAD = json.loads((VECTORS / "bad_cases.json").read_text())


def unhex(value):
    return {name: unhex(item) for name, item in value.items()} if isinstance(value, dict) else bytes.fromhex(value)


@pytest.fixture
def federation():
    params = small_params(
        ROUND["members"],
        ROUND["threshold"],
        session=bytes.fromhex(ROUND["session"]),
        length=ROUND["length"],
        quantizer=Quantizer(ROUND["clip"], ROUND["lanes"]),
        weights=tuple(ROUND["weights"]),
        minimum_cohort=ROUND["minimum_cohort"],
    )
    return Federation(params, seed="round vector")


UPDATES = {p: np.array(values, np.float32) for p, values in ROUND["updates"].items()}
LEFT = [p for p in ROUND["members"] if p not in ROUND["drop"]]


@pytest.mark.parametrize("name", FILES)
def test_files_are_what_the_generator_writes(name):
    assert (VECTORS / name).read_text() == text_of(name)


def test_the_vector_names_its_randomness():
    assert Drbg("round vector")(16) == hashlib.sha256(b"round vector/" + bytes(8)).digest()[:16]


def test_the_library_plays_the_vector(federation):
    opened = federation.play(UPDATES, ROUND["drop"])
    view = federation.view
    assert federation.params.half_steps == ROUND["half_steps"]
    assert [key.hex() for key in federation.params.public_keys] == ROUND["public_keys"]
    assert federation.params.context().hex() == ROUND["context"]
    fields = ("seal_key", "mask_key", "seed_commitment", "signature")
    assert {p: {f: getattr(a, f).hex() for f in fields} for p, a in view.adverts.items()} == ROUND["adverts"]
    assert {p: {b.receiver: b.sealed.hex() for b in s.boxes} for p, s in view.share_sets.items()} == ROUND["boxes"]
    assert {p: s.signature.hex() for p, s in view.share_sets.items()} == ROUND["share_signatures"]
    assert {p: data.hex() for p, data in federation.uploads.items()} == ROUND["uploads"]
    assert {p: seal.signature.hex() for p, seal in federation.seals.items()} == ROUND["upload_signatures"]
    assert {p: c.signature.hex() for p, c in view.confirmations.items()} == ROUND["confirmations"]
    assert {p: {i.peer: i.share.hex() for i in r.shares} for p, r in view.revealed.items()} == ROUND["revealed"]
    assert [float(value).hex() for value in opened.mean] == ROUND["mean"]


def messages():
    """All relayed messages of the vector as plain nested dicts of bytes, for a case to alter."""
    sealed = unhex(ROUND["boxes"])
    digests = {p: {r: hashlib.sha256(box).digest() for r, box in boxes.items()} for p, boxes in sealed.items()}
    return {
        "adverts": unhex(ROUND["adverts"]),
        "boxes": sealed,
        "digests": digests,
        "share_signatures": unhex(ROUND["share_signatures"]),
        "survivors": {p: p.encode() for p in ROUND["survivors"]},
        "confirmations": unhex(ROUND["confirmations"]),
        "uploads": unhex(ROUND["uploads"]),
        "upload_signatures": unhex(ROUND["upload_signatures"]),
    }


def alter(told, operation, path, value):
    *folder, last = path
    at = told
    for step in folder:
        at = at[step]
    if operation == "drop":
        del at[last]
    elif operation == "xor":
        at[last] = bytes(a ^ b for a, b in zip(at[last], bytes.fromhex(value).ljust(len(at[last]), b"\0"), strict=True))
    elif operation == "copy":
        source = told
        for step in value:
            source = source[step]
        at[last] = source
    else:
        raise AssertionError(operation)


def answer(federation, phase, me, told):
    """Ask node `me` with what it is told; all earlier phases were honest."""
    adverts = [Advert(p, **fields) for p, fields in told["adverts"].items()]
    sets = [
        ShareSet(
            p,
            tuple(Box(r, sealed) for r, sealed in boxes.items() if r == me),
            tuple(BoxDigest(r, digest) for r, digest in told["digests"][p].items()),
            told["share_signatures"][p],
        )
        for p, boxes in told["boxes"].items()
    ]
    if phase == "share":
        return node.share(federation.states[me], adverts, federation.rand)
    if phase == "mask":
        return node.ready_to_mask(federation.states[me], sets)
    if phase == "confirm":
        return node.confirm(federation.states[me], [name.decode() for name in told["survivors"].values()])
    if phase == "reveal":
        return node.reveal(federation.states[me], [Confirmation(p, s) for p, s in told["confirmations"].items()])
    assert phase == "upload"
    digest = hashlib.sha256(told["uploads"][me]).digest()
    return verify_upload_seal(federation.params, me, digest, UploadSeal(digest, told["upload_signatures"][me]))


def before(federation, phase):
    federation.advertise()
    if phase != "share":
        federation.share()
    if phase not in ("share", "mask"):
        federation.ready(LEFT).mask(UPDATES, LEFT)
    if phase == "reveal":
        federation.confirm(LEFT)
    return federation


@pytest.mark.parametrize("case", BAD["cases"], ids=lambda case: case["name"])
def test_named_bad_cases_are_refused_and_the_honest_message_still_works(federation, case):
    before(federation, case["phase"])
    told = messages()
    for operation, path, value in case["changes"]:
        alter(told, operation, path, value)
    with pytest.raises((RemoteError, TooFewSurvivors)) as caught:
        answer(federation, case["phase"], case["node"], told)
    found = caught.value.code if isinstance(caught.value, RemoteError) else "too-few"
    assert found == case["refusal"]
    answer(federation, case["phase"], case["node"], messages())


def test_no_upload_opens_alone(federation):
    federation.play(UPDATES, ROUND["drop"])
    alone = np.frombuffer(federation.uploads["anna"], "<u8").astype(np.uint64)
    with pytest.raises(RemoteError, match="cannot have sent"):
        open_sum(federation.view, alone)
    with pytest.raises(LocalError):
        open_sum(federation.view, alone[:-1])
