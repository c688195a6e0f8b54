"""How requests and replies travel between the caller and a worker that serves on this machine.

A worker is somebody (a child process, a Ray actor) behind a line. The line turns requests into frames on a socket and
frames into replies; rows lie in shared memory, or travel in the frames where there is none.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from rayvec import serialise
from rayvec.batch import Batch
from rayvec.local.bells import Bells
from rayvec.local.channel import CallerChannel, Frame
from rayvec.local.memory import SharedBlock
from rayvec.local.serve import AttachPayload, decode_reply, encode_request, undecodable_reply
from rayvec.local.starting import hearing_later
from rayvec.protocol import Verb
from rayvec.worker import BareLine, Reply

__all__ = ["ChannelLine"]


class ChannelLine:
    """The caller's end of a connection to a worker that runs :mod:`rayvec.local.serve`.

    Args:
        channel: the connection.
        envs: the worker's sub-envs.
    """

    def __init__(self, channel: CallerChannel, envs: range) -> None:
        self._channel = channel
        self._envs = envs
        self._batch: Batch | None = None
        self._is_shared = False
        self._frame: Frame | None = None

    def attach(self, batch: Batch, block: SharedBlock | None, is_anew: bool, spins: bool) -> None:
        """Tells the worker where its rows are, together with the next request: many that wake take the caller's core.

        Args:
            batch: the caller's.
            block: that it lies in, if it is shared.
            is_anew: the worker goes on from rows that another has left.
            spins: the worker waits actively for a moment before it sleeps.
        """
        self._batch = batch
        self._is_shared = block is not None
        if block is None or block.descriptor is None:
            token = block.token if block is not None else None
            self._channel.hold(Verb.ATTACH, attach_payload(batch, self._envs, token, is_anew))
            return
        batch.darken(self._envs.start)
        # Until the channel has them, nobody would close the bells.
        with hearing_later():
            bells = Bells.make()
            told = None if bells is None else spins
            payload = attach_payload(batch, self._envs, block.token, is_anew, told)
            self._channel.hold(Verb.ATTACH, payload, descriptors=(block.descriptor, *(bells or ())))
            if bells is not None:
                self._channel.ring_with(bells, Verb.STEP, batch.lamps(self._envs.start) if spins else None)

    def prepare(self, verb: Verb, payload: tuple[Any, ...] | None) -> Sequence[bytes | memoryview]:
        """What :meth:`post` takes."""
        return encode_request(payload, None if self._is_shared else self._batch, self._envs)

    def post(self, verb: Verb, prepared: Sequence[bytes | memoryview]) -> bool:
        """Sends a request; returns whether all of it has left. Says nothing of a worker that is gone."""
        try:
            return self._channel.post(verb, *prepared)
        except EOFError:
            return True

    def poll(self, owed: deque[Verb]) -> Reply | None:
        """The reply to the oldest request in ``owed``, if it is here. Raises EOFError when the worker is gone."""
        channel = self._channel
        if not channel.is_flushed:
            # Its last words may be there.
            with contextlib.suppress(EOFError):
                channel.flush()
        while (frame := self._frame or channel.poll()) is not None:
            # Kept until it is decoded, in case Ctrl-C comes meanwhile.
            self._frame = frame
            code, data = frame
            while owed and owed[0] != code and code in owed:
                # Ctrl-C kept these from being sent.
                owed.popleft()
            reply = None
            if owed and owed[0] == code:
                try:
                    reply = decode_reply(code, data, self._batch, self._envs, self._is_shared)
                except Exception as error:
                    reply = undecodable_reply(code, self._envs, error)
            self._frame = None
            if reply is not None:
                return reply
        return None

    def bare_line(self) -> BareLine | None:
        """For single bytes; None where rows travel with them."""
        if not self._is_shared:
            return None
        return BareLine(*self._channel.bare_calls(Verb.STEP), self._channel.descriptors(), self._channel.watch)

    @property
    def is_flushed(self) -> bool:
        """Whether all that was sent has left."""
        return self._channel.is_flushed

    def descriptors(self) -> tuple[int, ...]:
        """What becomes readable when :meth:`poll` may have something to say."""
        return self._channel.descriptors()

    def close(self) -> None:
        """Hangs up."""
        self._channel.close()
        self._frame = self._batch = None


def attach_payload(
    batch: Batch, envs: range, token: tuple[str | None, int] | None, is_anew: bool, spins: bool | None = None
) -> bytes:
    """The payload of an ATTACH: over the shared block that ``token`` names, or over rows of the worker's own."""
    spaces = None if batch.is_as_told and not is_anew else batch.pickled_spaces
    if token is not None:
        return serialise.dumps(tuple(AttachPayload(spaces, batch.num_rows, token, spins=spins)))
    rows = b"".join(batch.pack_results(envs.start, envs.stop)) if is_anew else None
    return serialise.dumps(tuple(AttachPayload(spaces, len(envs), None, rows)))
