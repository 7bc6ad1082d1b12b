"""Peer lists: membership by key hash alone, one party per key, and a file that people can read and edit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from enrolled_study import COORDINATOR, EVALUATOR, LAKESIDE, ST_ANNA, Study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.identity import load_identity
from certs.party import CertificateError, Party
from certs.peers import Peer, PeerList, load_peers, peer_of, write_peers

AT = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def peer(uri: str, byte: int, by: str = "Dr. Adler") -> Peer:
    return Peer(uri, bytes([byte]) * 32, by, AT)


def party_in(folder: Path) -> Party:
    identity = load_identity(folder)
    return Party(identity.uri, identity.fingerprint, identity.public_key_der)


def test_a_confirmed_key_passes_and_the_same_name_with_another_key_does_not(enrolled: Study) -> None:
    anna, lakeside = party_in(enrolled.st_anna), party_in(enrolled.lakeside)
    peers = PeerList((peer_of(anna, "Dr. Adler", AT),))
    peers.check(anna)
    with pytest.raises(CertificateError, match="presents another key"):
        peers.check(replace(lakeside, uri=ST_ANNA))
    with pytest.raises(CertificateError, match="is not on the list"):
        peers.check(lakeside)
    with pytest.raises(CertificateError, match="is not on the list"):
        peers.check(replace(anna, uri=LAKESIDE))


def test_pins_cannot_be_changed_through_the_view() -> None:
    pinned = PeerList((peer(ST_ANNA, 1),)).pinned
    assert dict(pinned) == {ST_ANNA: bytes([1]) * 32}
    with pytest.raises(TypeError):
        pinned[ST_ANNA] = bytes(32)


def test_a_coordinator_is_nobodys_peer(enrolled: Study) -> None:
    with pytest.raises(CertificateError, match=f"{COORDINATOR} is a coordinator"):
        peer_of(party_in(enrolled.coordinator), "Dr. Adler", AT)


def test_one_key_for_two_parties_and_two_keys_for_one_party_are_refused() -> None:
    with pytest.raises(CertificateError, match=r"the party .* is listed twice"):
        PeerList((peer(ST_ANNA, 1), peer(ST_ANNA, 2)))
    with pytest.raises(CertificateError, match=r"the key 0101.* is listed twice"):
        PeerList((peer(ST_ANNA, 1), peer(LAKESIDE, 1)))
    with pytest.raises(CertificateError, match="one study, this one names lidc, other"):
        PeerList((peer(ST_ANNA, 1), peer("secagg://other/hospital/x", 2)))


def test_adding_never_replaces_a_key() -> None:
    peers = PeerList((peer(ST_ANNA, 1),))
    grown = peers.with_peers([peer(EVALUATOR, 2), peer(ST_ANNA, 1, by="somebody else")])
    assert [one.uri for one in grown.peers] == [ST_ANNA, EVALUATOR]
    assert grown.peers[0].confirmed_by == "Dr. Adler"
    with pytest.raises(CertificateError, match="already listed with another key"):
        peers.with_peers([peer(ST_ANNA, 3)])


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.binary(min_size=32, max_size=32), names), min_size=1, max_size=5, unique_by=lambda entry: entry[0])
)
def test_a_written_list_reads_back(tmp_path: Path, entries: list[tuple[bytes, str]]) -> None:
    written = PeerList(tuple(Peer(f"secagg://lidc/hospital/h{place}", key, by, AT) for place, (key, by) in enumerate(entries)))
    write_peers(tmp_path / "peers.toml", written)
    assert load_peers(tmp_path / "peers.toml") == written


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("confirmed_at = 2026-11-21T10:00:00Z", "confirmed_at = 2026-11-21T10:00:00"), "no time zone"),
        (("confirmed_at = 2026-11-21T10:00:00Z", 'confirmed_at = "yesterday"'), "is a date and time"),
        (("key_sha256 = ", "key_sha512 = "), "exactly the keys"),
        (("0101", "01"), "has 31 bytes"),
        (("0101", "zz01"), "not hexadecimal"),
        (("secagg://lidc/hospital", "secagg://lidc/patient"), "is not a party"),
        (('"Dr. Adler"', '""'), "must name a person"),
        (('"Dr. Adler"', '"a\\nb"'), "must name a person"),
        (('"Dr. Adler"', "7"), "are strings"),
        (("[[peer]]", "[[peers]]"), "unknown key 'peers'"),
        (("[[peer]]", "[[peer"), "not valid TOML"),
    ],
)
def test_a_wrong_list_is_named_with_its_file(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    path = tmp_path / "peers.toml"
    write_peers(path, PeerList((peer(ST_ANNA, 1),)))
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    with pytest.raises(CertificateError, match=reason) as caught:
        load_peers(path)
    assert str(path) in str(caught.value)


def test_missing_and_empty_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"cannot read the peer list .*No such file"):
        load_peers(tmp_path / "peers.toml")
    (tmp_path / "peers.toml").write_text("")
    with pytest.raises(CertificateError, match="lists no peer"):
        load_peers(tmp_path / "peers.toml")
