"""Figures of a running coordinator in Prometheus' text format (version 0.0.4), served on this machine only.

What is in them is what `status` shows: states, counts, bytes, seconds. Nothing is about patients, and nothing of a hospital's
training but its coarse state. Requests are small, bounded in size and time, and cannot change anything.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from coordinator.awaited import awaited
from coordinator.config import CoordinatorConfig
from coordinator.run import Run
from proto.plan import short_name

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_REQUEST_BYTES = 8192
REQUEST_WITHIN_S = 5.0
KIBIBYTE = 1024
PLAN_DIGITS = 12  # of a plan's digest in a label

Sample = tuple[Mapping[str, str], float]
Figure = tuple[str, str, str, Sequence[Sample]]


class MetricsError(RuntimeError):
    """The metrics address cannot be listened on; one sentence that names it and the remedy."""


def exposition(runs: Sequence[Run]) -> str:
    """All figures as text; where there are several plans, each sample says of which."""
    found: dict[str, tuple[str, str, list[Sample]]] = {}
    for run in runs:
        more = {"plan": run.plan.digest().hex()[:PLAN_DIGITS]} if len(runs) > 1 else {}
        for name, kind, text, samples in _figures(run):
            held = found.setdefault(name, (kind, text, []))[2]
            held += [({**more, **labels}, value) for labels, value in samples]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
    found["peak_memory_bytes"] = "gauge", "Largest resident memory of this process.", [({}, peak)]
    return "".join(line for name, (kind, text, samples) in found.items() for line in _metric(name, kind, text, samples))


def _figures(run: Run) -> Iterator[Figure]:
    """Name, kind, text and samples of each figure of one run."""
    state, now_s = run.state, run.now_s()
    missing = awaited(state, now_s)
    members = state.members.values()
    yield ("round", "gauge", "Round at work.", [({}, state.round)])
    yield ("phase", "gauge", "1 for the present phase.", [({"phase": state.phase.value}, 1)])
    yield ("phase_seconds", "gauge", "Age of the present phase.", [({}, now_s - state.phase_since_s)])
    standings = Counter(member.standing.value for member in members)
    yield ("hospitals", "gauge", "Hospitals by state.", [({"state": k}, n) for k, n in sorted(standings.items())])
    heard = [({"party": short_name(m.uri)}, now_s - m.last_seen_s) for m in members if m.public_key]
    yield ("heard_age_seconds", "gauge", "Since a hospital was heard of.", heard)
    waits = [({"party": short_name(one.uri), "survives_without": str(one.survives_without).lower()}, 1) for one in missing]
    yield ("awaited", "gauge", "1 for each hospital that the present phase waits for.", waits)
    counts = run.counts
    yield ("sessions_total", "counter", "Masking sessions begun.", [({}, counts["sessions"])])
    rounds = [({"state": name}, counts[name]) for name in ("opened", "aborted")]
    yield ("rounds_total", "counter", "Rounds that ended, since this start.", rounds)
    refused = [({"kind": k.removeprefix("refused ")}, n) for k, n in sorted(counts.items()) if k.startswith("refused ")]
    yield ("refused_total", "counter", "Requests refused, by kind, since this start.", refused)
    traffic = [({"direction": d, "phase": p}, n) for (d, p), n in sorted(run.meter.totals.items())]
    yield ("bytes_total", "counter", "Bytes on connections, since this start.", traffic)


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP secagg_{name} {text}\n# TYPE secagg_{name} {kind}\n"
    for labels, value in samples:
        inner = ",".join(f'{label}="{_escaped(content)}"' for label, content in labels.items())
        yield f"secagg_{name}{{{inner}}} {value:.10g}\n" if inner else f"secagg_{name} {value:.10g}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@asynccontextmanager
async def serving(runs: Callable[[], Sequence[Run]], config: CoordinatorConfig) -> AsyncIterator[None]:
    """Answer GET /metrics while the block runs, where the configuration names an address. Raises MetricsError."""
    if config.metrics is None:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_WITHIN_S)
            writer.write(_response(runs(), request))
            await asyncio.wait_for(writer.drain(), REQUEST_WITHIN_S)
        writer.close()

    host, _, port = config.metrics.rpartition(":")
    try:
        server = await asyncio.start_server(answer, host.strip("[]"), int(port), limit=MAX_REQUEST_BYTES)
    except OSError as error:
        text = f"cannot serve metrics on {config.metrics}: {error.strerror}; choose another port or stop the other program"
        raise MetricsError(text) from error
    async with server:
        yield


def _response(runs: Sequence[Run], request: bytes) -> bytes:
    if not request.startswith((b"GET /metrics ", b"GET /metrics?")):
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    body = exposition(runs).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
