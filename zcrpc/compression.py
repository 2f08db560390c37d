"""Compression of payloads with zstd, where both sides of a connection want it.

A compressed payload is one zstd frame that says how long its contents are, so a receiver knows what it is in for before
it allocates anything. Both directions work in the event loop, so payloads over `MOST` are not compressed: whoever has
such ones either wants them mapped, or compresses them in a thread.

What was decompressed is counted for as long as a view of it lives, whoever holds it, in whatever thread.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from zcrpc._native import ffi
from zcrpc.arrays import is_array
from zcrpc.errors import ResourceExhausted

FEATURE: Final = "zstd"
MOST: Final = 16 << 20
"""Bytes of payload that may travel compressed: 35 ms of the sender's event loop, 10 to 20 of the receiver's."""

_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # what a zstd frame begins with; a skippable one has others (RFC 8878, 3.1)
# Less than an eighth saved is not worth that the receiver can map nothing and has to decompress.
_SAVED: Final = 8
# Views of arrays of views: numpy itself makes two or three of them.
_NESTED: Final = 16


class CompressionError(ValueError):
    """What came is no payload compressed as the wire wants it."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Compression:
    """How payloads are compressed.

    level: zstd's, −100 (fast) to 22. compress_from: payloads of at least so many bytes are. views: those too that hold
    a view over a region, such as a payload that is passed on. max_memory: bytes of decompressed payloads that may be in
    use at a time, in all connections of a server or a client; what would be more is RESOURCE_EXHAUSTED.
    """

    level: int = 1
    compress_from: int = 1024
    views: bool = False
    max_memory: int = 256 << 20

    def __post_init__(self) -> None:
        for name, least, most in (("level", -100, 22), ("compress_from", 1, MOST), ("max_memory", 0, 1 << 62)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}={value}: must be between {least} and {most}")


Option: TypeAlias = Compression | Literal["zstd"] | None


class Packed:
    """The payload of items that came compressed, and are not wanted yet. Its length is that on the wire."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)


class _Decompressed(io.BytesIO):
    """A decompressed payload. BytesIO exports the very bytes that it was given, and knows when nobody needs them."""

    def __init__(self, data: bytes, freed: deque[int]) -> None:
        super().__init__(data)
        self._bytes = len(data)
        self._freed = freed

    def __del__(self) -> None:
        self._freed.append(self._bytes)


class Packing:
    """Compresses and decompresses for a server or a client: in one event loop, one payload after the other."""

    def __init__(self, options: Compression, max_message: int) -> None:
        """max_message: bytes of a decompressed payload at most. ModuleNotFoundError if zstandard is not there."""
        import zstandard

        self.options = options
        self.packed_in = self.plain_in = self.packed_out = self.plain_out = self.failures = 0
        self._zstd = zstandard
        self._compress = zstandard.ZstdCompressor(level=options.level).compress
        self._decompress = zstandard.ZstdDecompressor(max_window_size=MOST).decompress
        self._most = min(max_message, MOST)
        self._used = 0
        self._freed: deque[int] = deque()  # by whatever thread

    @property
    def used(self) -> int:
        """Bytes of decompressed payloads that somebody holds."""
        while self._freed:
            self._used -= self._freed.popleft()
        return self._used

    def pack(self, buffers: Sequence[bytes | memoryview], length: int) -> bytes | None:
        """A payload compressed; None if it is to be sent as it is."""
        if length > MOST or (not self.options.views and any(map(over_region, buffers))):
            return None
        packed: bytes = self._compress(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        if len(packed) > length - length // _SAVED:
            return None
        self.packed_out += len(packed)
        self.plain_out += length
        return packed

    def unpack(self, packed: bytes | memoryview) -> memoryview:
        """A payload decompressed. CompressionError if it is malformed, ResourceExhausted if it is too long or there is
        no memory left for it."""
        try:
            length = self._announced(packed)
            if length > self._most:
                raise ResourceExhausted(
                    f"a payload of {length} bytes when decompressed is more than the {self._most} that this side takes"
                )
            if self.used + length > self.options.max_memory:
                raise ResourceExhausted(
                    f"decompressed payloads of {self._used} bytes are in use, and {length} more would be too much"
                )
            # Never allocates more than announced. allow_extra_data: what follows the frame is an error.
            plain = self._decompress(packed, allow_extra_data=False)
            if len(plain) != length:
                raise CompressionError(f"{len(plain)} bytes where {length} were announced")
        except self._zstd.ZstdError as error:
            self.failures += 1
            raise CompressionError(str(error)) from None
        except (CompressionError, ResourceExhausted):
            self.failures += 1
            raise
        self.packed_in += len(packed)
        self.plain_in += length
        self._used += length
        held = _Decompressed(plain, self._freed)
        del plain  # or BytesIO would copy it rather than export it
        return held.getbuffer().toreadonly()

    def _announced(self, packed: bytes | memoryview) -> int:
        """How long a zstd frame says that its contents are."""
        if packed[:4] != _MAGIC:
            raise CompressionError("no zstd frame")
        frame = self._zstd.get_frame_parameters(packed)
        if frame.content_size == self._zstd.CONTENTSIZE_UNKNOWN:
            raise CompressionError("a zstd frame that does not say how long its contents are")
        if not frame.content_size:
            raise CompressionError("a zstd frame without contents")
        if frame.window_size > max(MOST, frame.content_size):
            raise CompressionError(f"a zstd window of {frame.window_size} bytes")
        length: int = frame.content_size
        return length


def prepare(option: Option, max_message: int) -> Packing | None:
    """What the option `compression` of a server or a client stands for. ValueError for what it cannot be."""
    if option is None:
        return None
    options = Compression() if option == FEATURE else option
    if not isinstance(options, Compression):
        raise ValueError(f"compression={option!r}: must be 'zstd', a zcrpc.Compression or None")
    try:
        return Packing(options, max_message)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"compression needs {error.name}: pip install 'zcrpc[zstd]'", name=error.name
        ) from None


def over_region(buffer: Any) -> bool:
    """Whether a buffer is a view over a received payload in a region, be it by way of an array."""
    owner = buffer
    for _ in range(_NESTED):
        if type(owner) is memoryview:
            owner = owner.obj
        elif is_array(type(owner)) and getattr(owner, "base", None) is not None:  # array.array owns what it has
            owner = owner.base
        else:
            break
    return isinstance(owner, ffi.buffer)
