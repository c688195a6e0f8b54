"""Frames come through whole and in order, however the bytes are cut, and every end is noticed."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest

from rayvec.local.bells import Bells
from rayvec.local.channel import CallerChannel, Frame, WorkerChannel
from rayvec.local.waiting import Lamp

LARGE = 3_000_000
"""More bytes than a socket takes at once."""


class Ends(NamedTuple):
    """Both ends of a channel, and the sockets below."""

    caller: CallerChannel
    worker: WorkerChannel
    caller_socket: socket.socket
    worker_socket: socket.socket


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A channel with both ends in this process."""
    ours, theirs = socket.socketpair()
    yield Ends(CallerChannel(ours), WorkerChannel(theirs), ours, theirs)
    ours.close()
    theirs.close()


def wire(code: int, payload: bytes | None = None) -> bytes:
    """A frame as the docstring of the module draws it."""
    return bytes([code]) if payload is None else bytes([code | 0x80]) + struct.pack("<Q", len(payload)) + payload


def plain(frame: Frame | None) -> tuple[int, bytes | None] | None:
    """A frame to compare."""
    return None if frame is None else (frame[0], None if frame[1] is None else bytes(frame[1]))


def polled(ends: Ends) -> list[tuple[int, bytes | None] | None]:
    """Every frame that is here, as the caller polls them; EOF ends the list with None."""
    frames: list[tuple[int, bytes | None] | None] = []
    try:
        while (frame := ends.caller.poll()) is not None:
            frames.append(plain(frame))
    except EOFError:
        frames.append(None)
    return frames


