"""Lies that fit into one order: what is changed in an otherwise honest session, and how the node has to name it.

Each row bends the order of one phase for one node. Lies that need several orders, several nodes, a restart or another plan
are tests of their own in test_lying_coordinator.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from lying_session import Session
from wary_hospitals import STRICT

from proto import federation_pb2 as pb
from proto.layout import model_digest
from secagg.identity import public_der

GHOST = "secagg://wary/hospital/ghost"  # a hospital that the plan does not know
ROGUE_KEY = public_der(ec.generate_private_key(ec.SECP256R1()))  # nobody confirmed it
LOW_ORDER = bytes(32)  # an X25519 key with which every agreement is all zero


@dataclass(frozen=True)
class Lie:
    """`change` bends the order. The session ends there, unless it goes on because nothing was changed by the question."""

    name: str
    phase: str
    change: Callable[[Any, Session], None]
    code: str
    detail: str  # a piece of the sentence
    culprit: str = "unknown"
    victim: str = "north"
    ends: bool = True


def of(messages: Any, session: Session, name: str) -> Any:
    """The message of one hospital."""
    return next(one for one in messages if one_uri(one) == session.uri(name))


def one_uri(message: Any) -> str:
    return message.uri if isinstance(message, pb.Member) else message.party


def put(field: str, name: str, value: Any) -> Callable[[Any, Session], None]:
    """Set a field of one hospital's message; `value` may be a function of the session."""

    def change(order: Any, session: Session) -> None:
        setattr(of(items(order), session, name), field, value(session) if callable(value) else value)

    return change


def without(*names: str) -> Callable[[Any, Session], None]:
    """Leave these hospitals out."""

    def change(order: Any, session: Session) -> None:
        kept = [one for one in items(order) if one_uri(one) not in map(session.uri, names)]
        del items(order)[:]
        items(order).extend(kept)

    return change


def twice(name: str) -> Callable[[Any, Session], None]:
    def change(order: Any, session: Session) -> None:
        items(order).append(of(items(order), session, name))

    return change


def instead(name: str, make: Callable[[Session], Any]) -> Callable[[Any, Session], None]:
    """Another message in place of one hospital's."""

    def change(order: Any, session: Session) -> None:
        of(items(order), session, name).CopyFrom(make(session))

    return change


def also(make: Callable[[Session], Any]) -> Callable[[Any, Session], None]:
    def change(order: Any, session: Session) -> None:
        items(order).append(make(session))

    return change


def swapped(field: str, one: str, other: str) -> Callable[[Any, Session], None]:
    def change(order: Any, session: Session) -> None:
        first, second = of(items(order), session, one), of(items(order), session, other)
        here, there = getattr(first, field), getattr(second, field)
        setattr(first, field, there)
        setattr(second, field, here)

    return change


def items(order: Any) -> Any:
    """The repeated messages of an order."""
    name = {"Open": "members", "Share": "adverts", "Mask": "sets", "Confirm": "survivors", "Reveal": "confirmations"}
    return getattr(order, name[type(order).__name__])


def all_bases(order: pb.Open, session: Session) -> None:
    for member in order.members:
        member.base_digest = model_digest(session.hospitals.base[::-1].copy())


def forge_box(*, digest_too: bool) -> Callable[[Any, Session], None]:
    def change(order: pb.Mask, session: Session) -> None:
        from hashlib import sha256

        item = of(order.sets, session, "east")
        box = item.boxes[0]
        box.sealed = box.sealed[:-1] + bytes([box.sealed[-1] ^ 1])
        if digest_too:
            entry = next(entry for entry in item.digests if entry.receiver == box.receiver)
            entry.digest = sha256(box.sealed).digest()

    return change


def box_of_another_reader(*, relabelled: bool) -> Callable[[Any, Session], None]:
    def change(order: pb.Mask, session: Session) -> None:
        item = of(order.sets, session, "east")
        item.CopyFrom(session.relayed(session.answers["share"]["east"], "south"))
        if relabelled:
            item.boxes[0].receiver = session.uri("north")

    return change


def survivors(*names: str) -> Callable[[Any, Session], None]:
    def change(order: pb.Confirm, session: Session) -> None:
        del order.survivors[:]
        order.survivors.extend(name if "://" in name else session.uri(name) for name in names)

    return change


