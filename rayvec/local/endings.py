"""How a process has ended: of a child its parent knows, of another one the kernel may tell."""

from __future__ import annotations

import contextlib
import signal
import struct
import time

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["exit_code_of", "told_ending"]

# Linux 6.15's PIDFD_GET_INFO (linux/pidfd.h): a mask of what is asked for and told, ..., the status as wait() gives it.
_INFO = struct.Struct("<Q8x44xi")
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_EXIT = 1 << 3
_POLL_SECONDS = 0.005


def exit_code_of(pidfd: int, timeout: float) -> int | None:
    """How the process behind ``pidfd``, which has ended, did so, as ``multiprocessing`` tells it; None where nobody says.

    Args:
        pidfd: its descriptor.
        timeout: seconds to wait for its parent to take note, before which the kernel does not tell.
    """
    if fcntl is None:
        return None
    deadline = time.monotonic() + timeout
    info = bytearray(_INFO.size)
    while True:
        _INFO.pack_into(info, 0, _EXIT, 0)
        try:
            fcntl.ioctl(pidfd, _GET_INFO, info)
        except OSError:
            return None
        told, status = _INFO.unpack(info)
        if told & _EXIT:
            return int(-(status & 0x7F) if status & 0x7F else status >> 8)
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)


def told_ending(code: int | None) -> str:
    """An exit code in words, behind a comma; nothing where it is not known."""
    if code is None:
        return ""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f", ended by signal {signal.Signals(-code).name}"
    return f", ended with exit code {code}"
