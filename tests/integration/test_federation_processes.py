"""Whole federations of real processes: what must hold when a node is killed, a cap is reached, a person makes a mistake."""

import signal

import numpy as np
import pytest
from counting_proxy import CountingProxy
from small_federation import HOSPITALS, SmallFederation

from hospital_node.ledger import Charge
from proto.plan import short_name
from proto.wire import mean_error
from study.processes import Family

pytestmark = [pytest.mark.slow, pytest.mark.sockets]


@pytest.fixture
def family():
    with Family(1) as processes:
        yield processes


def _names(uris):
    return {short_name(uri) for uri in uris}


def _mean(federation, names, number):
    updates = np.stack([federation.update(name, number) for name in sorted(names)]).astype(np.float64)
    clip = federation.plan.masking.update_clip
    return np.clip(updates, -clip, clip).mean(axis=0)


def test_a_node_killed_between_masking_and_reveal_does_not_cost_the_round(tmp_path, family):
    """The killed hospital's upload was whole and accepted, so it is in the sum; three shares of four open it."""
    federation = SmallFederation(tmp_path, family, rounds=2, drill_pause_s=3.0)
    federation.approve()
    federation.start_all()
    with federation.store() as reader:

        def uploads_are_in():
            return any((event.kind, event.phase) == ("phase", "mask") for event in reader.events())

        federation.wait(uploads_are_in, 300, "all four uploads are accepted")
        victim = federation.nodes["east"]
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        federation.family.children.remove(victim)
        federation.wait(lambda: reader.rounds()[0].state == "opened", 300, "round 1 opens without the killed node")
        first = reader.rounds()[0]
        assert _names(first.survivors) == set(HOSPITALS)
        assert {short_name(uri): phase for uri, phase in first.dropped.items()} == {"east": "confirm"}
        opened = federation.model(1) - federation.model(0)
        assert np.max(np.abs(opened - _mean(federation, HOSPITALS, 1))) <= federation.mean_error_bound()
        others = set(HOSPITALS) - {"east"}
        assert np.max(np.abs(opened - _mean(federation, others, 1))) > 10 * federation.mean_error_bound()

        federation.wait(lambda: len(reader.rounds()) > 1 and reader.rounds()[1].state == "opened", 300, "round 2 opens")
        second = reader.rounds()[1]
        assert _names(second.survivors) == others
        opened = federation.model(2) - federation.model(1)
        assert np.max(np.abs(opened - _mean(federation, others, 2))) <= federation.mean_error_bound()
    charged = [event.entry for event in federation.ledger("east").events() if isinstance(event.entry, Charge)]
    assert [charge.round for charge in charged] == [1], "a crash after the commit counts as spent, once"


def test_rotated_updates_of_few_bits_open_to_the_mean_within_what_the_plan_says(tmp_path, family):
    coding = {"lanes": 10, "rotate": True, "update_clip": 0.06, "clip_decay": 0.9}
    federation = SmallFederation(tmp_path, family, rounds=2, masking=coding)
    federation.approve()
    federation.start_all()
    with federation.store() as reader:
        federation.wait(lambda: len(reader.rounds()) > 1 and reader.rounds()[1].state == "opened", 300, "round 2 opens")
    for number in (1, 2):
        updates = np.stack([federation.update(name, number) for name in HOSPITALS]).astype(np.float64)
        opened = federation.model(number) - federation.model(number - 1)
        error = np.sqrt(np.mean((opened - updates.mean(axis=0)) ** 2))
        assert 0 < error < 0.9 ** (number - 1) * 0.06 * mean_error(federation.plan)
        assert np.sqrt(np.mean(updates.mean(axis=0) ** 2)) > 3 * error


def test_the_cap_stops_one_hospital_by_itself_and_the_others_go_on(tmp_path, family):
    federation = SmallFederation(tmp_path, family, rounds=3)
    fits_two = (federation.epsilon_after(2) + federation.epsilon_after(3)) / 2
    federation.approve({"west": fits_two})
    federation.start_all()
    with federation.store() as reader:
        federation.wait(lambda: bool(reader.finished()), 300, "all three rounds are done")
        rounds = reader.rounds()
        assert [row.state for row in rounds] == ["opened"] * 3
        assert [len(row.survivors) for row in rounds] == [4, 4, 3]
        assert "west" not in _names(rounds[2].survivors)
        west = next(row for row in reader.members() if short_name(row.uri) == "west")
        assert (west.state, west.code) == ("declined", "budget-exhausted")
    view = federation.ledger("west").budget(federation.plan)
    assert view.state == "spent"
    assert view.spent <= fits_two < federation.epsilon_after(3)
    assert view.rounds_done == 2
    assert federation.ledger("north").budget(federation.plan).rounds_done == 3


def test_a_rogue_certificate_joins_nothing_and_bytes_are_counted_as_they_cross(tmp_path, family):
    """`east` speaks through a relay that counts; `north` presents a key that nobody pinned."""
    federation = SmallFederation(tmp_path, family, rounds=1)
    federation.approve()
    _replace_key_of(federation, "north")
    address = federation.start_coordinator()
    host, port = address.rsplit(":", 1)
    relay = CountingProxy((host, int(port)))
    try:
        rogue = federation.start_node("north", address, recording=False)
        for name in HOSPITALS[1:]:
            federation.start_node(name, f"127.0.0.1:{relay.port}" if name == "east" else address)
        federation.wait(lambda: not rogue.running, 300, "the rogue node ends by itself")
        assert rogue.process.returncode == 2
        assert "key" in rogue.last_lines(2)
        assert "Traceback" not in rogue.log.read_text()
        family.children.remove(rogue)
        with federation.store() as reader:
            federation.wait(lambda: bool(reader.finished()), 300, "the round is done without the rogue")
            assert _names(reader.rounds()[0].survivors) == set(HOSPITALS) - {"north"}
            federation.wait(
                lambda: not family.is_running("coordinator"), 300, "the coordinator has written everything and ends"
            )
            counted = {"up": 0, "down": 0}
            for row in reader.traffic():
                if short_name(row.party) == "east":
                    counted[row.direction] += row.bytes
    finally:
        relay.close()
    # Beyond messages and framing: the handshake with its certificates (4 to 6 kB), and about 0.2 kB of headers for each call.
    assert 0 <= relay.up - counted["up"] <= 12_000
    assert 0 <= relay.down - counted["down"] <= 12_000


def _replace_key_of(federation, name):
    """A certificate of the right name from the right authority over another key: what a CA could mint."""
    import shutil

    from certs import authority

    role = next(role for role in federation.world.cast.hospitals if role.name == name)
    shutil.rmtree(federation.world.home(role) / "identity")
    authority.issue(federation.folder / "ca", federation.world.uri(role), federation.world.home(role) / "identity")
