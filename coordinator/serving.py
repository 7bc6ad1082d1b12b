"""Plans side by side on one address: each has its own run, store, roster, models and open round, and fails alone.

A plan whose store's server went away is taken up anew from its store once that is back, as after a kill: nobody has to know
what the last transaction did. Meanwhile its parties are refused with the reason. Where that took longer than
`store_patience_s` its open session is ended for it, unless only the opening was left, which needs nobody any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc
import structlog

from certs.party import CertificateError
from certs.peers import load_peers
from certs.tls import server_credentials
from coordinator import events as ev
from coordinator.config import CoordinatorConfig
from coordinator.database import without_login
from coordinator.dispatch import Dispatcher, register
from coordinator.health import handler_of
from coordinator.metrics import serving
from coordinator.models import ModelError, write_atomically
from coordinator.run import STORE_RETRY_S, Run
from coordinator.service import Federation
from coordinator.state import Phase
from coordinator.store import URL_FILE, StoreError
from proto.wire import MAX_MESSAGE_BYTES

log = structlog.get_logger()

TICK_S = 0.2
STOP_GRACE_S = 2.0
SHOWN = 12  # hexadecimal digits of a plan's digest in a log line


class ListenError(RuntimeError):
    """The address cannot be listened on; one sentence that names it and the remedy."""


class Desk:
    """One plan that is served: its run, and what answers its parties."""

    def __init__(self, config: CoordinatorConfig, make: Callable[[], Run]) -> None:
        self.config, self._make = config, make
        allow = load_peers(config.allow)  # before anything begins
        self.run = make()
        self.federation = Federation(self.run, allow)
        self.digest = self.run.plan.digest()
        self.stopped = ""  # why this plan is served no more, though the program goes on

    @property
    def serving(self) -> bool:
        """Whether the last tick could be stored."""
        return self.federation.serving and not self.stopped

    async def tend(self, stop: asyncio.Event) -> None:
        """Ticks until `stop`. What nobody foresaw ends this plan alone, in `_ended`."""
        while not stop.is_set():
            self.tick()
            if self.run.store.lost:
                await self._take_up(stop)
            await sleep_or(stop, TICK_S)

    def tick(self) -> None:
        """Deadlines, the list of confirmed keys, bytes and last-seen times."""
        try:
            self.federation.seen_in_polls()
            self.federation.membership.revoke_unlisted()
            self.run.feed(ev.Tick())
            self.run.flush()
            self.federation.serving = True
        except StoreError as error:
            self.federation.serving = False
            log.warning("the store could not be written; trying again", reason=str(error))

    def begin(self) -> None:
        """Before anybody calls: an open session goes on, without whoever was taken from the list meanwhile."""
        self.run.feed(ev.Tick())
        self.federation.membership.revoke_replaced()

    def end(self, reason: str) -> None:
        """Serve this plan no more; its parties are told why."""
        self.stopped = reason
        self.federation.close(reason)

    async def _take_up(self, stop: asyncio.Event) -> None:
        """Refuse everybody until the store is back; then go on from it as after a kill."""
        since_s, reason = time.monotonic(), self.run.store.lost
        self.federation.close(f"{OUT_OF_REACH}: try again")
        await self.run.abandon()
        while not stop.is_set():
            try:
                allow = load_peers(self.config.allow)
                run = await asyncio.to_thread(self._make)
            except StoreError:
                await sleep_or(stop, STORE_RETRY_S)
            except (ModelError, CertificateError) as error:
                self.end(str(error))
                return
            else:
                break
        else:
            return
        away_s = time.monotonic() - since_s
        log.warning("the store is back", seconds=round(away_s, 1), reason=reason)
        self.run, self.federation = run, Federation(run, allow)
        self.begin()
        session = run.state.session
        if session is not None and run.state.phase is not Phase.OPENING and away_s > self.config.store_patience_s:
            run.feed(ev.SessionBroken(session.id, f"{OUT_OF_REACH} for {away_s:.0f} s"))


OUT_OF_REACH = "the coordinator's store was out of reach"


async def serve(desks: Sequence[Desk], config: CoordinatorConfig, stop: asyncio.Event, *, until_finished: bool = False) -> None:
    """Listen until `stop` is set (or all runs are over). Raises ListenError, CertificateError, and what ended the last plan."""
    dispatcher = Dispatcher(desks)
    server = grpc.aio.server(options=_options())
    register(server, dispatcher)
    server.add_generic_rpc_handlers((handler_of(lambda: all(desk.serving for desk in desks), dispatcher.admit),))
    port = _bind(server, config)
    for desk in desks:
        desk.begin()
    await server.start()
    address = f"{config.listen.rpartition(':')[0]}:{port}"
    for desk in desks:
        _tell(desk.config, address)
    log.info("Listening", address=address)
    try:
        async with serving(lambda: [desk.run for desk in desks], config):
            await _tend_all(desks, stop, until_finished=until_finished)
    finally:
        for desk in desks:
            desk.config.address_file.unlink(missing_ok=True)
        await server.stop(STOP_GRACE_S)
        for desk in desks:
            await _close(desk)


async def _tend_all(desks: Sequence[Desk], stop: asyncio.Event, *, until_finished: bool) -> None:
    """Until `stop`, until all runs are over, or until no plan is left; what ended the last plan is raised."""
    tasks = {asyncio.create_task(desk.tend(stop)): desk for desk in desks}
    try:
        while not stop.is_set() and not (until_finished and _are_over(desks)):
            await sleep_or(stop, TICK_S)
            for task, desk in tasks.items():
                if task.done() and not task.cancelled() and not desk.stopped:
                    _ended(desk, task.exception())
            if all(desk.stopped for desk in desks):
                raise _last_failure(tasks, desks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _are_over(desks: Sequence[Desk]) -> bool:
    """Whether every run is over. Each is asked: its patience counts from the first time that it is, whatever the others do."""
    over = [desk.run.over() for desk in desks]
    return all(over)


def _ended(desk: Desk, error: BaseException | None) -> None:
    """What nobody foresaw in one plan ends that plan."""
    if error is not None:
        log.error("a plan is served no more", reason=type(error).__name__, plan=desk.digest.hex()[:SHOWN])
        desk.end("the coordinator failed on this plan; its log says where")


def _last_failure(tasks: dict[asyncio.Task[None], Desk], desks: Sequence[Desk]) -> BaseException:
    failures = [error for task in tasks if task.done() and (error := task.exception()) is not None]
    return failures[0] if failures else StoreError(desks[0].stopped)


async def _close(desk: Desk) -> None:
    try:
        await desk.run.close()
    except StoreError as error:  # what it holds is stored; the last bytes and last-seen times are not
        log.warning("the store could not be written", reason=str(error))


def _tell(config: CoordinatorConfig, address: str) -> None:
    """Where this coordinator listens, and where its store is if that is no file of the state folder."""
    write_atomically(config.address_file, f"{address}\n".encode())
    server = without_login(config.database)
    if server is not None:
        write_atomically(config.state / URL_FILE, f"{server}\n".encode())


async def sleep_or(stop: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until `stop`."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


def _bind(server: grpc.aio.Server, config: CoordinatorConfig) -> int:
    credentials = server_credentials(config.identity)
    refused = (
        f"cannot listen on {config.listen}: the port is busy or not this machine's; stop the other program or choose another"
    )
    try:
        port = server.add_secure_port(config.listen, credentials)
    except RuntimeError as error:
        raise ListenError(refused) from error
    if port == 0:
        raise ListenError(refused)
    return port


def _options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),  # a second coordinator on the same port must fail, not share it
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),  # a dead connection is noticed within 15 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # nodes may ping as often
        ("grpc.max_concurrent_streams", 32),  # per connection: a node needs about three
    ]
