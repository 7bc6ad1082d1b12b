"""Uploads and measurements as they arrive: bounded, checked to the last byte, then taken whole or not at all."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

from coordinator import events as ev
from coordinator.run import Run
from coordinator.sessions import Refusal
from coordinator.spool import Try, UploadBroken, UploadError
from coordinator.state import Phase, why_not
from proto import federation_pb2 as pb
from proto.bulk import UploadPart, Words
from proto.wire import CHUNK_BYTES
from secagg import LocalError, RemoteError, UploadSeal
from secagg.coordinate import SessionView

MAX_RECEIPT_BYTES = 64
MAX_CASES = 100_000  # per label; a public test set is far smaller
SHORT_CHUNK_BYTES = 4096  # a vector in single bytes would keep everybody waiting for their reader
MAX_SHORT_CHUNKS = 2  # where an upload goes on, and its end
FORM = f"an upload is a header, chunks of 1 to {CHUNK_BYTES} bytes, and a trailer"
SILENT_AFTER_S = 60.0  # an upload without a word for so long is given up; the node begins it again


class Receiver:
    """Takes what parties send in bulk. A newer upload of a party ends an older one, which a dead connection left."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._turns: dict[str, object] = {}

    async def receive(self, uri: str, messages: AsyncIterator[UploadPart]) -> None:
        """One upload. Returns when it is accepted; raises Refusal, UploadError, SpoolError, StoreError."""
        header = await _header(messages)
        if self._taken(uri, header.session):
            return
        view = self._view(uri, header)
        turn = self._turns[uri] = object()
        with self._run.spool.begin(header.session, uri, header.total_bytes, header.offset_bytes) as spooled:
            for _ in spooled.rehash():
                await asyncio.sleep(0)
                self._still(uri, turn)
            trailer = await self._words(uri, messages, spooled, turn)
            digest = spooled.digest()
            seal = _checked_seal(view, uri, digest, trailer)
            await asyncio.to_thread(spooled.sync)
            self._still(uri, turn)
            if self._taken(uri, header.session):
                return
            self._view(uri, header)  # the list may have closed meanwhile; nothing below waits
            spooled.accept()
            self._run.feed(ev.UploadAccepted(uri, header.session, seal, header.total_bytes))

    def stop(self) -> None:
        """End every upload in progress: another start writes these files now."""
        self._turns.clear()

    def check_measurement(self, request: pb.Measurement, scores: list[tuple[str, tuple[float, ...]]]) -> None:
        """Raise Refusal unless the model is one of this study and every number can be a Dice."""
        models = {(model.round, model.digest) for model in self._run.store.models()}
        if (request.round, request.model_digest.hex()) not in models:
            raise Refusal("late", "this study published no such model in that round")
        labels = [label for label, _ in scores]
        if tuple(labels) != self._run.plan.network.labels:
            raise Refusal(
                "invalid", f"a measurement has one row for each label, in order: {', '.join(self._run.plan.network.labels)}"
            )
        for label, values in scores:
            if not 0 < len(values) <= MAX_CASES or not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
                raise Refusal("invalid", f"the Dice of '{label}' must be 1 to {MAX_CASES} numbers between 0 and 1")

    def _still(self, uri: str, turn: object) -> None:
        """Refusal where this party has begun a newer upload, which writes the same file."""
        if self._turns.get(uri) is not turn:
            raise Refusal("late", "a newer upload of this party has begun")

    def _taken(self, uri: str, session: bytes) -> bool:
        """Whether this party's upload counts already: its acknowledgement was lost, and this is a repetition."""
        present = self._run.state.session
        if present is None or present.id != session:
            return False
        uploaded = present.survivors or (tuple(present.answered) if self._run.state.phase is Phase.MASK else ())
        return uri in uploaded

    def _view(self, uri: str, header: pb.UploadHeader) -> SessionView:
        reason = why_not(self._run.state, uri, header.session, Phase.MASK)
        view = self._run.views.get(header.session)
        if reason is not None or view is None:
            raise Refusal("late", reason or "this masking session is over: poll for the next instruction")
        if header.total_bytes != view.params.upload_bytes:
            raise UploadError(
                f"an upload of this session has {view.params.upload_bytes} bytes, {header.total_bytes} are announced"
            )
        return view

    async def _words(self, uri: str, messages: AsyncIterator[UploadPart], spooled: Try, turn: object) -> pb.UploadTrailer:
        short = 0
        while True:
            message = await _next(messages)
            self._still(uri, turn)
            self._run.heard(uri)
            if not isinstance(message, Words):
                if message.WhichOneof("part") != "trailer":
                    raise UploadError(FORM)
                return message.trailer
            short += _is_short(message.words)
            if short > MAX_SHORT_CHUNKS:
                raise UploadError(f"an upload comes in chunks of at least {SHORT_CHUNK_BYTES} bytes but for its ends")
            await asyncio.to_thread(spooled.write, message.words)  # digested beside the calls of others


def _is_short(words: memoryview) -> bool:
    if not 0 < len(words) <= CHUNK_BYTES:
        raise UploadError(FORM)
    return len(words) < SHORT_CHUNK_BYTES


async def _header(messages: AsyncIterator[UploadPart]) -> pb.UploadHeader:
    message = await _next(messages)
    if isinstance(message, Words) or message.WhichOneof("part") != "header" or len(message.header.receipt) > MAX_RECEIPT_BYTES:
        raise UploadError("an upload begins with a header")
    return message.header


async def _next(messages: AsyncIterator[UploadPart]) -> UploadPart:
    try:
        async with asyncio.timeout(SILENT_AFTER_S):  # wait_for makes a task for each message
            return await anext(messages)
    except StopAsyncIteration:
        raise UploadBroken("the upload ended before its trailer") from None
    except TimeoutError:
        raise UploadBroken(f"the upload was silent for {SILENT_AFTER_S:g} s") from None


def _checked_seal(view: SessionView, uri: str, digest: bytes, trailer: pb.UploadTrailer) -> UploadSeal:
    try:
        seal = UploadSeal(trailer.digest, trailer.signature)
        view.add_seal(uri, digest, seal)
    except (RemoteError, LocalError) as error:
        raise UploadError(str(error)) from error
    return seal
