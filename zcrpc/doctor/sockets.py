"""Questions that a socket answers."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from zcrpc._native import lib
from zcrpc.doctor.finding import Finding, reason
from zcrpc.doctor.host import PAGE

_SO_ZEROCOPY: Final = 60  # asm-generic/socket.h
_LOOPBACK: Final = "127.0.0.1"


def receives_zerocopy() -> bool:
    """Whether the kernel has TCP_ZEROCOPY_RECEIVE for us."""
    return int(lib.zc_mapping_supported()) == 0


def receive() -> Finding:
    """Whether what arrives can be mapped."""
    code = -int(lib.zc_mapping_supported())
    if code == 0:
        return Finding("", "good", "there", 'payloads can be mapped: receive="zerocopy" works')
    why = reason(OSError(code, os.strerror(code)))
    if code in (errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP):
        why = "this kernel has none, or one without the flags that are needed"
    means = 'payloads are copied; receive="zerocopy" is an OSError'
    return Finding("", "bad", why, means, "Linux 5.11 or later, and a container that allows getsockopt")


def send() -> Finding:
    """Whether what is sent can be mapped by who receives it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    except OSError as error:
        return Finding("", "bad", reason(error), "what this host sends cannot be mapped by who receives it")
    return Finding("", "good", "there", "payloads can be sent so that they can be mapped")


def segments() -> Finding:
    """Of a connection over loopback."""
    with socket.create_server((_LOOPBACK, 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        segment = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    pages = segment // PAGE
    if not pages:
        to_do = "ip link set lo mtu 65536"
        return Finding("", "bad", f"{segment:,} bytes", "no whole page fits: payloads over loopback are copied", to_do)
    means = f"{pages} whole pages in each on a new connection over loopback, more on an older one"
    return Finding("", "good", f"{segment:,} bytes", means)


QUESTIONS: Final[dict[str, Callable[[], Finding]]] = {
    "TCP_ZEROCOPY_RECEIVE": receive,
    "SO_ZEROCOPY": send,
    "segments": segments,
}
