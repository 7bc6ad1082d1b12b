"""An advert built from the README alone: its tables and drawings are read here, and give the very bytes that nodes send.

Nothing of secagg makes bytes in this file. A kind, a length or an order that changes in the code and not in the README, or the
other way round, fails.
"""

import hashlib
import itertools
import math
import re
import struct
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from secagg_round import Federation, small_params

import secagg
from proto import wire
from secagg import Quantizer, Sparse
from secagg.discrete_gaussian import NoiseStream
from secagg.noise_shares import SharedNoise

README = (Path(secagg.__file__).parent / "README.md").read_text()
SEVEN = ("anna", "bern", "chur", "davos", "esch", "fully", "genf")
SESSIONS = {
    "three members": {"names": ("anna", "bern", "chur")},
    "four of unequal weight": {"names": SEVEN[:4], "weights": (3, 1, 2, 2), "round": 9, "max_colluders": 1},
    "sparse": {"names": SEVEN, "threshold": 5, "graph": Sparse(4, 3)},
    "coded": {
        "names": SEVEN[:3],
        "quantizer": Quantizer(0.5, 10, rotate=True),
        "tensor_clips": ((4, 0.25), (6, 1.0)),
        "extra_clips": (2.0, 8.0),
        "base_digests": (b"b" * 32,) * 3,
        "plan_digest": b"p" * 32,
        "layout_digest": b"l" * 32,
    },
    "shared noise": {
        "names": SEVEN,
        "threshold": 5,
        "noise_mode": "shared",
        "max_colluders": 1,
        "shared": SharedNoise(Fraction(100**2, 3), may_drop=2, may_collude=1, largest_sum=700),
    },
}


def field(data):
    return len(data).to_bytes(4, "big") + data


def text(value):
    return value.encode("utf-8")


def integer(value):
    return value.to_bytes(8, "big")


def binary64(value):
    return struct.pack(">d", value)


def fields(*parts):
    return b"".join(map(field, parts))


def listed(items):
    return fields(integer(len(items)), *items)


def labelled_digest(label, *parts):
    return hashlib.sha256(fields(text(label), *parts)).digest()


KINDS = {
    "integer": integer,
    "text": text,
    "bytes": bytes,
    "bytes, only with shared noise": bytes,
    "16 bytes": bytes,
    "32 bytes": bytes,
    "text, or bytes": lambda value: text(value) if isinstance(value, str) else value,
    "list of texts": lambda values: listed([text(value) for value in values]),
    "list of integers": lambda values: listed([integer(value) for value in values]),
    "list of 32 bytes": listed,
    "list of one binary64": lambda value: listed([binary64(value)]),
}


def section(title):
    return re.search(rf"^### {title}\n(.*?)(?=^##)", README, re.MULTILINE | re.DOTALL).group(1)


def context_rows():
    """(name of the field, its kind) in the order of the README."""
    rows = re.findall(r"^\| ([\w ]+?) \| ([\w ,]+?) \|", section("Context"), re.MULTILINE)
    assert rows[0] == ("field", "kind")
    return rows[1:]


