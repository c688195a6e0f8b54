"""Where a worker that the caller did not fork meets it: a Unix socket that listens until the worker has come.

On Linux its name is no file, so nothing can be left behind. Whoever connects has to show the secret first.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["Invitation", "MeetingPoint", "accept_invitation", "can_meet"]

_SECRET_SIZE = 32
_INTRODUCTION_TIMEOUT = 1.0
"""Seconds that one who has connected has to show the secret."""
_CONNECT_TIMEOUT = 5.0


class Invitation(NamedTuple):
    """What a worker has to know.

    Attributes:
        node_id: of the node that the caller is on.
        address: of the socket.
        secret: to show there.
    """

    node_id: str
    address: str
    secret: bytes


def can_meet() -> bool:
    """Whether this platform has such sockets."""
    return hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")


class MeetingPoint:
    """The caller's side.

    Args:
        node_id: of the node that the caller is on.

    Attributes:
        invitation: for the worker.
    """

    def __init__(self, node_id: str) -> None:
        self._folder: str | None = None
        address = f"\0rayvec-{secrets.token_hex(16)}"
        if sys.platform != "linux":
            self._folder = tempfile.mkdtemp(prefix="rayvec-")
            address = str(Path(self._folder) / "meeting")
        self.invitation = Invitation(node_id, address, secrets.token_bytes(_SECRET_SIZE))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(address)
            self._listener.listen()
            self._listener.setblocking(False)
        except BaseException:
            self.close()
            raise

    def accept(self) -> socket.socket | None:
        """The connection of the worker, which has made it already; None if it has not."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return None
            connection.settimeout(_INTRODUCTION_TIMEOUT)
            shown = b""
            with contextlib.suppress(OSError):
                shown = connection.recv(_SECRET_SIZE, socket.MSG_WAITALL)
            if hmac.compare_digest(shown, self.invitation.secret):
                return connection
            connection.close()

    def close(self) -> None:
        """Nobody can come any more."""
        self._listener.close()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.invitation.address)  # noqa: PTH108 - an address
            with contextlib.suppress(OSError):
                Path(self._folder).rmdir()


def accept_invitation(invitation: Invitation) -> socket.socket:
    """The worker's side: connects to the caller. Raises OSError where the two cannot reach each other."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_CONNECT_TIMEOUT)
        sock.connect(invitation.address)
        sock.sendall(invitation.secret)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock
