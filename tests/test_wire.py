import msgspec
import pytest

from zcrpc import wire
from zcrpc.wire import Hello, Limits

LIMITS = Limits(header=65536, payload=1 << 30, in_flight=1024)


def test_the_header_of_a_frame_has_the_size_of_the_contract() -> None:
    assert wire.FRAME.size == 24


def test_frame_is_laid_out_as_documented() -> None:
    frame = wire.encode_frame(
        wire.REQUEST, b"\x90", method=0x0102, stream=0x03040506, deadline_ms=250, payload_length=1 << 40
    )
    assert frame[0] == 2
    assert frame[1] == 0
    assert frame[2:4] == b"\x02\x01"
    assert frame[4:8] == b"\x06\x05\x04\x03"
    assert int.from_bytes(frame[8:12], "little") == 1
    assert int.from_bytes(frame[12:16], "little") == 250
    assert int.from_bytes(frame[16:24], "little") == 1 << 40
    assert frame[24:] == b"\x90"


def test_hello_round_trip() -> None:
    hello = Hello(limits=LIMITS, chunk=1 << 20, map_from=65536, features=["x"], methods={"Store.put": 1})
    assert wire.decode_hello(wire.encode_hello(hello)) == hello


def test_hello_of_a_later_version_is_understood() -> None:
    header = msgspec.msgpack.encode(
        {
            "limits": {"header": 4096, "payload": 1, "in_flight": 1, "weight": 3},
            "chunk": 4096,
            "colour": "blue",
            "software": "zcrpc/9",
        }
    )
    hello = wire.decode_hello(header)
    assert hello == Hello(limits=Limits(header=4096, payload=1, in_flight=1), chunk=4096, software="zcrpc/9")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chunk": 0}, "chunk"),
        ({"chunk": 5000}, "chunk"),
        ({"chunk": 1 << 31}, "chunk"),
        ({"chunk": "1"}, "chunk"),
        ({"map_from": -1}, "map_from"),
        ({"map_from": 1 << 32}, "map_from"),
        ({"limits": None}, "limits"),
        ({"limits": {"header": 1, "payload": 1, "in_flight": 1}}, "header"),
        ({"limits": {"header": 4096, "payload": -1, "in_flight": 1}}, "payload"),
        ({"limits": {"header": 4096, "payload": 1, "in_flight": 0}}, "in_flight"),
        ({"methods": {"m": 0}}, "methods"),
        ({"methods": {"m": 65536}}, "methods"),
        ({"methods": {"m": "1"}}, "methods"),
        ({"methods": [1]}, "methods"),
        ({"software": "x" * 300}, "software"),
        ({"features": "x"}, "features"),
    ],
)
def test_hello_out_of_range_is_refused_and_the_field_named(change: dict[str, object], named: str) -> None:
    good = msgspec.to_builtins(Hello(limits=LIMITS, chunk=4096))
    with pytest.raises(ValueError, match=named):
        wire.decode_hello(msgspec.msgpack.encode(good | change))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x80",
        b"\xc1",
        b"\x81",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa6limits" + b"\x91" * 50000,
        b"\x81\xa1a" + b"\x91" * 50000,
    ],
    ids=["empty", "nil", "array", "no limits", "invalid", "truncated", "huge map", "nested value", "nested unknown"],
)
def test_hello_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.decode_hello(header)
