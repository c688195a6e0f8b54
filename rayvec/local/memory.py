"""Shared memory that cannot leak: bytes that processes on one machine map, and that no name leads to.

Where the platform can pass file descriptors over a socket (POSIX), a block is an open file without a name: an anonymous
file of the kernel (Linux), or a temporary one whose name is removed before anybody learns of it. Each worker is sent the
descriptor. The memory is gone when the last process that maps it is, however it ended.

Elsewhere (Windows), a block is a named temporary file, removed by ``close()``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["SharedBlock"]


class SharedBlock:
    """Bytes in shared memory, zero at first.

    Args:
        size: how many.
        by_descriptor: whether workers get it as a descriptor; by default where the platform can.

    Attributes:
        token: what a worker needs to know besides the descriptor; goes to :meth:`attach`.
        buffer: the bytes.
    """

    def __init__(self, size: int, by_descriptor: bool | None = None) -> None:
        if by_descriptor is None:
            by_descriptor = hasattr(socket, "send_fds")
        size = max(size, 1)
        self._path: str | None = None
        if by_descriptor and hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("rayvec", os.MFD_CLOEXEC)
        else:
            self._descriptor, path = tempfile.mkstemp(prefix="rayvec-", dir=_memory_folder())
            if by_descriptor:
                Path(path).unlink()
            else:
                self._path = path
        self.token: tuple[str | None, int] = (self._path, size)
        try:
            os.ftruncate(self._descriptor, size)
            self.buffer: mmap.mmap | None = _mapped(self._descriptor, size)
        except BaseException:
            self.buffer = None
            self.close()
            raise

    @property
    def descriptor(self) -> int | None:
        """What a worker has to be sent besides the token; None where the token does."""
        return self._descriptor if self._path is None else None

    def close(self) -> None:
        """Lets go of it. Arrays over the bytes stay valid as long as somebody holds them."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self.buffer = None
            if self._path is not None:
                with contextlib.suppress(OSError):
                    Path(self._path).unlink()

    @staticmethod
    def attach(token: tuple[str | None, int], descriptor: int | None) -> Any:
        """Maps, in a worker, the block of which it was sent ``token`` and ``descriptor``; closes that, returns the bytes."""
        path, size = token
        if descriptor is None:
            assert path is not None
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            return _mapped(descriptor, size)
        finally:
            os.close(descriptor)


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13) and os.name == "posix":
        return mmap.mmap(descriptor, size, trackfd=False)
    return mmap.mmap(descriptor, size)


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
