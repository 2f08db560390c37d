"""The wire as Python sees it: frame kinds, the layouts that are packed here, and the hello. docs/wire.md describes the
whole.

The native core parses frames and hands them over as events. Small frames are written by the path (native/python), those
whose payloads are sent by reference get their header here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

from zcrpc.metadata import DEFAULT_LIMIT

# enum zc_kind
HELLO: Final = 1
REQUEST: Final = 2
RESPONSE: Final = 3
ERROR: Final = 4
CHUNK: Final = 5
CANCEL: Final = 6
PING: Final = 7
PONG: Final = 8
GOAWAY: Final = 9
DATA: Final = 10
END: Final = 11
CREDIT: Final = 12
# enum zc_event_kind
EVENT_CLOSED: Final = 32
EVENT_SENT: Final = 33
EVENT_REFUSED: Final = 34

# A flag of frames. ERROR: no handler has seen the call. GOAWAY: all calls that were begun are answered, so those
# without an answer when the stream ends were not begun.
FLAG_UNPROCESSED: Final = 0x08

# A flag of REQUEST, RESPONSE and DATA: the payload is compressed.
COMPRESSED: Final = 0x10

# ZC_FLAG_*, of a REQUEST
STREAM_IN: Final = 2
STREAM_OUT: Final = 4
STREAMS: Final = STREAM_IN | STREAM_OUT

PREFACE: Final = b"ZCRPC\r\n\x01"
PAGE: Final = 4096
PING_LIMIT: Final = 64  # bytes of header that a ping may carry
TOKEN_LIMIT: Final = 8192  # characters; signed tokens of identity providers have 1,000 to 4,000

FRAME: Final = struct.Struct("<BBHIIIQ")
"""kind, flags, method or status, stream, header length, deadline in ms or credit in bytes, payload length."""

SOFTWARE: Final = "zcrpc/0.1.0"

STREAM_WINDOW: Final = 1 << 20
CONNECTION_WINDOW: Final = 16 << 20
MOST_CREDIT: Final = (1 << 31) - 1

_Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Window = Annotated[int, msgspec.Meta(ge=1, le=MOST_CREDIT)]


@dataclass(slots=True, frozen=True, kw_only=True)
class Limits:
    """What a side accepts: bytes of a frame's header, bytes of a payload, calls in flight on the connection; bytes of
    items that were not taken yet, in one stream and in all streams of the connection; bytes of a call's metadata."""

    header: Annotated[int, msgspec.Meta(ge=1024, lt=1 << 32)]
    payload: _Size
    in_flight: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    stream_window: _Window = STREAM_WINDOW
    connection_window: _Window = CONNECTION_WINDOW
    metadata: _Size = DEFAULT_LIMIT

    def __post_init__(self) -> None:
        for name in ("stream_window", "connection_window"):
            if not 1 <= getattr(self, name) <= MOST_CREDIT:
                raise ValueError(f"{name}={getattr(self, name)}: must be between 1 and {MOST_CREDIT}")


@dataclass(slots=True, frozen=True, kw_only=True)
class Hello:
    """The first frame in each direction. Keys that are not known are ignored, so that later versions can add some.

    `chunk`: bytes of payload that one chunk frame towards this side may carry, whole pages. `map_from`: payloads of at
    least so many bytes are to be sent in whole pages, their header alone, since this side receives them by mapping; 0:
    none. `methods`: names and numbers of what this side serves. `token`: what a client shows to a server that asks who
    it is.
    """

    limits: Limits
    chunk: Annotated[int, msgspec.Meta(ge=PAGE, le=1 << 30, multiple_of=PAGE)]
    map_from: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    software: Annotated[str, msgspec.Meta(max_length=256)] = SOFTWARE
    features: list[str] = field(default_factory=list)
    methods: dict[str, Annotated[int, msgspec.Meta(ge=1, lt=1 << 16)]] = field(default_factory=dict)
    token: Annotated[str, msgspec.Meta(max_length=TOKEN_LIMIT)] = field(default="", repr=False)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Hello)


def encode_hello(hello: Hello) -> bytes:
    """The hello's msgpack header. Without a token, if there is none."""
    fields = msgspec.to_builtins(hello)
    if not hello.token:
        del fields["token"]
    return _encoder.encode(fields)


def decode_hello(header: bytes) -> Hello:
    """The peer's hello. ValueError says what is wrong with it."""
    try:
        return _decoder.decode(header)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def encode_frame(
    kind: int,
    header: bytes = b"",
    *,
    method: int = 0,
    stream: int = 0,
    deadline_ms: int = 0,
    payload_length: int = 0,
    flags: int = 0,
) -> bytes:
    """A frame without its payload."""
    return FRAME.pack(kind, flags, method, stream, len(header), deadline_ms, payload_length) + header
