"""The committed vectors: made by the plain implementation, matched by the library, and every named bad case refused."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from secagg_round import Drbg, Federation, small_params

from secagg import Complete, LocalError, Quantizer, RemoteError, Sparse, TooFewSurvivors, node
from secagg.coordinate import open_sum, verify_upload_seal
from secagg.messages import NO_DIGESTS, Advert, Box, BoxDigests, Confirmation, ShareSet, UploadSeal

VECTORS = Path(__file__).parent.parent / "vectors"
sys.path.insert(0, str(VECTORS))

import numpy as np  # noqa: E402
from make_vectors import FILES, text_of  # noqa: E402


def read(name):
    return json.loads((VECTORS / name).read_text())


ROUNDS = {"round vector": read("round.json"), "sparse round vector": read("sparse_round.json")}
BAD = {"round vector": read("bad_cases.json"), "sparse round vector": read("sparse_bad_cases.json")}
CASES = [pytest.param(label, case, id=f"{label}: {case['name']}") for label in BAD for case in BAD[label]["cases"]]


def unhex(value):
    return {name: unhex(item) for name, item in value.items()} if isinstance(value, dict) else bytes.fromhex(value)


def federation_of(label):
    told = ROUNDS[label]
    graph = Sparse(told["degree"], told["neighbour_threshold"]) if "degree" in told else Complete()
    params = small_params(
        told["members"],
        told["threshold"],
        session=bytes.fromhex(told["session"]),
        length=told["length"],
        quantizer=Quantizer(told["clip"], told["lanes"]),
        weights=tuple(told["weights"]),
        minimum_cohort=told["minimum_cohort"],
        graph=graph,
    )
    return Federation(params, seed=label)


def updates_of(label):
    return {p: np.array(values, np.float32) for p, values in ROUNDS[label]["updates"].items()}


@pytest.mark.parametrize("name", FILES)
def test_files_are_what_the_generator_writes(name):
    assert (VECTORS / name).read_text() == text_of(name)


@pytest.mark.parametrize("label", ROUNDS)
def test_the_vector_names_its_randomness(label):
    assert Drbg(label)(16) == hashlib.sha256(label.encode() + b"/" + bytes(8)).digest()[:16]
    assert f"SHA-256('{label}/' ||" in ROUNDS[label]["about"]


def fields_of(advert):
    fields = {name: getattr(advert, name).hex() for name in ("seal_key", "mask_key", "seed_commitment", "signature")}
    return fields | ({"neighbours": places(advert.neighbours).hex()} if advert.neighbours else {})


def places(numbers):
    return b"".join(number.to_bytes(4, "big") for number in numbers)


@pytest.mark.parametrize("label", ROUNDS)
def test_the_library_plays_the_vector(label):
    told, federation = ROUNDS[label], federation_of(label)
    opened = federation.play(updates_of(label), told["drop"])
    view = federation.view
    assert federation.params.half_steps == told["half_steps"]
    assert [key.hex() for key in federation.params.public_keys] == told["public_keys"]
    assert federation.params.context().hex() == told["context"]
    assert {p: fields_of(advert) for p, advert in view.adverts.items()} == told["adverts"]
    assert {p: {b.receiver: b.sealed.hex() for b in s.boxes} for p, s in view.share_sets.items()} == told["boxes"]
    assert {p: s.signature.hex() for p, s in view.share_sets.items()} == told["share_signatures"]
    assert {p: data.hex() for p, data in federation.uploads.items()} == told["uploads"]
    assert {p: seal.signature.hex() for p, seal in federation.seals.items()} == told["upload_signatures"]
    assert {p: c.signature.hex() for p, c in view.confirmations.items()} == told["confirmations"]
    assert {p: {i.peer: i.share.hex() for i in r.shares} for p, r in view.revealed.items()} == told["revealed"]
    assert [float(value).hex() for value in opened.mean] == told["mean"]


def messages(label):
    """All relayed messages of the vector as plain nested dicts of bytes, for a case to alter."""
    told = ROUNDS[label]
    sealed, uploads = unhex(told["boxes"]), unhex(told["uploads"])
    digests = {p: {r: hashlib.sha256(box).digest() for r, box in boxes.items()} for p, boxes in sealed.items()}
    signed = unhex(told["upload_signatures"])
    return {
        "names": {p: p.encode() for p in told["members"]},
        "adverts": unhex(told["adverts"]),
        "boxes": sealed,
        "digests": digests,
        "summaries": {p: hashlib.sha256(b"".join(row.values())).digest() for p, row in digests.items()},
        "share_signatures": unhex(told["share_signatures"]),
        "survivors": {p: p.encode() for p in told["survivors"]},
        "seals": {p: {"digest": hashlib.sha256(uploads[p]).digest(), "signature": signed[p]} for p in uploads},
        "confirmations": unhex(told["confirmations"]),
        "uploads": uploads,
        "upload_signatures": signed,
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


def told_advert(party, fields):
    drawn = fields.get("neighbours", b"")
    numbers = tuple(int.from_bytes(drawn[at : at + 4], "big") for at in range(0, len(drawn), 4))
    return Advert(party, **(fields | {"neighbours": numbers}))


def told_set(told, party, me):
    """What `me` is shown of one sharer: a box and digests, or the summary where it is not among the receivers."""
    boxes = tuple(Box(r, sealed) for r, sealed in told["boxes"][party].items() if r == me)
    if me == party or me in told["digests"][party]:
        row = sorted(told["digests"][party].items())
        digests = BoxDigests(tuple(r for r, _ in row), b"".join(digest for _, digest in row))
        return ShareSet(party, boxes, digests, told["share_signatures"][party])
    return ShareSet(party, boxes, NO_DIGESTS, told["share_signatures"][party], told["summaries"][party])


def answer(federation, phase, me, told):
    """Ask node `me` with what it is told; all earlier phases were honest."""
    state = federation.states[me]
    if phase == "share":
        return node.share(state, [told_advert(p, fields) for p, fields in told["adverts"].items()], federation.rand)
    if phase == "mask":
        return node.ready_to_mask(state, [told_set(told, p, me) for p in told["boxes"]])
    if phase == "confirm":
        seals = {p: UploadSeal(**fields) for p, fields in told["seals"].items()}
        return node.confirm(state, [name.decode() for name in told["survivors"].values()], seals)
    if phase == "reveal":
        return node.reveal(state, [Confirmation(p, s) for p, s in told["confirmations"].items()])
    assert phase == "upload"
    digest = hashlib.sha256(told["uploads"][me]).digest()
    return verify_upload_seal(federation.params, me, digest, UploadSeal(digest, told["upload_signatures"][me]))


def before(label, phase):
    federation, left = federation_of(label), ROUNDS[label]["survivors"]
    federation.advertise()
    if phase != "share":
        federation.share()
    if phase not in ("share", "mask"):
        federation.ready(left).mask(updates_of(label), left)
    if phase == "reveal":
        federation.confirm(left)
    return federation


@pytest.mark.parametrize(("label", "case"), CASES)
def test_named_bad_cases_are_refused_and_the_honest_message_still_works(label, case):
    federation, told = before(label, case["phase"]), messages(label)
    for operation, path, value in case["changes"]:
        alter(told, operation, path, value)
    with pytest.raises((RemoteError, TooFewSurvivors)) as caught:
        answer(federation, case["phase"], case["node"], told)
    found = caught.value.code if isinstance(caught.value, RemoteError) else "too-few"
    assert found == case["refusal"]
    answer(federation, case["phase"], case["node"], messages(label))


@pytest.mark.parametrize("label", ROUNDS)
def test_no_upload_opens_alone(label):
    federation = federation_of(label)
    federation.play(updates_of(label), ROUNDS[label]["drop"])
    alone = np.frombuffer(federation.uploads["anna"], "<u8").astype(np.uint64)
    with pytest.raises(RemoteError, match="cannot have sent"):
        open_sum(federation.view, alone)
    with pytest.raises(LocalError):
        open_sum(federation.view, alone[:-1])
