"""The wire between the caller and a worker on the same machine: frames over a stream socket.

A frame is one byte, the request's code, and nothing else where nothing else is to be said: that is the hot path. With the
high bit set eight bytes of length and a payload follow::

    ┌──────┐          ┌──────┬────────────┬─────────────┐
    │ code │    or    │ code │ length: u64│ payload ... │
    └──────┘          └──────┴────────────┴─────────────┘
                       | 0x80

Where the platform has :mod:`~rayvec.local.bells`, that byte becomes the ring of a bell once the worker has its memory.

The worker's end blocks. The caller's end never does, in neither direction, so that no stuck worker can hold the caller:
what the socket does not take at once waits in an outbox, and half a frame waits for its other half.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rayvec.local import bells
from rayvec.local.bells import Bells
from rayvec.local.waiting import Lamp

__all__ = ["EMPTY", "CallerChannel", "Frame", "WorkerChannel"]

_HAS_PAYLOAD = 0x80
_LENGTH = struct.Struct("<Q")
_HEADER_SIZE = 1 + _LENGTH.size
_SMALL = 16384
_MOST_DESCRIPTORS = 8
EMPTY: Final = (b"",)
"""The payload that says as little as none, and not the same."""
_BARE = [bytes([code]) for code in range(_HAS_PAYLOAD)]

Frame = tuple[int, "memoryview | None"]


def _framed(code: int, parts: tuple[bytes | memoryview, ...]) -> list[bytes | memoryview]:
    """What makes up a frame. A small one is joined: each send may wake the other side."""
    length = sum(len(part) for part in parts)
    header = bytes([code | _HAS_PAYLOAD]) + _LENGTH.pack(length)
    if length <= _SMALL:
        return [b"".join((header, *parts))]
    return [header, *(part for part in parts if len(part))]


def _nothing_to_ring() -> None:
    pass


class WorkerChannel:
    """The worker's end: blocking.

    Attributes:
        descriptors: the file descriptors that came with the first frame.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.descriptors: list[int] = []
        self._socket = sock
        self._has_received = False
        self._bells: Bells | None = None
        self._rung: Frame = (0, None)
        self._was_rung = False
        self._num_frames = 0
        self._has_taken_frames = False
        self._lamps: tuple[Lamp, Lamp] | None = None
        sock.setblocking(True)

    def listen_to(self, pair: Bells, code: int, lamps: tuple[Lamp, Lamp] | None = None) -> None:
        """Waits for bells from now on, which this end closes: they stand for the bare ``code``.

        Args:
            pair: the bells.
            code: that they stand for.
            lamps: that count their rings, the one for ``asked`` first; None: nobody watches for them.
        """
        for descriptor in pair:
            os.set_inheritable(descriptor, False)
        self._bells = pair
        self._rung = (code, None)
        self._lamps = lamps

    def send(self, code: int, *parts: bytes | memoryview) -> None:
        """Sends a frame; ``parts``, if any, make up its payload. Raises EOFError when the caller is gone."""
        try:
            if not parts:
                if self._was_rung and self._bells is not None:
                    self._ring(self._bells, bells.STEP)
                    return
                self._socket.sendall(_BARE[code])
                self._announce(code)
                return
            if parts == EMPTY and self._was_rung and self._bells is not None:
                self._ring(self._bells, bells.SETTLED)
                return
            for part in _framed(code, parts):
                self._socket.sendall(part)
            self._announce(code)
        except ConnectionError:
            raise EOFError from None

    def _announce(self, code: int) -> None:
        """Raises the lamp for a frame as for a ring, where the other side watches for either."""
        if self._lamps is not None and code == self._rung[0]:
            self._lamps[1].raise_()

    def _ring(self, pair: Bells, data: bytes) -> None:
        os.write(pair.done, data)
        if self._lamps is not None:
            self._lamps[1].raise_()

    def receive(self, answer: Callable[[], bytes | None] = _nothing_to_ring) -> Frame:
        """Waits for the next frame.

        Args:
            answer: called for each ring that stands for the bare code. What it gives is rung back, and the wait goes on; if
                that is None, the code is returned as a frame would be.

        Raises:
            EOFError: the caller is gone.
        """
        if self._bells is not None:
            while not self._may_take_frame(self._bells):
                self._was_rung = True
                if not self._answer_rings(self._bells, answer):
                    return self._rung
            self._was_rung = False
            self._has_taken_frames = True
        try:
            data = self._socket.recv(1) if self._has_received else self._receive_first()
        except ConnectionError:
            raise EOFError from None
        if not data:
            raise EOFError
        self._has_received = True
        code = data[0]
        if code < _HAS_PAYLOAD:
            return code, None
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return code & ~_HAS_PAYLOAD, memoryview(self._exactly(length))

    def _may_take_frame(self, pair: Bells) -> bool:
        """Whether a frame is next: one that was rung for, or one of which Ctrl-C has kept the ring back."""
        while self._num_frames:
            self._num_frames -= 1
            if self._has_frame():
                return True
        if self._was_rung or not self._has_taken_frames:
            return False
        # A frame may have come behind a ring; what was rung for first goes first.
        return self._has_frame() and not self._is_rung(pair)

    def _is_rung(self, pair: Bells) -> bool:
        listening = select.poll()
        listening.register(pair.asked, select.POLLIN)
        return bool(listening.poll(0))

    def _has_frame(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def _answer_rings(self, pair: Bells, answer: Callable[[], bytes | None]) -> bool:
        """Answers rings until one says that frames may be here; False where a ring cannot be answered with one."""
        # As little as possible: where processes are many, each line of this runs on cold caches.
        asked, done = pair
        lamps = self._lamps
        while True:
            if lamps is not None:
                lamps[0].watch()
            data = os.read(asked, 8)
            if data != bells.STEP:
                self._num_frames, steps = bells.frames_and_steps(data)
                if lamps is not None:
                    lamps[0].note(self._num_frames + steps)
                return not steps
            if lamps is not None:
                lamps[0].note()
            said = answer()
            if said is None:
                return False
            os.write(done, said)
            if lamps is not None:
                lamps[1].raise_()

    def _receive_first(self) -> bytes:
        """The first byte of all, with the file descriptors that may have come with it."""
        if not hasattr(socket, "recv_fds"):
            return self._socket.recv(1)
        data, self.descriptors, _, _ = socket.recv_fds(self._socket, 1, _MOST_DESCRIPTORS)
        return data

    def hang_up(self) -> None:
        """Makes a thread that waits in :meth:`receive` see the end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._bells is not None:
            os.write(self._bells.asked, bells.HANG_UP)

    def close(self) -> None:
        """Closes the socket, and the bells."""
        self._socket.close()
        if self._bells is not None:
            self._bells.close()
            self._bells = None

    def _exactly(self, count: int) -> bytes | bytearray:
        try:
            data = self._socket.recv(count)
            if len(data) == count:
                return data
            whole = bytearray(count)
            whole[: len(data)] = data
            view = memoryview(whole)[len(data) :]
            while view and data:
                received = self._socket.recv_into(view)
                view, data = view[received:], b"?" * bool(received)
        except ConnectionError:
            raise EOFError from None
        if view:
            raise EOFError
        return whole


class CallerChannel:
    """The caller's end: neither sending nor receiving blocks.

    Attributes:
        watch: waits actively for a moment for the worker's bell; None where nobody may.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        self._bells: Bells | None = None
        self._lamps: tuple[Lamp, Lamp] | None = None
        self.watch: Callable[[], bool] | None = None
        self._rung: Frame = (0, None)
        self._outbox: deque[memoryview] = deque()
        self._riders: Sequence[int] = ()
        """File descriptors that go with what leaves next."""
        self._inbox = bytearray()
        self._body: memoryview | None = None
        self._filled = 0
        self._code = 0

    def ring_with(self, pair: Bells, code: int, lamps: tuple[Lamp, Lamp] | None = None) -> None:
        """The worker waits for bells from now on, of which this end is closed with the channel.

        Args:
            pair: the bells.
            code: that they stand for.
            lamps: that count their rings, the one for ``asked`` first; None: nobody watches for them.
        """
        self._bells = pair
        self._rung = (code, None)
        if lamps is not None:
            self._lamps, self.watch = lamps, lamps[1].watch

    def descriptors(self) -> tuple[int, ...]:
        """What becomes readable when :meth:`poll` has something to tell."""
        return (self._socket.fileno(),) if self._bells is None else (self._bells.done, self._socket.fileno())

    def bare_calls(self, code: int) -> tuple[Callable[[], object], Callable[[], object]]:
        """The shortest way to send a bare ``code``, and to take the same as the reply; while nothing else is owed.

        Both raise OSError where that cannot be done now. Taking gives :data:`~rayvec.local.bells.SETTLED` for an empty
        payload, and something false if more has come, which :meth:`poll` will tell.
        """
        if self._lamps is not None:
            return partial(self._ring, bells.STEP), self._heard
        if self._bells is not None:
            return partial(os.write, self._bells.asked, bells.STEP), partial(os.read, self._bells.done, 8)
        return partial(self._socket.send, _BARE[code]), partial(self._take_bare, _BARE[code])

    def _ring(self, data: bytes) -> None:
        assert self._bells is not None
        os.write(self._bells.asked, data)
        if self._lamps is not None:
            self._lamps[0].raise_()

    def _heard(self) -> bytes:
        assert self._bells is not None
        data = os.read(self._bells.done, 8)
        if self._lamps is not None:
            self._lamps[1].note()
        return data

    def _take_bare(self, due: bytes) -> bool:
        data = self._socket.recv(65536)
        if data != due:
            self._inbox += data
        return data == due

    def post(self, code: int, *parts: bytes | memoryview) -> bool:
        """Sends a frame, or as much of it as the socket takes now; :meth:`flush` sends the rest.

        Returns:
            Whether all of it has left.

        Raises:
            EOFError: the worker is gone.
        """
        if not parts and not self._outbox:
            try:
                self._socket.send(_BARE[code])
                if self._bells is not None:
                    self._ring(bells.FRAME)
                return True
            except BlockingIOError:
                pass
            except OSError:
                raise EOFError from None
        if not parts:
            self._outbox.append(memoryview(_BARE[code]))
        else:
            self._outbox.extend(memoryview(part) for part in _framed(code, parts))
        if self.flush():
            return True
        # What is left may be a view of memory that changes before it is sent.
        self._outbox = deque(memoryview(bytes(item)) for item in self._outbox)
        return False

    def hold(self, code: int, *parts: bytes | memoryview, descriptors: Sequence[int] = ()) -> None:
        """Keeps the first frame, and file descriptors with it, until the next is posted or until :meth:`flush`."""
        self._outbox.extend(memoryview(part) for part in _framed(code, parts))
        self._riders = descriptors

    def flush(self) -> bool:
        """Sends what is left in the outbox; returns whether it is empty now. Raises EOFError."""
        try:
            while self._outbox:
                item, riders = self._outbox.popleft(), self._riders
                try:
                    sent = socket.send_fds(self._socket, [item], riders) if riders else self._socket.send(item)
                except BlockingIOError:
                    self._outbox.appendleft(item)
                    return False
                self._riders = ()
                if sent < len(item):
                    self._outbox.appendleft(item[sent:])
        except OSError:
            self._outbox.clear()
            raise EOFError from None
        finally:
            if self._bells is not None:
                self._ring(bells.FRAME)
        return True

    @property
    def is_flushed(self) -> bool:
        """Whether everything posted has left."""
        return not self._outbox

    def poll(self) -> Frame | None:
        """The next frame if all of it is here, else None. Raises EOFError when the worker is gone."""
        if self._bells is not None:
            with contextlib.suppress(BlockingIOError):
                is_bare = self._heard() != bells.SETTLED
                return self._rung if is_bare else (self._rung[0], memoryview(*EMPTY))
        while True:
            frame = self._parsed() if self._inbox or self._body is not None else None
            if frame is not None:
                return self._noted(frame)
            try:
                if self._body is not None:
                    received = self._socket.recv_into(self._body[self._filled :])
                    self._filled += received
                else:
                    data = self._socket.recv(65536)
                    received = len(data)
                    if received == 1 and data[0] < _HAS_PAYLOAD and not self._inbox:
                        return self._noted((data[0], None))
                    self._inbox += data
            except BlockingIOError:
                return None
            except OSError:
                raise EOFError from None
            if not received:
                raise EOFError

    def _noted(self, frame: Frame) -> Frame:
        if self._lamps is not None and frame[0] == self._rung[0]:
            self._lamps[1].note()
        return frame

    def _parsed(self) -> Frame | None:
        if self._body is None:
            code = self._inbox[0]
            if code < _HAS_PAYLOAD:
                del self._inbox[:1]
                return code, None
            if len(self._inbox) < _HEADER_SIZE:
                return None
            (length,) = _LENGTH.unpack_from(self._inbox, 1)
            here = self._inbox[_HEADER_SIZE : _HEADER_SIZE + length]
            del self._inbox[: _HEADER_SIZE + length]
            self._code = code & ~_HAS_PAYLOAD
            self._filled = len(here)
            here.extend(bytes(length - len(here)))
            self._body = memoryview(here)
        if self._filled < len(self._body):
            return None
        body, self._body = self._body, None
        return self._code, body

    def close(self) -> None:
        """Closes the socket and the bells; what has not left is dropped."""
        self._outbox.clear()
        self._socket.close()
        if self._bells is not None:
            self._bells.close()
            self._bells = None