def half_steps(params):
    """Step 0.2, by counting down; with shared noise n times what a member's integers reach (Shared noise, Range)."""
    if params.shared:
        members, (n, c) = len(params.participants), (params.shared.variance, params.shared.may_collude)
        parts = [n / (members - c)] + [
            n / ((members - k - c) * (members - k - c + 1)) for k in range(1, params.shared.may_drop + 1)
        ]
        widths = [max([1] + [2**p for p in range(30) if 2**p <= math.sqrt(v) / 32]) for v in parts]
        reach = sum(w * math.ceil(14 * math.sqrt(v) / w) for w, v in zip(widths, parts, strict=True))
        return members * (params.shared.largest_sum + reach)
    top, total = 2 ** (64 // params.quantizer.lanes) - 1, sum(params.weights)
    steps = top // 2
    while sum(2 * -(-steps * weight // total) for weight in params.weights) > top:
        steps -= 1
    return steps


def values_of(params):
    """What stands for each field in this session. B = 4 and R = 3 for ten rotated values (Fewer bits, 2)."""
    graph, rotated = params.graph, params.quantizer.rotate
    tensors = listed([integer(count) + binary64(clip) for count, clip in params.tensor_clips])
    extras = listed([binary64(clip) for clip in params.extra_clips])
    coded_length = 12 if rotated else params.length
    assert params.length == 10
    shared = params.shared
    noise = shared and fields(
        text(str(shared.variance.numerator)),
        text(str(shared.variance.denominator)),
        *map(integer, (shared.may_drop, shared.may_collude, shared.largest_sum)),
    )
    values = {
        "protocol version": 1,
        "plan digest": params.plan_digest,
        "round": params.round,
        "noise mode": "shared" if shared else "local",
        "layout digest": params.layout_digest,
        "session id": params.session,
        "names": sorted(params.participants),
        "fingerprints": [hashlib.sha256(key).digest() for key in params.public_keys],
        "weights": params.weights,
        "threshold": params.threshold,
        "max_colluders": params.max_colluders,
        "minimum_cohort": params.minimum_cohort,
        "vector length": params.length,
        "clip": params.quantizer.clip,
        "lanes": params.quantizer.lanes,
        "half steps": half_steps(params),
        "graph": fields(b"sparse", integer(4), integer(3)) if isinstance(graph, Sparse) else "complete",
        "base model digests": params.base_digests,
        "coding": fields(integer(int(rotated)), integer(coded_length), tensors, extras),
    }
    return values | ({"shares of the noise": noise} if shared else {})


def drawing(before):
    """Lines of the code block after a sentence: offset, length in hexadecimal, what follows."""
    block = README.split(before)[1].split("```\n")[1]
    return re.findall(r"^(\d+) +([0-9a-f]{8}) +(.+?)(?:  .*)?$", block, re.MULTILINE)


def drawn(lines, values):
    """The bytes of a drawing, each field at its offset and as long as it says."""
    data = b""
    for (offset, length, content), value in zip(lines, values, strict=True):
        assert len(data) == int(offset)
        assert len(value) == int(length, 16), content
        data += bytes.fromhex(length) + value
    return data


@pytest.fixture(params=SESSIONS.values(), ids=SESSIONS.keys())
def advertised(request):
    kind = dict(request.param)
    federation = Federation(small_params(kind.pop("names"), kind.pop("threshold", None), **kind)).advertise()
    assert federation.params.length == 10
    return federation


ONLY_SHARED = ("shares of the noise", "bytes, only with shared noise")


def test_the_context_is_the_table(advertised):
    values = values_of(advertised.params)
    rows = [row for row in context_rows() if advertised.params.shared or row != ONLY_SHARED]
    assert [name for name, _ in rows] == list(values)
    made = labelled_digest("hospital-secagg context v1", *(KINDS[kind](values[name]) for name, kind in rows))
    assert made == advertised.params.context()


def statement_of(advert):
    lines = drawing("The statement of an advert by `anna`, at these offsets")
    statement = drawn(lines, [text("anna"), advert.seal_key, advert.mask_key, advert.seed_commitment])
    assert len(statement) == 116
    if advert.neighbours:
        assert list(advert.neighbours) == sorted(set(advert.neighbours))
        statement += field(b"".join(place.to_bytes(4, "big") for place in advert.neighbours))
        assert len(statement) == 120 + 4 * len(advert.neighbours)
    if advert.noise_commitments:
        assert 'two more fields behind those, `"noise"` and the d commitments end to end' in README
        statement += fields(text("noise"), b"".join(advert.noise_commitments))
    return statement


def test_the_signature_of_an_advert_is_over_the_drawing(advertised):
    advert, params = advertised.view.adverts["anna"], advertised.params
    statement = statement_of(advert)
    *front, (offset, length, _) = drawing("What her signature is over:")
    message = drawn(front, [text("hospital-secagg signature v1"), text("advert"), params.context()])
    assert len(message) == int(offset)
    assert advert.neighbours or advert.noise_commitments or len(statement) == int(length, 16)
    message += field(statement)
    key = serialization.load_der_public_key(params.public_keys[0])
    key.verify(advert.signature, message, ec.ECDSA(hashes.SHA256()))


def test_the_commitment_is_the_one_that_is_written_out(advertised):
    secrets = advertised.states["anna"].secrets
    (label,) = set(re.findall(r'seed_commitment = D\("([\w -]+)", context, party, seed\)', README))
    made = labelled_digest(label, advertised.params.context(), text("anna"), secrets.seed)
    assert made == advertised.view.adverts["anna"].seed_commitment


def test_the_message_of_an_advert_is_the_drawing(advertised):
    advert = advertised.view.adverts["anna"]
    block = README.split("And the message (protobuf)")[1].split("```\n")[1]
    values = {
        '"anna"': text("anna"),
        "seal_key": advert.seal_key,
        "mask_key": advert.mask_key,
        "seed_commitment": advert.seed_commitment,
        "signature": advert.signature,
    }
    message = b""
    for tag, length, name in re.findall(r"([0-9a-f]{2}) ([0-9a-f]{2}|s) (\S+)", block.splitlines()[0]):
        value = values[name]
        assert len(value) == (len(advert.signature) if length == "s" else int(length, 16))
        message += bytes.fromhex(tag) + bytes([len(value)]) + value
    if advert.neighbours:
        assert block.splitlines()[1].startswith("32 ")
        message += b"\x32" + bytes([len(advert.neighbours)]) + bytes(advert.neighbours)  # places below 128: a byte each
    for commitment in advert.noise_commitments:
        assert block.splitlines()[2].startswith("3a 20 ")
        message += b"\x3a\x20" + commitment
    assert message == wire.to_advert(advert).SerializeToString()


def test_the_secrets_of_shared_noise_are_the_chain_that_is_written_out():
    kind = dict(SESSIONS["shared noise"])
    federation = Federation(small_params(kind.pop("names"), kind.pop("threshold"), **kind)).advertise()
    secrets, advert = federation.states["anna"].secrets.noise, federation.view.adverts["anna"]
    (chain,) = re.findall(r'Secret k is `D\("([\w -]+)", secret k - 1, k\)`', README)
    (commitment,) = re.findall(r'`D\("([\w -]+)", context, party, k, secret\)`', README)
    for k in (1, 2):
        assert secrets[k] == labelled_digest(chain, secrets[k - 1], integer(k))
        made = labelled_digest(commitment, federation.params.context(), text("anna"), integer(k), secrets[k])
        assert made == advert.noise_commitments[k - 1]


def plain_run(key, variance, count):
    """The first values of run 0, from the README's paragraph on draws, a word at a time; AES from the library alone."""
    aes = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()
    width = max([1] + [2**p for p in range(30) if 2**p <= math.sqrt(variance) / 32])
    half = math.ceil(14 * math.sqrt(variance) / width)

    def p(x):
        with localcontext(Context(prec=60)):
            return (Decimal(-x * x * variance.denominator) / Decimal(2 * variance.numerator)).exp()

    def ends(block):
        return {block[0], block[-1], 0} if 0 in block else {block[0], block[-1]}

    blocks = [range(g * width, g * width + width) for g in range(-half, half)]
    scale = int((32768 - 2 * half) / sum(max(map(p, ends(block))) for block in blocks))
    floors = [int(scale * min(map(p, ends(block)))) for block in blocks]
    others = [int(scale * max(map(p, ends(block)))) + 1 - floor for block, floor in zip(blocks, floors, strict=True)]
    sure = [block for block, floor in zip(blocks, floors, strict=True) for _ in range(floor)]
    tossing = [entry for entry in zip(blocks, floors, others, strict=True) for _ in range(entry[2])]

    def proposal(word):
        block_of = aes.update(bytes(12) + (word // 2 + 2).to_bytes(4, "big"))
        number = int.from_bytes(block_of[8 * (word % 2) : 8 * (word % 2) + 8], "little")
        slot, place, u = number % 32768, (number >> 16) % width, Decimal(number >> 32) / 2**32
        if slot < len(sure):
            return sure[slot][place]
        if slot >= len(sure) + len(tossing):
            return None
        block, floor, other = tossing[slot - len(sure)]
        return block[place] if u < (scale * p(block[place]) - floor) / other else None

    later = (value for word in itertools.count(32768) if (value := proposal(word)) is not None)
    return [value if (value := proposal(word)) is not None else next(later) for word in range(count)]


@pytest.mark.parametrize("variance", [Fraction(2), Fraction(1000, 7), Fraction(3000**2)])
def test_draws_are_those_of_the_paragraph(variance):
    key = bytes(range(16, 32))
    assert plain_run(key, variance, 400) == NoiseStream(key, variance).values(400).tolist()
