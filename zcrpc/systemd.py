"""Tells systemd how a service is: sd_notify(3), for units of Type=notify."""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger("zcrpc.server")


def notify(*states: str) -> None:
    """Sends assignments such as READY=1. Nothing happens if nobody asked to be told."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall("\n".join(states).encode())
    except OSError as error:
        _log.warning("systemd cannot be notified at %s: %s", path, error)