def aside(function: Callable[[], Any]) -> Callable[[], Any]:
    """Runs ``function`` in a thread; call what is returned for its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(10)
        return results[0]

    return wait


PAYLOADS = [None, b"", b"x", bytes(8), bytes(range(256)), bytes(65526), bytes(65527), bytes(65536), b"\x80" * 100_000]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: str(payload and len(payload)))
def test_a_frame_there_and_one_back(ends: Ends, payload: bytes | None) -> None:
    """Both directions carry a code, with a payload of any size or none; an empty payload is not none."""
    parts = () if payload is None else (payload,)
    for code in (1, 7, 127):
        assert ends.caller.post(code, *parts)
        assert plain(ends.worker.receive()) == (code, payload)
        ends.worker.send(code, *parts)
        assert polled(ends) == [(code, payload)]


def test_the_wire_is_as_it_is_drawn(ends: Ends) -> None:
    """One byte where nothing else is to be said; else the high bit, eight bytes of length, and the parts in a row."""
    ends.caller.post(4)
    ends.caller.post(5, b"ab", memoryview(b"cde"), b"")
    assert ends.worker_socket.recv(100) == b"\x04" + b"\x85" + struct.pack("<Q", 5) + b"abcde"
    ends.worker.send(4)
    ends.worker.send(5, b"ab", b"", memoryview(b"cde"))
    assert ends.caller_socket.recv(100) == b"\x04" + b"\x85" + struct.pack("<Q", 5) + b"abcde"


def test_parts_may_be_views_of_arrays(ends: Ends) -> None:
    """Raw rows are sent without a copy in between."""
    rows = np.arange(6, dtype=np.float64)
    ends.caller.post(4, rows.view(np.uint8).data, b"end")
    assert plain(ends.worker.receive()) == (4, rows.tobytes() + b"end")


def test_a_large_payload_goes_through(ends: Ends) -> None:
    """What exceeds the socket arrives whole, in both directions, while each side does its part."""
    payload = np.random.default_rng(0).bytes(LARGE)
    assert not ends.caller.post(3, payload[:1000], payload[1000:])
    received = aside(ends.worker.receive)
    while not ends.caller.flush():
        pass
    assert plain(received()) == (3, payload)
    aside(lambda: ends.worker.send(3, payload[:7], payload[7:]))
    while (frame := ends.caller.poll()) is None:
        pass
    assert plain(frame) == (3, payload)


def test_frames_byte_by_byte(ends: Ends) -> None:
    """Half a frame waits for its other half, wherever it is cut."""
    frames = [(3, b"abc"), (4, None), (5, b""), (6, None), (7, b"x" * 300)]
    data = b"".join(wire(code, payload) for code, payload in frames)
    arrived = []
    for byte in data:
        ends.worker_socket.send(bytes([byte]))
        arrived += polled(ends)
    assert arrived == frames


def test_many_frames_at_once(ends: Ends) -> None:
    """Frames that arrive together are handed out one by one, in order."""
    frames = [(1 + index % 100, None if index % 3 else bytes([index % 256]) * (index % 50)) for index in range(1500)]
    ends.worker_socket.sendall(b"".join(wire(code, payload) for code, payload in frames))
    assert polled(ends) == frames
    assert ends.caller.poll() is None


@pytest.mark.parametrize("seed", range(20))
def test_frames_in_random_pieces(ends: Ends, seed: int) -> None:
    """Random frames cut at random places arrive as they were sent, on both sides."""
    rng = np.random.default_rng(seed)
    sizes = [None if rng.random() < 0.4 else int(rng.integers(10 ** rng.integers(5))) for _ in range(30)]
    frames = [(int(rng.integers(128)), None if size is None else rng.bytes(size)) for size in sizes]
    data = b"".join(wire(code, payload) for code, payload in frames)
    bounds = [0, *sorted(int(bound) for bound in rng.integers(0, len(data), 40)), len(data)]
    received = aside(lambda: [plain(ends.worker.receive()) for _ in frames])
    ends.caller_socket.setblocking(True)
    arrived = []
    for index in range(len(bounds) - 1):
        piece = data[bounds[index] : bounds[index + 1]]
        ends.caller_socket.sendall(piece)
    assert received() == frames
    ends.caller_socket.setblocking(False)
    for index in range(len(bounds) - 1):
        ends.worker_socket.sendall(data[bounds[index] : bounds[index + 1]])
        arrived += polled(ends)
    assert arrived == frames


# Back-pressure


def test_posting_never_blocks(ends: Ends) -> None:
    """A worker that reads nothing does not hold the caller; once it reads, all frames arrive as they were posted."""
    rows = np.full(LARGE, 7, np.uint8)
    assert not ends.caller.post(1, b"head", rows.data)
    rows[:] = 9  # The next step's actions: not what was posted.
    assert not ends.caller.is_flushed
    assert not ends.caller.post(2)
    assert not ends.caller.post(3, b"tail")
    assert not ends.caller.flush()
    received = aside(lambda: [plain(ends.worker.receive()) for _ in range(3)])
    while not ends.caller.flush():
        pass
    assert ends.caller.is_flushed
    assert received() == [(1, b"head" + bytes([7]) * LARGE), (2, None), (3, b"tail")]
    assert ends.caller.post(4)
    assert plain(ends.worker.receive()) == (4, None)


def test_a_full_socket_refuses_bare_frames_too(ends: Ends) -> None:
    """Single bytes wait in the outbox as well, each of them once."""
    count = 0
    while ends.caller.post(1 + count % 100):
        count += 1
    posted = count + 50
    for index in range(count + 1, posted):
        assert not ends.caller.post(1 + index % 100)
    received = aside(lambda: [ends.worker.receive()[0] for _ in range(posted)])
    while not ends.caller.flush():
        pass
    assert received() == [1 + index % 100 for index in range(posted)]


def test_polling_goes_on_while_the_outbox_is_full(ends: Ends) -> None:
    """What the worker says meanwhile is heard."""
    assert not ends.caller.post(1, bytes(LARGE))
    ends.worker.send(6, b"busy")
    assert polled(ends) == [(6, b"busy")]


# File descriptors


def open_descriptors() -> set[str]:
    """The file descriptors of this process."""
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()  # noqa: PTH208, PTH112


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize("others", [[], [(3, None), (4, b"end")]])
def test_the_first_frame_waits_for_another_and_brings_descriptors(
    ends: Ends, size: int, others: list[tuple[int, bytes | None]]
) -> None:
    """It is sent with the next or by ``flush``, before it, and each of its descriptors opens the same file."""
    frames = [(2, bytes(size)), *others]
    files = [os.memfd_create("one"), os.memfd_create("two")]
    for index, file in enumerate(files):
        os.write(file, b"file %d" % index)
    ends.caller.hold(2, bytes(size), descriptors=files)
    assert not ends.caller.is_flushed
    with pytest.raises(BlockingIOError):
        ends.worker_socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    for code, payload in others:
        ends.caller.post(code, *(() if payload is None else (payload,)))
    result = aside(lambda: [plain(ends.worker.receive()) for _ in frames])
    while not ends.caller.flush():
        pass
    assert result() == frames
    assert len(ends.worker.descriptors) == 2
    assert not set(ends.worker.descriptors) & set(files)
    for index, descriptor in enumerate(ends.worker.descriptors):
        assert os.pread(descriptor, 100, 0) == b"file %d" % index
    for descriptor in [*files, *ends.worker.descriptors]:
        os.close(descriptor)


# Bells


@pytest.fixture(params=[False, True], ids=["sleeps", "watches"])
def rung(ends: Ends, request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Two ends that ring for the code 4."""
    pair = Bells.make()
    assert pair is not None
    lamps = np.zeros(2, np.uint8)
    for end, own in ((ends.caller, pair), (ends.worker, Bells(*map(os.dup, pair)))):
        listen = end.ring_with if isinstance(end, CallerChannel) else end.listen_to
        listen(own, 4, (Lamp(lamps, 0), Lamp(lamps, 1)) if request.param else None)
    yield ends
    ends.worker.close()
    ends.caller.close()


