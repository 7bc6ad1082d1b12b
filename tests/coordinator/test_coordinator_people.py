"""What the coordinator's people ask for: rounds held back, let on, ended; recorded first, and refused in words where late."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from coordinator_federation import small_plan, write_study
from coordinator_world import World, make_plan, uri
from test_coordinator_cli import start, wait_for
from typer.testing import CliRunner

from certs.audit import Action
from certs.audit_file import AuditLog
from coordinator import events as ev
from coordinator.cli import app
from coordinator.people import NotPossible, decided, pause_in_force
from coordinator.state import Phase, Standing, member_view, waiting_for
from coordinator.store import open_store
from proto.control import Abort, Pause, Proved, Resume
from proto.control_socket import ask

WHO = {"by": "Dr B. Okoro", "reason": "maintenance"}
PAUSE, RESUME = Pause(**WHO), Resume(**WHO)
HELD = ev.RoundsHeld("paused by Dr B. Okoro: maintenance")


def until(world: World, phase: Phase) -> None:
    """Everybody acts in turn until the engine is there."""
    for _ in range(50):
        for node in range(len(world.hospitals)):
            if world.state.phase is phase:
                return
            world.act(node)
    raise AssertionError(f"{phase} was never reached, it is {world.state.phase}")


def test_a_pause_lets_the_round_end_and_the_next_one_wait() -> None:
    world = World(make_plan(4, rounds=3))
    until(world, Phase.MASK)
    world.feed(HELD)
    until(world, Phase.HELD)
    assert world.saved[1].state == "opened"
    assert 2 not in world.saved
    assert waiting_for(world.state, world.now_s) == "Round 2 · paused by Dr B. Okoro: maintenance"
    world.tick(10_000)
    assert world.state.phase is Phase.HELD
    world.feed(ev.RoundsLetOn("Dr B. Okoro"))
    assert world.state.phase is Phase.TRAIN
    assert world.settle()
    assert [world.saved[number].state for number in (1, 2, 3)] == ["opened"] * 3


def test_a_pause_that_is_lifted_in_time_changes_nothing() -> None:
    world = World(make_plan(4, rounds=2))
    until(world, Phase.MASK)
    world.feed(HELD)
    world.feed(ev.RoundsLetOn("Dr B. Okoro"))
    assert world.settle()
    assert [world.saved[number].state for number in (1, 2)] == ["opened"] * 2


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.ADVERTISE, Phase.SHARE, Phase.MASK, Phase.CONFIRM, Phase.REVEAL])
def test_a_round_can_be_ended_in_every_phase_before_its_sum(phase: Phase) -> None:
    world = World(make_plan(4, rounds=2))
    until(world, phase)
    world.feed(ev.RoundEnded(1, "Dr B. Okoro", "wrong scanner"))
    assert world.saved[1].state == "aborted"
    assert world.saved[1].reason == "the coordinator's people ended the round"
    assert any("by Dr B. Okoro (wrong scanner)" in record.text for record in world.records)
    assert world.state.round == 2
    assert world.settle()
    assert world.saved[2].state == "opened"
    assert all("Okoro" not in result.reason for hospital in world.hospitals.values() for result in hospital.results)


def test_a_round_that_is_not_under_way_is_not_ended() -> None:
    world = World(make_plan(4, rounds=2))
    until(world, Phase.MASK)
    before = world.state
    world.feed(ev.RoundEnded(2, "A", "b"))
    assert world.state == before


def test_a_restart_of_a_held_run_waits_as_well() -> None:
    world = World(make_plan(4, rounds=2))
    until(world, Phase.MASK)
    world.feed(HELD)
    until(world, Phase.HELD)
    assert world.state.round == 2
    world.crash()  # the world forgets the pause: the process reads it from its audit log, see below
    assert world.state.round == 2


def test_requests_that_do_not_fit_are_refused_in_words() -> None:
    world = World(make_plan(4, rounds=1))
    until(world, Phase.TRAIN)
    with pytest.raises(NotPossible, match="nothing to resume"):
        decided(world.state, RESUME)
    with pytest.raises(NotPossible, match="round 7 is not under way, round 1 is next"):
        decided(world.state, Abort(round=7, **WHO))
    assert "no budget was spent" in decided(world.state, Abort(round=1, **WHO))[2]
    assert "round 1 goes on to its end" in decided(world.state, PAUSE)[2]
    until(world, Phase.MASK)
    assert "their budget is spent" in decided(world.state, Abort(round=1, **WHO))[2]
    world.feed(HELD)
    with pytest.raises(NotPossible, match=r"held back already .paused by Dr B\. Okoro"):
        decided(world.state, PAUSE)
    world.feed(ev.RoundsLetOn("A"))
    assert world.settle()
    for request in (PAUSE, RESUME, Abort(round=1, **WHO)):
        with pytest.raises(NotPossible, match="the run is over"):
            decided(world.state, request)


def test_who_signed_in_is_recorded_and_has_to_be_an_operator() -> None:
    world = World(make_plan(4, rounds=1))
    until(world, Phase.TRAIN)
    okoro = Proved(issuer="https://login.example", subject="okoro-3", role="operator")
    _, action, _ = decided(world.state, Pause(proved=okoro, **WHO))
    assert (action.fields["subject"], action.fields["signed in at"]) == ("okoro-3", "https://login.example")
    assert action.fields["user"].isdigit()
    assert "subject" not in decided(world.state, PAUSE)[1].fields
    with pytest.raises(NotPossible, match="only an operator"):
        decided(world.state, Pause(proved=okoro.model_copy(update={"role": "officer"}), **WHO))


def test_the_pause_in_force_is_read_from_the_log(tmp_path: Path) -> None:
    log, at = AuditLog.within(tmp_path), datetime(2026, 11, 21, tzinfo=UTC)
    assert pause_in_force(log.read()) == ""
    log.append(Action("A", "pause-rounds", "why"), at)
    log.append(Action("B", "abort-round", "other"), at)
    assert pause_in_force(log.read()) == "paused by A: why"
    log.append(Action("B", "resume-rounds", "done"), at)
    assert pause_in_force(log.read()) == ""


def test_when_the_run_is_over_nobody_is_said_to_have_an_update() -> None:
    world = World(make_plan(4, rounds=1))
    assert world.settle()
    assert {member.standing for member in world.state.members.values()} == {Standing.READY}
    assert {member_view(world.state, uri(node))[0] for node in range(4)} == {"joined"}


@pytest.mark.sockets
def test_a_running_coordinator_is_paused_stays_so_over_a_restart_and_goes_on(tmp_path, identities) -> None:
    config = write_study(tmp_path, identities, small_plan(rounds=3))
    arguments = ["--config", str(tmp_path / "coordinator.toml"), "--by", "Dr B. Okoro"]

    def call(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*words, *arguments])
        return result.exit_code, result.stdout + result.stderr

    assert call("pause", "--reason", "maintenance") == (
        2,
        "secagg-coordinator: the coordinator does not run: start it, and ask again; nothing was changed\n",
    )
    process = start(tmp_path)
    wait_for(config.address_file, process)
    try:
        assert (config.state / "control.sock").stat().st_mode & 0o777 == 0o600
        assert call("pause", "--reason", "maintenance") == (
            0,
            "Paused by Dr B. Okoro: no further round is opened; round 1 goes on to its end.\n",
        )
        code, said = call("abort-round", "--round", "1", "--reason", "wrong scanner")
        assert (code, "no budget was spent" in said) == (0, True)
    finally:
        process.terminate()
        process.communicate(timeout=120)
    assert not (config.state / "control.sock").exists()
    process = start(tmp_path)
    wait_for(config.address_file, process)
    try:
        with open_store(config.database) as store:
            assert store.waiting() == "Round 2 · paused by Dr B. Okoro: maintenance"
            assert [row.state for row in store.rounds()] == ["aborted"]
        assert ask(config.state, RESUME, "the coordinator").sentence == "Resumed by Dr B. Okoro: rounds are opened again."
        assert not ask(config.state, RESUME, "the coordinator").done
    finally:
        process.terminate()
        process.communicate(timeout=120)
    kinds = [record.action.kind for record in AuditLog.within(config.state).read()]
    assert kinds == ["pause-rounds", "abort-round", "resume-rounds"]


@pytest.mark.sockets
def test_a_damaged_audit_log_is_said_at_the_start(tmp_path, identities) -> None:
    config = write_study(tmp_path, identities, small_plan())
    config.state.mkdir(exist_ok=True)
    log = AuditLog.within(config.state)
    log.append(Action("A", "pause-rounds", "why"), datetime(2026, 11, 21, tzinfo=UTC))
    log.path.write_bytes(log.path.read_bytes().replace(b"pause", b"resum"))
    process = start(tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "line 1 of the audit log" in said
    assert "Traceback" not in said
