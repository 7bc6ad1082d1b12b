"""Keys that change while a node runs: renewal in time, taken up between sessions; peers' new keys on their old keys' word."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from node_world import (
    BASE,
    LAYOUT,
    ME,
    NAMES,
    NOW_S,
    Counter,
    FakeLink,
    Folders,
    Rehearsal,
    Trainer,
    approved_ledger,
    make_folders,
    make_plan,
    make_workshop,
    train_order,
    until,
    uri,
)

from certs.audit_file import AuditLog
from certs.authority import Leaf, load_authority, sign_leaf
from certs.enrol import read_request
from certs.identity import load_identity
from certs.peers import load_peers, write_peers
from certs.succession import load_successions, sign_succession
from hospital_node.keyring import Keyring
from hospital_node.link import LinkRefused, OrderStale
from hospital_node.release import ReleaseDesk
from hospital_node.runner import run_with
from hospital_node.session import Member, SessionRefused
from proto import federation_pb2 as pb
from proto.layout import model_digest
from secagg import Policy
from secagg.identity import public_der

LIFE = timedelta(days=90)


class SigningLink(FakeLink):
    """A coordinator that renews."""

    def __init__(self, folders: Folders, refuse: Exception | None = None) -> None:
        super().__init__(make_plan())
        self.folders = folders
        self.refuse = refuse
        self.asked: list[pb.RenewRequest] = []

    def renew(self, request: pb.RenewRequest) -> pb.RenewReply:
        self.asked.append(request)
        if self.refuse is not None:
            raise self.refuse
        leaf = read_request(request.request, "it")
        authority = load_authority(self.folders.root / "ca")
        return pb.RenewReply(certificate=sign_leaf(authority, Leaf(leaf.uri, leaf.public_key), datetime.now(UTC)))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


def keyring(folders: Folders, at: datetime | None = None) -> Keyring:
    folders.state.create()
    return Keyring(folders.root / "h0", folders.root / "peers.toml", folders.state.successions, at or datetime.now(UTC))


def issued(folders: Folders) -> datetime:
    return folders.identities[ME].not_after - LIFE


# ---- its own key ----


@pytest.mark.parametrize(("day", "asks"), [(0, False), (59, False), (60, True), (89, True)])
def test_a_new_key_is_asked_for_from_day_60(folders: Folders, day: int, asks: bool) -> None:
    link, own = SigningLink(folders), keyring(folders)
    own.renew(link, issued(folders) + timedelta(days=day))
    assert bool(link.asked) is asks
    assert own.changed() is asks


def test_the_new_key_is_taken_up_and_the_old_one_signs_the_session_that_names_it(folders: Folders) -> None:
    own = keyring(folders)
    old = own.identity
    own.renew(SigningLink(folders), issued(folders) + timedelta(days=61))
    assert own.identity.fingerprint == old.fingerprint, "not before it is adopted"
    assert own.adopt()
    assert own.identity.fingerprint != old.fingerprint
    assert not own.changed()
    assert load_identity(folders.root / "h0").fingerprint == own.identity.fingerprint
    member = Member(ME, old.key, Policy({}, 3, 1), Counter())
    for identity in (old, own.identity):
        order = pb.Open(members=[pb.Member(uri=ME, public_key=identity.public_key_der)])
        assert public_der(own.member_for(order, member).key) == identity.public_key_der


@pytest.mark.parametrize("refusal", [LinkRefused("this coordinator does not sign"), OrderStale("not yet")])
def test_a_refused_renewal_is_tried_again_after_hours_and_ends_nothing(folders: Folders, refusal: Exception) -> None:
    link, own = SigningLink(folders, refusal), keyring(folders)
    day_70 = issued(folders) + timedelta(days=70)
    for later in (timedelta(0), timedelta(hours=1), timedelta(hours=7)):
        own.renew(link, day_70 + later)
    assert len(link.asked) == 2
    assert link.asked[0].request == link.asked[1].request, "one new key, however often it is asked"
    assert not own.changed()


def test_a_leaf_of_the_hospitals_own_ca_is_left_to_its_people(folders: Folders) -> None:
    (folders.root / "h0" / "issuer.crt").write_bytes((folders.root / "ca" / "ca.crt").read_bytes())
    link = SigningLink(folders)
    keyring(folders).renew(link, issued(folders) + timedelta(days=80))
    assert link.asked == []


def test_a_certificate_that_people_install_is_taken_up_and_a_damaged_one_is_not(folders: Folders) -> None:
    own, path = keyring(folders), folders.root / "h0" / "node.crt"
    authority = load_authority(folders.root / "ca")
    path.write_bytes(b"half")
    assert own.changed()
    assert not own.adopt()
    assert not own.changed(), "it is said once"
    path.write_bytes(sign_leaf(authority, Leaf(ME, own.identity.key.public_key(), days=7), datetime.now(UTC)))
    assert own.adopt()
    assert own.identity.not_after - datetime.now(UTC) < timedelta(days=8)


# ---- peers ----


PEER = uri("h1")


def opened(folders: Folders, key: ec.EllipticCurvePrivateKey, *chain: bytes) -> pb.Open:
    return pb.Open(members=[pb.Member(uri=PEER, public_key=public_der(key), successions=chain)])


@pytest.fixture
def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def statement(folders: Folders, signer: str, new_key: ec.EllipticCurvePrivateKey, whose: str = PEER) -> bytes:
    return sign_succession(whose, folders.identities[signer].key, new_key.public_key(), datetime.now(UTC), LIFE).encoded()


def test_a_peers_new_key_is_pinned_on_the_word_of_its_old_one(folders: Folders, new_key: ec.EllipticCurvePrivateKey) -> None:
    own = keyring(folders)
    before = dict(own.pinned)
    own.learn(opened(folders, new_key, statement(folders, PEER, new_key)), datetime.now(UTC))
    assert own.pinned[PEER] != before[PEER]
    assert {party: key for party, key in own.pinned.items() if party != PEER} == {p: k for p, k in before.items() if p != PEER}
    assert keyring(folders).pinned == own.pinned, "it is kept"
    assert load_peers(folders.root / "peers.toml").pinned == before, "what people wrote stays"
    assert [one.action.kind for one in AuditLog.within(folders.state.path).read()] == ["peer-key-renewed"]


def test_no_other_word_moves_a_pin(folders: Folders, new_key: ec.EllipticCurvePrivateKey) -> None:
    own = keyring(folders)
    before = dict(own.pinned)
    for chain in (
        (),
        (statement(folders, uri("h2"), new_key),),  # another hospital's key
        (statement(folders, uri("h2"), new_key, uri("h2")),),
        (b"anything",),
    ):
        own.learn(opened(folders, new_key, *chain), datetime.now(UTC))
        assert own.pinned == before
    other = ec.generate_private_key(ec.SECP256R1())
    own.learn(opened(folders, other, statement(folders, PEER, new_key)), datetime.now(UTC))  # it names another key
    assert own.pinned == before
    assert load_successions(folders.state.successions) == ()


def test_a_session_with_a_key_that_nobody_vouches_for_is_refused(folders: Folders, new_key: ec.EllipticCurvePrivateKey) -> None:
    """The CA's signature plays no part: a coordinator that mints impostors gets nowhere."""
    own, plan = keyring(folders), make_plan()
    rehearsal = Rehearsal(plan, folders)
    seat = next(seat for seat in rehearsal.order.members if seat.uri == PEER)
    seat.public_key = public_der(new_key)
    seat.successions.append(statement(folders, uri("h3"), new_key))
    own.learn(rehearsal.order, datetime.now(UTC))
    member = own.member_for(rehearsal.order, Member(ME, own.identity.key, Policy({}, 3, 1), Counter()))

    ledger = approved_ledger(folders, plan)
    desk = ReleaseDesk(member, plan, LAYOUT, folders.state, lambda: ledger, lambda: NOW_S)
    desk.hold(BASE * 0, model_digest(BASE), ledger.authorize(plan, 1))
    with pytest.raises(SessionRefused, match="is not the one that people confirmed here"):
        desk.open(rehearsal.order)