def test_a_ring_each_way(rung: Ends) -> None:
    """Nothing goes over the socket, and nothing is heard before it was rung."""
    tell, take = rung.caller.bare_calls(4)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            take()
        tell()
        assert rung.worker.receive() == (4, None)
        rung.worker.send(4)
        assert take()
    tell()
    assert rung.worker.receive() == (4, None)
    rung.worker.send(4)
    assert rung.caller.poll() == (4, None)
    assert rung.caller.poll() is None


def test_frames_behind_a_ring_keep_their_order(rung: Ends) -> None:
    """What was asked before the worker listened comes in the order in which it was asked, and is answered in kind."""
    tell, take = rung.caller.bare_calls(4)
    tell()
    rung.caller.post(7)
    rung.caller.post(4)
    rung.caller.post(5, b"last")
    assert rung.worker.receive() == (4, None)
    rung.worker.send(4)
    received = [plain(rung.worker.receive()) for _ in range(3)]
    assert received == [(7, None), (4, None), (5, b"last")]
    assert take()
    rung.worker.send(4)
    with pytest.raises(BlockingIOError):
        take()
    assert rung.caller.poll() == (4, None)


def test_a_reply_that_says_more_than_a_ring(rung: Ends) -> None:
    """It comes over the socket, which is listened to as well."""
    tell, take = rung.caller.bare_calls(4)
    tell()
    rung.worker.receive()
    rung.worker.send(4, b"infos")
    with pytest.raises(BlockingIOError):
        take()
    assert select.select(rung.caller.descriptors(), [], [], 0)[0]
    assert plain(rung.caller.poll()) == (4, b"infos")


def test_hanging_up_wakes_who_waits_for_a_bell(rung: Ends) -> None:
    """Another thread of the worker ends its wait; a step that came at the same time is not begun any more."""

    def receive() -> str:
        try:
            rung.worker.receive()
        except EOFError:
            return "end"
        return "frame"

    result = aside(receive)
    rung.worker.hang_up()
    assert result() == "end"
    rung.caller.bare_calls(4)[0]()
    rung.worker.hang_up()
    with pytest.raises(EOFError):
        rung.worker.receive()


