"""TLS: bytes of a TLS socket, carried to and from one that the reactor can read.

    peer ←TLS→ secure socket ↔ Tunnel ↔ socketpair ↔ reactor

The reactor receives plain bytes straight to where they belong. With TLS somebody has to decrypt them first, and that is
Python's ssl module, so any SSLContext will do, with all that it can. The price is two more copies and a turn of the
event loop; docs/tls.md has the figures.

A tunnel has no queue: it reads from one side only when the other has taken everything, so that backpressure goes
through it in both directions. At most one piece of what was read is kept each way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Final

from zcrpc.forking import remember

_log = logging.getLogger("zcrpc.tls")

# Read at once; a slice of what is larger, however large. Sixteen TLS records.
_PIECE: Final = 256 << 10
# Pieces after which the event loop gets its turn.
_PIECES_AT_ONCE: Final = 4
# How long a peer has to answer our end of the connection with its own.
_LINGER_SECONDS: Final = 2.0

_scratch = threading.local()


def validate(context: ssl.SSLContext | None, *, server_side: bool) -> None:
    """TypeError or ValueError for what can be no context of this side."""
    if context is None:
        return
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl={context!r}: must be an ssl.SSLContext")
    wrong = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if context.protocol == wrong:
        raise ValueError(
            "ssl: a client's context at a server" if server_side else "ssl: a server's context at a client"
        )


def describe(error: BaseException) -> str:
    """What is wrong, for people: OpenSSL's reason without its codes and file names."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate does not verify: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        return "the peer closed the connection without a word"
    if isinstance(error, ssl.SSLError) and error.reason:
        reason = error.reason.replace("_", " ").lower()
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"):
            reason += "; does the peer speak TLS?"
        return reason
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    return type(error).__name__


async def open_tunnel(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | None = None,
) -> Tunnel:
    """Shakes hands over a connected socket, which belongs to the tunnel from now on, and is closed on an error. Raises
    OSError, of which ssl.SSLError is one, or ValueError for a context or hostname that does not fit."""
    try:
        secure = context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except BaseException:
        sock.close()
        raise
    try:
        secure.setblocking(False)
        await _shake_hands(loop, secure)
        return Tunnel(loop, secure)
    except BaseException:
        secure.close()
        raise


async def _shake_hands(loop: asyncio.AbstractEventLoop, secure: ssl.SSLSocket) -> None:
    fd = secure.fileno()
    while True:
        ready: asyncio.Future[None] = loop.create_future()
        try:
            secure.do_handshake()
            return
        except ssl.SSLWantReadError:
            add, remove = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            add, remove = loop.add_writer, loop.remove_writer
        add(fd, _set_ready, ready)
        try:
            await ready
        finally:
            remove(fd)


