"""A hospital whose key is taken from the list, in every phase of a round; and renewals, over real connections."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from coordinator_federation import (
    connected,
    coordinating,
    hospitals,
    live_all,
    make_identities,
    refusal_of,
    small_plan,
    until,
    write_study,
)
from coordinator_world import World, make_plan, uri

from certs import renewal
from certs.audit_file import AuditLog
from certs.authority import issue
from certs.identity import load_identity
from certs.peers import load_peers, write_peers
from certs.succession import load_successions
from coordinator import events as ev
from coordinator.expiry import certificates_of, read_ends
from coordinator.state import Phase, Standing
from coordinator.store import open_store
from proto import federation_pb2 as pb
from proto.plan import PROTOCOL_VERSION

REFUSED = grpc.StatusCode.PERMISSION_DENIED


# ---- the engine ----


@pytest.mark.parametrize("phase", ["advertise", "share"])
def test_before_the_mask_a_revoked_hospital_is_excluded_and_the_others_lose_nothing(phase: str) -> None:
    world = World(make_plan(4, rounds=1))
    world.until(Phase(phase))
    world.revoke(1)
    assert world.settle()
    assert world.saved[1].state == "opened"
    assert list(world.opened.values()) == [(uri(0), uri(2), uri(3))]
    assert world.kinds().count("session-aborted") == 1
    assert "revoked" in world.kinds()


def test_after_its_upload_a_revoked_hospital_counts_as_dropped_until_the_list_is_made() -> None:
    world = World(make_plan(4, rounds=1))
    world.until(Phase.MASK)
    world.act(1)
    assert uri(1) in world.state.session.answered
    world.revoke(1)
    world.crash()  # the coordinator remembers it
    assert world.settle()
    assert list(world.opened.values()) == [(uri(0), uri(2), uri(3))]
    assert world.saved[1].dropped == ((uri(1), "revoked"),)


@pytest.mark.parametrize("phase", ["confirm", "reveal"])
def test_a_sum_that_holds_a_revoked_update_is_not_opened(phase: str) -> None:
    world = World(make_plan(4, rounds=2))
    world.until(Phase(phase))
    world.revoke(1)
    assert world.saved[1].state == "aborted"
    assert "taken from the list" in world.saved[1].reason
    assert world.settle()
    assert world.saved[2].state == "opened", "the next round goes on without it"
    assert list(world.opened.values()) == [(uri(0), uri(2), uri(3))]


def test_a_hospital_that_is_put_back_takes_part_again() -> None:
    world = World(make_plan(4, rounds=2))
    world.until(Phase.TRAIN)
    world.act(1)
    world.revoke(1)
    assert world.state.members[uri(1)].standing is Standing.REVOKED
    world.until(Phase.MASK)
    world.put_back(1)
    assert world.settle()
    assert [len(survivors) for survivors in world.opened.values()] == [3, 4]


def test_too_few_after_a_revocation_waits_for_people_and_ends_nothing() -> None:
    world = World(make_plan(3, rounds=1))
    world.until(Phase.TRAIN)
    for number in range(3):
        world.act(number)
    world.revoke(2)
    assert not world.settle(turns=100)
    assert world.opened == {}
    world.put_back(2)
    assert world.settle()
    assert world.saved[1].state == "opened"


def test_a_stranger_is_not_revoked() -> None:
    world = World(make_plan(4))
    before = world.state
    world.feed(ev.Revoked("secagg://lidc/hospital/nobody"))
    assert world.state == before


# ---- over real connections ----

pytestmark = pytest.mark.sockets


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    return make_identities(tmp_path / "identities")


def short_lived(identities: Path, name: str, days: int = 20) -> Path:
    """A certificate in its last third, for the key of a new folder."""
    folder = identities / f"{name}-old"
    issue(identities / "ca", f"secagg://lidc/hospital/{name}", folder, days=days)
    for path in folder.iterdir():
        path.replace(identities / name / path.name)
    return identities / name


def asked(folder: Path) -> tuple[renewal.Asked, pb.RenewRequest]:
    made = renewal.ask(folder, load_identity(folder), datetime.now(UTC))
    return made, pb.RenewRequest(request=made.request_pem, succession=made.succession.encoded())


def join() -> pb.JoinRequest:
    return pb.JoinRequest(protocol_version=PROTOCOL_VERSION, software_version="test")


def test_a_renewed_key_is_admitted_and_the_old_one_until_then(tmp_path: Path, identities: Path) -> None:
    folder = short_lived(identities, "h0")
    config = write_study(tmp_path, identities, small_plan(4), authority=str(identities / "ca"))
    old = load_identity(folder)

    async def scenario() -> None:
        async with coordinating(config):
            async with connected(config, folder) as stub:
                await stub.Join(join())
                made, request = asked(folder)
                first = await stub.Renew(request)
                again = await stub.Renew(asked(folder)[1])  # the answer was lost: the same key is asked for again
                renewal.keep(folder, old, first.certificate, datetime.now(UTC))
                renewal.keep(folder, old, again.certificate, datetime.now(UTC))
                assert (await stub.Join(join())).identity == old.uri, "the old key until the new one comes"
            renewal.finish(folder)
            assert load_identity(folder).fingerprint == made.succession.new_sha256
            async with connected(config, folder) as stub:
                assert (await stub.Join(join())).identity == old.uri
        kept = load_successions(config.state / "successions.jsonl")
        assert [(one.old_sha256, one.new_sha256) for one in kept] == [(old.fingerprint, made.succession.new_sha256)]
        async with coordinating(config), connected(config, folder) as stub:  # and after a restart
            assert (await stub.Join(join())).identity == old.uri

    asyncio.run(scenario())


def test_the_replaced_key_is_refused_once_the_new_one_came(tmp_path: Path, identities: Path) -> None:
    folder = short_lived(identities, "h0")
    config = write_study(tmp_path, identities, small_plan(4), authority=str(identities / "ca"))
    copy = tmp_path / "stolen"
    copy.mkdir()
    for name in ("node.key", "node.crt", "ca.crt"):
        (copy / name).write_bytes((folder / name).read_bytes())
    os.chmod(copy / "node.key", 0o600)

    async def scenario() -> None:
        async with coordinating(config):
            async with connected(config, folder) as stub:
                await stub.Join(join())
                _, request = asked(folder)
                renewal.keep(folder, load_identity(folder), (await stub.Renew(request)).certificate, datetime.now(UTC))
            async with connected(config, copy) as thief:
                _, branch = asked(copy)
                code, text = await refusal_of(thief.Renew(branch))
                assert code is not grpc.StatusCode.OK
                assert "join again" in text or "another new key already" in text
            renewal.finish(folder)
            async with connected(config, folder) as stub:
                await stub.Join(join())
            async with connected(config, copy) as thief:
                code, text = await refusal_of(thief.Join(join()))
                assert (code, "another key" in text or "was replaced" in text) == (REFUSED, True)

    asyncio.run(scenario())


def of(request: pb.RenewRequest, statement: pb.RenewRequest) -> pb.RenewRequest:
    return pb.RenewRequest(request=request.request, succession=statement.succession)


CASES = {
    "not yet time": (80, lambda own, _: own, "renewed from day 60 on"),
    "another party's request": (20, lambda own, other: of(other, own), "another party"),
    "another party's statement": (20, lambda own, other: of(own, other), "another party"),
    "no statement": (20, lambda own, _: of(own, pb.RenewRequest()), "no readable statement"),
    "no request": (20, lambda own, _: of(pb.RenewRequest(), own), "is not a certificate request"),
    "too long": (20, lambda own, _: of(pb.RenewRequest(request=bytes(9000)), own), "longer than any request"),
}


@pytest.mark.parametrize("case", CASES)
def test_other_requests_are_refused_with_a_sentence(case: str, tmp_path: Path, identities: Path) -> None:
    days, bend, says = CASES[case]
    folder = short_lived(identities, "h0", days)
    config = write_study(tmp_path, identities, small_plan(4), authority=str(identities / "ca"))

    async def scenario() -> None:
        async with coordinating(config), connected(config, folder) as stub:
            await stub.Join(join())
            request = bend(asked(folder)[1], asked(identities / "h1")[1])
            _, text = await refusal_of(stub.Renew(request))
            assert says in text

    asyncio.run(scenario())
    assert not (config.state / "successions.jsonl").exists()


def test_a_coordinator_without_an_authority_says_whom_to_ask(tmp_path: Path, identities: Path) -> None:
    folder = short_lived(identities, "h0")
    config = write_study(tmp_path, identities, small_plan(4))

    async def scenario() -> None:
        async with coordinating(config), connected(config, folder) as stub:
            await stub.Join(join())
            code, text = await refusal_of(stub.Renew(asked(folder)[1]))
            assert (code, "does not sign" in text) == (REFUSED, True)

    asyncio.run(scenario())


def test_a_party_taken_from_the_list_is_out_at_its_next_call(tmp_path: Path, identities: Path) -> None:
    plan = small_plan(4)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)

    async def scenario() -> None:
        async with coordinating(config) as run, connected(config, identities / "h3") as stub:
            await stub.Join(join())
            write_peers(config.allow, load_peers(config.allow).without(uri(3)))
            await until(lambda: run.state.members[uri(3)].standing is Standing.REVOKED)
            for call in (stub.Poll(pb.PollRequest()), stub.Join(join())):
                code, text = await refusal_of(call)
                assert (code, "not on the list of confirmed keys" in text) == (REFUSED, True)
            seen = await stub.Identify(pb.IdentifyRequest(protocol_version=PROTOCOL_VERSION))
            assert (seen.identity, "not on the list" in seen.refusal) == (uri(3), True)
            await live_all(nodes[:3])

    asyncio.run(scenario())
    with open_store(config.database) as store:
        assert store.rounds()[0].survivors == (uri(0), uri(1), uri(2))
    [recorded] = AuditLog.within(config.state).read()
    assert (recorded.action.kind, recorded.action.fields) == ("keys-removed", {"parties": uri(3)})


def test_a_poll_that_is_open_ends_when_its_party_is_taken_from_the_list(tmp_path: Path, identities: Path, monkeypatch) -> None:
    monkeypatch.setattr("coordinator.service.LONG_POLL_S", 600.0)
    config = write_study(tmp_path, identities, small_plan(4, rounds=1))

    async def scenario() -> tuple[grpc.StatusCode, str]:
        async with coordinating(config), connected(config, identities / "h0") as stub:
            await stub.Join(join())
            order = await stub.Poll(pb.PollRequest())
            waiting = asyncio.ensure_future(refusal_of(stub.Poll(pb.PollRequest(done=order.id))))
            write_peers(config.allow, load_peers(config.allow).without(uri(0)))
            async with asyncio.timeout(60):
                return await waiting

    code, text = asyncio.run(scenario())
    assert (code, text) == (REFUSED, f"{uri(0)} was taken from the list of confirmed keys")


def test_a_list_that_cannot_be_read_changes_nothing(tmp_path: Path, identities: Path) -> None:
    plan = small_plan(4)
    config = write_study(tmp_path, identities, plan)
    nodes = hospitals(config, identities, plan)

    async def scenario() -> None:
        async with coordinating(config):
            config.allow.write_text("half a li")
            await asyncio.sleep(0.3)
            await live_all(nodes)

    asyncio.run(scenario())
    with open_store(config.database) as store:
        assert len(store.rounds()[0].survivors) == 4


def test_identify_tells_key_time_and_reason(tmp_path: Path, identities: Path) -> None:
    config = write_study(tmp_path, identities, small_plan(4))

    async def scenario() -> None:
        async with coordinating(config) as run:
            async with connected(config, identities / "h0") as stub:
                seen = await stub.Identify(pb.IdentifyRequest(protocol_version=PROTOCOL_VERSION))
                older_join = pb.JoinRequest(protocol_version=PROTOCOL_VERSION - 1, software_version="last year's")
                code, text = await refusal_of(stub.Join(older_join))
                assert code is grpc.StatusCode.UNIMPLEMENTED
                assert f"version {PROTOCOL_VERSION}, the caller {PROTOCOL_VERSION - 1}" in text
                older = await stub.Identify(pb.IdentifyRequest(protocol_version=PROTOCOL_VERSION - 1))
            assert (seen.identity, seen.refusal) == (uri(0), "")
            assert seen.key_sha256 == load_identity(identities / "h0").fingerprint
            assert abs(seen.time_s - datetime.now(UTC).timestamp()) < 60
            assert "install the same software version" in older.refusal
            assert run.state.members[uri(0)].standing is Standing.ABSENT, "it joins nothing"
            async with connected(config, identities / "stranger") as stub:
                assert "not on the list" in (await stub.Identify(pb.IdentifyRequest())).refusal

    asyncio.run(scenario())


def test_the_status_knows_when_certificates_end(tmp_path: Path, identities: Path) -> None:
    folder = short_lived(identities, "h0", 13)
    config = write_study(tmp_path, identities, small_plan(4))

    async def scenario() -> None:
        async with coordinating(config):
            for name in ("h1", "h0"):
                async with connected(config, identities / name) as stub:
                    await stub.Join(join())

    asyncio.run(scenario())
    soon, later = certificates_of(read_ends(config.state), datetime.now(UTC))
    assert (soon["name"], soon["days_left"], later["name"], later["warning"]) == ("h0", 12, "h1", "")
    assert "in 12 days" in str(soon["warning"])
    assert load_identity(folder).not_after - datetime.now(UTC) < timedelta(days=13)