def test_no_bells_are_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are none, or no descriptors are left, none are made and nothing is left open."""
    eventfd = os.eventfd
    for answers in ([OSError(24, "Too many open files")], [eventfd(0), OSError(24, "Too many open files")]):
        before = open_descriptors()
        monkeypatch.setattr(os, "eventfd", mock.Mock(side_effect=answers))
        assert Bells.make() is None
        assert len(before) - len(open_descriptors()) == len(answers) - 1
    monkeypatch.delattr(os, "eventfd")
    assert Bells.make() is None


# The end


def test_the_caller_notices_the_end_at_every_point(ends: Ends) -> None:
    """Wherever within a frame the worker ends, whole frames are still handed out, then EOF, again and again."""
    data = wire(3, b"abc")
    for cut in range(len(data)):
        ours, theirs = socket.socketpair()
        channel = CallerChannel(ours)
        theirs.sendall(wire(4) + wire(5, b"x") + data[:cut])
        theirs.close()
        assert plain(channel.poll()) == (4, None)
        assert plain(channel.poll()) == (5, b"x")
        for _ in range(2):
            with pytest.raises(EOFError):
                channel.poll()
        channel.close()


def test_the_worker_notices_the_end_at_every_point(ends: Ends) -> None:
    """The same on the other side, where receiving blocks."""
    data = wire(3, b"abc")
    for cut in range(len(data)):
        ours, theirs = socket.socketpair()
        channel = WorkerChannel(theirs)
        ours.sendall(wire(4) + wire(5, b"x") + data[:cut])
        ours.close()
        assert plain(channel.receive()) == (4, None)
        assert plain(channel.receive()) == (5, b"x")
        with pytest.raises(EOFError):
            channel.receive()
        channel.close()


def test_what_was_said_before_a_violent_end_is_heard(ends: Ends) -> None:
    """A worker that dies with requests unread resets the connection; its replies before that count all the same."""
    ends.caller.post(4)
    ends.worker.send(3, b"last words")
    ends.worker_socket.close()
    assert plain(ends.caller.poll()) == (3, b"last words")
    with pytest.raises(EOFError):
        ends.caller.poll()


@pytest.mark.parametrize("is_reset", [False, True])
def test_sending_to_nobody_raises_eof(ends: Ends, is_reset: bool) -> None:
    """The caller learns from a broken pipe that the worker is gone, in the one word for it."""
    if is_reset:
        ends.caller.post(4)
    ends.worker_socket.close()
    for parts in [(), (b"x",), (bytes(LARGE),)]:
        with pytest.raises(EOFError):
            ends.caller.post(4, *parts)
    ends.caller.hold(4, b"x", descriptors=[0])
    with pytest.raises(EOFError):
        ends.caller.flush()


@pytest.mark.parametrize("is_reset", [False, True])
def test_replying_to_nobody_raises_eof(ends: Ends, is_reset: bool) -> None:
    """The same for the worker."""
    if is_reset:
        ends.worker.send(4)
    ends.caller_socket.close()
    for parts in [(), (b"x",), (bytes(LARGE),)]:
        with pytest.raises(EOFError):
            ends.worker.send(4, *parts)


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("is_reset", [False, True])
def test_waiting_for_nobody_raises_eof(ends: Ends, is_reset: bool, is_first: bool) -> None:
    """A worker whose caller is gone gets EOF from every wait, also where the caller left replies unread."""
    if not is_first:
        ends.caller.post(1)
        ends.worker.receive()
    if is_reset:
        ends.worker.send(1, b"unread")
    ends.caller.close()
    with pytest.raises(EOFError):
        ends.worker.receive()


def test_hanging_up_wakes_who_waits(ends: Ends) -> None:
    """Another thread of the worker can end its wait, and do so twice."""

    def receive() -> str:
        try:
            ends.worker.receive()
        except EOFError:
            return "end"
        return "frame"

    result = aside(receive)
    ends.worker.hang_up()
    ends.worker.hang_up()
    assert result() == "end"
    ends.worker.close()
    ends.worker.hang_up()


def test_closing_drops_the_outbox(ends: Ends) -> None:
    """The caller does not wait for a worker that reads nothing."""
    ends.caller.post(1, bytes(LARGE))
    ends.caller.close()
    assert ends.caller.is_flushed