def _set_ready(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class Tunnel:
    """Carries bytes both ways until one side has ended and the other has been told.

    `inner` is the end for the reactor; detach it there. `start` it then. `on_end(error)` is called when the secure side
    has ended, with None if it was in good order, before the reactor can notice; `on_close` when all is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, secure: ssl.SSLSocket) -> None:
        self._loop = loop
        self._secure = secure
        with contextlib.suppress(OSError):  # a Unix socket has none
            secure.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._plain, self.inner = socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._to_plain = memoryview(b"")  # what the other side has not taken yet
        self._to_secure = memoryview(b"")
        self._read_needs_write = self._write_needs_read = False  # a renegotiation, or a new key
        self._secure_ended = self._plain_ended = False
        self._linger: asyncio.TimerHandle | None = None
        self.closed = False
        self.on_end: Callable[[OSError | None], None] = lambda error: None
        self.on_close: Callable[[], None] = lambda: None
        remember(self)

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """What `SSLSocket.getpeercert` gives; None if the peer has shown none, or it was not asked for."""
        return self._secure.getpeercert() or None

    def abandon(self) -> None:
        """This process was forked from the tunnel's."""
        self.closed = True
        for sock in (self._secure, self._plain, self.inner):
            sock.close()

    def start(self) -> None:
        self._loop.add_reader(self._secure.fileno(), self._secure_readable)
        self._loop.add_reader(self._plain.fileno(), self._plain_readable)
        self._loop.call_soon(self._secure_readable)  # what came with the handshake lies in OpenSSL's buffer

    # ---- in: secure → plain

    def _secure_readable(self) -> None:
        if self._write_needs_read:
            self._write_needs_read = False
            self._flush_secure()
        for _ in range(_PIECES_AT_ONCE):
            if self.closed or self._to_plain or self._secure_ended or not self._pull():
                return
        self._loop.call_soon(self._secure_readable)  # OpenSSL's buffer makes no socket readable

    def _pull(self) -> bool:
        """Carries a piece. Whether there may be more."""
        scratch = _buffer()
        used, more = 0, True
        error: OSError | None = None
        while used < _PIECE and more:
            try:
                count = self._secure.recv_into(scratch[used:])
                used += count
                more = count > 0
                self._secure_ended = not more
            except ssl.SSLWantReadError:
                more = False
            except ssl.SSLWantWriteError:
                more = False
                self._read_needs_write = True
                self._loop.add_writer(self._secure.fileno(), self._secure_writable)
            except OSError as failure:
                more, error, self._secure_ended = False, failure, True
        if self._secure_ended:
            self._loop.remove_reader(self._secure.fileno())
            self.on_end(error)
        if used:
            self._give_plain(scratch[:used])
        elif self._secure_ended:
            self._end_plain()
        return more

    def _give_plain(self, data: memoryview) -> None:
        try:
            sent = self._plain.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._to_plain = memoryview(bytes(data[sent:]))
            if not self._secure_ended:
                self._loop.remove_reader(self._secure.fileno())
            self._loop.add_writer(self._plain.fileno(), self._plain_writable)
        elif self._secure_ended:
            self._end_plain()

    def _plain_writable(self) -> None:
        try:
            self._to_plain = self._to_plain[self._plain.send(self._to_plain) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._to_plain:
            return
        self._loop.remove_writer(self._plain.fileno())
        if self._secure_ended:
            self._end_plain()
        else:
            self._loop.add_reader(self._secure.fileno(), self._secure_readable)
            self._secure_readable()

    def _end_plain(self) -> None:
        """The peer will send nothing more."""
        if self._plain_ended:
            self.close()
            return
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_WR)
        self._wait_for_the_end()

    # ---- out: plain → secure

    def _plain_readable(self) -> None:
        for _ in range(_PIECES_AT_ONCE):
            if self.closed or self._to_secure or self._plain_ended or not self._push():
                return

    def _push(self) -> bool:
        """Carries a piece. Whether there may be more."""
        scratch = _buffer()
        try:
            count = self._plain.recv_into(scratch)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        if not count:
            self._plain_ended = True
            self._loop.remove_reader(self._plain.fileno())
            self._end_secure()
            return False
        left = self._send_secure(scratch[:count])
        if left and not self.closed:
            self._to_secure = memoryview(bytes(left))
            self._loop.remove_reader(self._plain.fileno())
        return count == _PIECE

    def _send_secure(self, data: memoryview) -> memoryview:
        """What was not taken; it must be offered again as it is."""
        try:
            while data:
                data = data[self._secure.send(data) :]
        except ssl.SSLWantWriteError:
            self._loop.add_writer(self._secure.fileno(), self._secure_writable)
        except ssl.SSLWantReadError:
            self._write_needs_read = True
        except OSError as error:
            if not self._secure_ended:
                self.on_end(error)
            self.close()
        return data

    def _secure_writable(self) -> None:
        self._loop.remove_writer(self._secure.fileno())
        if self._read_needs_write:
            self._read_needs_write = False
            self._secure_readable()
        if not self.closed:
            self._flush_secure()

    def _flush_secure(self) -> None:
        if not self._to_secure:
            return
        self._to_secure = self._send_secure(self._to_secure)
        if not self._to_secure and not self.closed:
            self._loop.add_reader(self._plain.fileno(), self._plain_readable)

    def _end_secure(self) -> None:
        """Our side will send nothing more: says so, and waits for the peer to say the same."""
        with contextlib.suppress(OSError):  # that the peer has not said so yet is one
            self._secure.unwrap()
        if self._secure_ended:
            self.close()
            return
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._secure, socket.SHUT_WR)  # SSLSocket's own would forget TLS
        self._wait_for_the_end()

    # ---- end

    def _wait_for_the_end(self) -> None:
        if self._linger is None and not self.closed:
            self._linger = self._loop.call_later(_LINGER_SECONDS, self.close)

    def close(self) -> None:
        """Ends both sides at once."""
        if self.closed:
            return
        self.closed = True
        if self._linger is not None:
            self._linger.cancel()
        for sock in (self._secure, self._plain):
            if not self._loop.is_closed():
                self._loop.remove_reader(sock.fileno())
                self._loop.remove_writer(sock.fileno())
            sock.close()
        if self.inner.fileno() >= 0:
            self.inner.close()
        self.on_close()


def _buffer() -> memoryview:
    """Of this thread; empty between any two calls."""
    found: memoryview | None = getattr(_scratch, "buffer", None)
    if found is None:
        found = _scratch.buffer = memoryview(bytearray(_PIECE))
    return found
