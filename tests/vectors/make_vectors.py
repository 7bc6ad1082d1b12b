"""Write the known answers: `python tests/vectors/make_vectors.py`. test_secagg_vectors.py fails if the files differ.

Standards' answers are copied from their text; whole rounds come from the plain implementation, not from the library.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "secagg"))

from plain_primitives import counter_stream  # noqa: E402
from plain_reference import PlainRound, Session  # noqa: E402
from secagg_round import Drbg  # noqa: E402

NIST = "NIST SP 800-38A F.5.1"
PRIMITIVES = {
    "aes_block": [
        {
            "source": "FIPS 197 B",
            "key": "2b7e151628aed2a6abf7158809cf4f3c",
            "plain": "3243f6a8885a308d313198a2e0370734",
            "cipher": "3925841d02dc09fbdc118597196a0b32",
        },
        {
            "source": "FIPS 197 C.1",
            "key": "000102030405060708090a0b0c0d0e0f",
            "plain": "00112233445566778899aabbccddeeff",
            "cipher": "69c4e0d86a7b0430d8cdb78070b4c55a",
        },
    ],
    "aes_ctr": [
        {
            "source": NIST,
            "key": "2b7e151628aed2a6abf7158809cf4f3c",
            "counter": "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            "plain": "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
            "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
            "cipher": "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
            "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee",
        }
    ],
    "keystream": [
        {
            "source": "GCM specification, test case 2: the ciphertext of 16 zero bytes",
            "key": "00" * 16,
            "segment": 0,
            "lane": 0,
            "block": 0,
            "stream": "0388dace60b6a392f328c2b971b2fe78",
        }
    ],
    "x25519": [
        {
            "source": "RFC 7748 5.2, first",
            "scalar": "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "point": "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "result": "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        },
        {
            "source": "RFC 7748 5.2, second",
            "scalar": "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "point": "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "result": "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        },
        {
            "source": "RFC 7748 5.2, one iteration",
            "scalar": "09" + "00" * 31,
            "point": "09" + "00" * 31,
            "result": "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
        },
        {
            "source": "RFC 7748 6.1, Alice's public key",
            "scalar": "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "point": "09" + "00" * 31,
            "result": "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        },
        {
            "source": "RFC 7748 6.1, Bob's public key",
            "scalar": "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "point": "09" + "00" * 31,
            "result": "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        },
        {
            "source": "RFC 7748 6.1, Alice with Bob",
            "scalar": "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "point": "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            "result": "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        },
        {
            "source": "RFC 7748 6.1, Bob with Alice",
            "scalar": "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "point": "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            "result": "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        },
    ],
    "x25519_iterated": [
        {
            "source": "RFC 7748 5.2, 1,000 iterations",
            "start": "09" + "00" * 31,
            "iterations": 1000,
            "result": "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
        },
    ],
    "hkdf": [
        {
            "source": "RFC 5869 A.1",
            "input": "0b" * 22,
            "salt": "000102030405060708090a0b0c",
            "info": "f0f1f2f3f4f5f6f7f8f9",
            "output": "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        },
        {
            "source": "RFC 5869 A.2",
            "input": bytes(range(0x50)).hex(),
            "salt": bytes(range(0x60, 0xB0)).hex(),
            "info": bytes(range(0xB0, 0x100)).hex(),
            "output": "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        },
        {
            "source": "RFC 5869 A.3",
            "input": "0b" * 22,
            "salt": "",
            "info": "",
            "output": "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        },
    ],
    "ecdsa": [
        {
            "source": "RFC 6979 A.2.5, P-256 with SHA-256",
            "message": "sample",
            "scalar": "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721",
            "r": "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716",
            "s": "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
        }
    ],
}

UPDATES = {
    "anna": [0.0, 0.5, -0.5, 0.25, 0.75, -0.75, 0.0625],
    "bern": [0.0, 1.0, -1.0, 0.125, 0.75, -0.75, 1e-45],  # beyond the clip, and a denormal
    "chur": [0.0, 0.1, -0.1, 0.2, 0.75, -0.75, -1e-45],
    "davos": [0.0, 0.3, -0.3, -0.2, 0.75, -0.75, 0.0],
}


def primitives():
    """The standards' answers, and keystream of other segments and lanes by the plain cipher."""
    key = bytes(range(16))
    extra = [
        {
            "source": f"plain implementation, segment {segment}, lane {lane}, block {block}",
            "key": key.hex(),
            "segment": segment,
            "lane": lane,
            "block": block,
            "stream": counter_stream(key, lane.to_bytes(4, "big") + segment.to_bytes(8, "big"), block + 2, 48).hex(),
        }
        for segment, lane, block in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (2**40, 7, 0), (3, 0, 16_382), (3, 0, 131_069))
    ]
    return PRIMITIVES | {"keystream": PRIMITIVES["keystream"] + extra}