def test_a_list_that_people_change_is_read_again_and_a_damaged_one_is_not(folders: Folders) -> None:
    own, path = keyring(folders), folders.root / "peers.toml"
    assert not own.read_peers_again()
    path.write_text("half a li")
    assert not own.read_peers_again()
    assert PEER in own.pinned
    write_peers(path, load_peers_of(folders).without(PEER))
    assert own.read_peers_again()
    assert PEER not in own.pinned


def load_peers_of(folders: Folders):
    fresh = make_folders(folders.root / "again")
    return load_peers(fresh.root / "peers.toml")


# ---- while a node runs ----


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_running_node_changes_its_key_between_two_rounds_and_comes_back(folders: Folders, stop: threading.Event) -> None:
    plan = make_plan()
    approved_ledger(folders, plan)
    link, old = SigningLink(folders), folders.identities[ME]
    clock = lambda: (issued(folders) + timedelta(days=61)).timestamp()  # noqa: E731
    node = threading.Thread(
        target=run_with,
        args=(folders.config, make_workshop(Trainer())),
        kwargs={"dial": lambda *_: link, "clock": clock, "rand": Counter(), "stop": stop},
    )
    node.start()
    try:
        until(lambda: link.joins == 2)
        assert load_identity(folders.root / "h0").fingerprint != old.fingerprint
        link.put(train=train_order())
        until(lambda: any(getattr(one, "state", None) == pb.NodeReport.READY for one in link.sent))
        facts = folders.state.node.read_text()
        assert load_identity(folders.root / "h0").not_after.isoformat() in facts
    finally:
        stop.set()
        link.wake()
        node.join(120)
    assert len(link.asked) == 1
    assert len(NAMES) == 4