def signatures(*pairs: tuple[str, str]) -> Callable[[Any, Session], None]:
    """Confirmations as (whose name, whose signature)."""

    def change(order: pb.Reveal, session: Session) -> None:
        signed = session.answers["confirm"]
        told = [pb.Confirmation(party=session.uri(name), signature=signed[by].signature) for name, by in pairs]
        del order.confirmations[:]
        order.confirmations.extend(told)

    return change


def past(phase: str, name: str) -> Callable[[Session], Any]:
    """What a hospital sent in an earlier session."""
    return lambda session: session.hospitals.past.answers[phase][name]


OPEN = (
    Lie("a peer's key that nobody confirmed", "open", put("public_key", "east", ROGUE_KEY), "unpinned-key", "key of .*/east"),
    Lie("two peers' keys swapped", "open", swapped("public_key", "east", "west"), "unpinned-key", "people confirmed"),
    Lie("another key in my name", "open", put("public_key", "north", ROGUE_KEY), "policy", "with its own key"),
    Lie("a roster without me", "open", without("north"), "wrong-roster", "does not list .*/north"),
    Lie("a roster of two", "open", without("south", "east"), "policy", "withstands 0 colluders"),
    Lie("a roster below my own minimum", "open", without("east"), "too-few", "need 4", victim=STRICT),
    Lie("no roster", "open", without("north", "east", "south", "west"), "malformed", "0 members"),
    Lie(
        "an invented hospital",
        "open",
        also(lambda s: s.member("west", uri=GHOST, public_key=ROGUE_KEY, weight=1)),
        "wrong-roster",
        "ghost is not among the hospitals",
    ),
    Lie("a hospital twice", "open", twice("east"), "malformed", "listed twice"),
    Lie("a weight that isolates me", "open", put("weight", "north", 1000), "wrong-roster", "another weight than the plan"),
    Lie("no weight", "open", put("weight", "east", 0), "wrong-roster", "another weight than the plan"),
    Lie("a base that nobody trained on", "open", all_bases, "wrong-model", "another model than this node trained on"),
    Lie("one peer on another base", "open", put("base_digest", "east", b"m" * 32), "wrong-model", "mixes updates of different"),
    Lie("another round", "open", lambda o, s: setattr(o, "round", s.round + 1), "no-update", "no unreleased update of round"),
    Lie(
        "a session id seen before",
        "open",
        lambda o, s: setattr(o, "session", s.hospitals.past.id),
        "session-repeated",
        "before",
    ),
    Lie("a session id of another length", "open", lambda o, s: setattr(o, "session", b"short"), "malformed", "has 5 bytes"),
)
SHARE = (
    Lie("a sealing key of the liar's", "share", put("seal_key", "east", b"\x09" * 32), "bad-signature", "advert"),
    Lie("a masking key of the liar's", "share", put("mask_key", "east", b"\x09" * 32), "bad-signature", "advert"),
    Lie("a commitment of the liar's", "share", put("seed_commitment", "east", b"\x09" * 32), "bad-signature", "advert"),
    Lie("two peers' masking keys swapped", "share", swapped("mask_key", "east", "south"), "bad-signature", "advert"),
    Lie("an advert in another's name", "share", put("party", "west", lambda s: s.uri("south")), "duplicate-party", "twice"),
    Lie("an advert of an earlier session", "share", instead("east", past("open", "east")), "bad-signature", "in this session"),
    Lie("my own advert altered", "share", put("seed_commitment", "north", b"\x09" * 32), "own-message-altered", "came back"),
    Lie("my own advert left out", "share", without("north"), "own-message-altered", "not at all"),
    Lie("an advert twice", "share", twice("east"), "duplicate-party", "twice in the adverts"),
    Lie(
        "an advert of a stranger",
        "share",
        also(lambda s: pb.Advert(**_advert_fields(s, "east") | {"party": GHOST})),
        "unknown-party",
        "ghost is not a member",
    ),
    Lie(
        "a colluder's key that everybody can agree with",
        "share",
        instead("west", lambda s: s.signed_advert(mask_key=LOW_ORDER)),
        "weak-key",
        "low order",
        culprit="west",
    ),
    Lie(
        "a colluder's key in a second spelling",
        "share",
        instead("west", lambda s: s.signed_advert(seal_key=b"\xff" * 32)),
        "weak-key",
        "canonical",
        culprit="west",
    ),
    Lie(
        "a colluder with a peer's key",
        "share",
        instead("west", lambda s: s.signed_advert(mask_key=s.answers["open"]["east"].mask_key)),
        "repeated-key",
        "share a key",
    ),
    Lie("too few adverts", "share", without("east", "west"), "too-few", "2 members are left"),
    Lie("an advert of impossible form", "share", put("seal_key", "east", b"\x09"), "malformed", "1 bytes", ends=False),
    Lie(
        "adverts of no session",
        "share",
        lambda o, s: setattr(o, "session", bytes(16)),
        "unknown-session",
        "nothing",
        ends=False,
    ),
)
MASK = (
    Lie("a box altered", "mask", forge_box(digest_too=False), "altered-box", "box from .*/east"),
    Lie("a box and its digest altered", "mask", forge_box(digest_too=True), "bad-signature", "shares"),
    Lie("another reader's box", "mask", box_of_another_reader(relabelled=True), "altered-box", "not the one that was signed"),
    Lie("no box for me", "mask", box_of_another_reader(relabelled=False), "altered-box", "is missing"),
    Lie(
        "a colluder's spoiled box",
        "mask",
        instead("west", lambda s: s.relayed(s.signed_set(north=bytes(90)), "north")),
        "bad-box",
        "box",
        culprit="west",
    ),
    Lie("a share set twice", "mask", twice("east"), "duplicate-party", "twice in the share sets"),
    Lie("a share set in another's name", "mask", put("party", "west", lambda s: s.uri("south")), "duplicate-party", "twice"),
    Lie("two peers' signatures swapped", "mask", swapped("signature", "east", "south"), "bad-signature", "shares"),
    Lie(
        "a share set of an earlier session",
        "mask",
        instead("east", lambda s: s.relayed(past("share", "east")(s), "north")),
        "bad-signature",
        "in this session",
    ),
    Lie("my own share set altered", "mask", put("signature", "north", b"\x09" * 70), "bad-signature", "shares"),
    Lie(
        "a share set of a stranger",
        "mask",
        put("party", "east", GHOST),
        "unknown-party",
        "without having",
    ),
    Lie("too few share sets", "mask", without("east", "west"), "too-few", "2 members are left"),
    Lie(
        "a digest of impossible form",
        "mask",
        lambda o, s: setattr(o.sets[0].digests[0], "digest", b"x"),
        "malformed",
        "1 bytes",
        ends=False,
    ),
)
CONFIRM = (
    Lie("a list without me", "confirm", survivors("east", "south", "west"), "not-on-list", "leaves out .*/north"),
    Lie("an empty list", "confirm", survivors(), "not-on-list", "leaves out .*/north"),
    Lie(
        "an invented survivor",
        "confirm",
        survivors("north", "east", "south", "ghost"),
        "unknown-party",
        "ghost is not a member",
    ),
    Lie("a survivor twice", "confirm", survivors("north", "east", "south", "east"), "malformed", "twice", ends=False),
    Lie("a list below the threshold", "confirm", survivors("north", "west"), "too-few", "2 members are left"),
    Lie("a list below my own minimum", "confirm", survivors("south", "east", "west"), "too-few", "need 4", victim=STRICT),
)
REVEAL = (
    Lie("no signatures", "reveal", signatures(), "too-few", "1 members signed the survivor list, 3 are needed"),
    Lie("too few signatures", "reveal", signatures(("north", "north"), ("west", "west")), "too-few", "3 are needed"),
    Lie("one signature three times", "reveal", signatures(*[("west", "west")] * 3), "duplicate-party", "twice in the confirm"),
    Lie(
        "one signature under three names",
        "reveal",
        signatures(("east", "west"), ("south", "west"), ("west", "west")),
        "bad-signature",
        "confirm",
    ),
    Lie("a signature of a stranger", "reveal", put("party", "east", GHOST), "unknown-party", "not on"),
    Lie(
        "a colluder's signature over another list",
        "reveal",
        instead("west", lambda s: s.signed_list("north", "south", "west")),
        "bad-signature",
        "confirm",
    ),
    Lie(
        "a signature of an earlier session",
        "reveal",
        instead("east", past("confirm", "east")),
        "bad-signature",
        "in this session",
    ),
    Lie("a signature of impossible form", "reveal", put("signature", "east", bytes(100)), "malformed", "length", ends=False),
)


def _advert_fields(session: Session, name: str) -> dict[str, Any]:
    advert = session.answers["open"][name]
    return {field.name: getattr(advert, field.name) for field in advert.DESCRIPTOR.fields}


LIES = (*OPEN, *SHARE, *MASK, *CONFIRM, *REVEAL)