def whole_round():
    """Four members of unequal weights, one lost before its upload."""
    session = Session(
        session=bytes(range(16)), members=sorted(UPDATES), threshold=3, length=7, clip=0.75, lanes=3, weights=[2, 1, 2, 2]
    )
    session.minimum_cohort = 2
    return played(session, UPDATES, {"bern": "mask"}, "round vector")


def sparse_round():
    """Seven members that draw four neighbours each, one lost before its upload and one before the reveals."""
    members = ["anna", "bern", "chur", "davos", "esch", "fully", "genf"]
    session = Session(session=bytes(range(16, 32)), members=members, threshold=5, length=5, clip=1.0, lanes=2, weights=[1] * 7)
    session.degree, session.neighbour_threshold = 4, 3
    updates = {member: [0.0, 1.0, -1.0, (place - 3) / 4, (place - 3) / 8] for place, member in enumerate(members)}
    return played(session, updates, {"chur": "mask", "genf": "reveal"}, "sparse round vector")


def hexed(value):
    """The same with every byte string in hexadecimal."""
    if isinstance(value, dict):
        return {name: hexed(item) for name, item in value.items()}
    return value.hex() if isinstance(value, bytes) else [hexed(item) for item in value]


def played(session, updates, drop, label):
    """Everything that the members of one round send, by the plain implementation."""
    result = PlainRound(session, updates, drop, Drbg(label))
    mean = result.run()
    adverts = {
        m: dict(zip(("seal_key", "mask_key", "seed_commitment", "signature"), a, strict=True))
        for m, a in result.adverts.items()
    }
    graph = {}
    if session.degree:
        graph = {"degree": session.degree, "neighbour_threshold": session.neighbour_threshold}
        for m, advert in adverts.items():
            advert["neighbours"] = result.drawn_bytes(m)[4:]
    return {
        "about": f"One whole round. rand(n) is the first n bytes of SHA-256('{label}/' || k as 8 bytes big-endian) for "
        "k = 0, 1, ...; every call starts with the next k. Members draw in the order of README, Randomness.",
        "session": session.session.hex(),
        "members": session.members,
        "threshold": session.threshold,
        **graph,
        "length": session.length,
        "clip": session.clip,
        "lanes": session.lanes,
        "weights": session.weights,
        "minimum_cohort": session.minimum_cohort,
        "updates": updates,
        "drop": drop,
        "half_steps": session.half_steps(),
        "public_keys": hexed(session.keys),
        "context": result.context.hex(),
        "adverts": hexed(adverts),
        "boxes": hexed(result.boxes),
        "share_signatures": hexed(result.share_signature),
        "integers": result.integers,
        "uploads": hexed(result.upload),
        "upload_signatures": hexed(result.upload_signature),
        "survivors": result.survivors,
        "confirmations": hexed(result.confirmation),
        "revealed": hexed(result.revealed),
        "mean": [float(value).hex() for value in mean],
    }


FILES = {"primitives.json": primitives, "round.json": whole_round, "sparse_round.json": sparse_round}


def text_of(name):
    """The content of one vector file."""
    return json.dumps(FILES[name](), indent=1) + "\n"


if __name__ == "__main__":
    for name in FILES:
        (HERE / name).write_text(text_of(name))
