"""What a server or a client has done so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from zcrpc._native import ffi, lib
from zcrpc.compression import Packing
from zcrpc.counting import counter, gauge
from zcrpc.reactor import Reactor
from zcrpc.regions import MapStats, RegionMap

# enum zc_fallback: why a payload that lies in a region was not mapped.
_REASONS: Final[dict[str, int]] = {
    "policy": lib.ZC_FALLBACK_POLICY,
    "unsupported": lib.ZC_FALLBACK_UNSUPPORTED,
    "unpadded": lib.ZC_FALLBACK_UNPADDED,
    "small": lib.ZC_FALLBACK_SMALL,
    "cheaper": lib.ZC_FALLBACK_CHEAPER,
    "unmappable": lib.ZC_FALLBACK_UNMAPPABLE,
}


@dataclass(slots=True, frozen=True, kw_only=True)
class Stats(MapStats):
    """Counters since the start, and gauges of this moment; those of the region map besides. Bytes are bytes.

    `exhausted`: calls answered with RESOURCE_EXHAUSTED, by the limit that was reached: in_flight, calls, queued,
    message, metadata, waiting, decompressed. `mapped_percent`: of the bytes of payloads received into regions.
    `fallbacks`: payloads that lie in a region and were not mapped, by reason: policy ("copy", or "auto" decided so for
    the socket), unsupported, unpadded (the sender did not send whole pages), small, cheaper ("auto" decided so for the
    size), unmappable. `lock`: what the lock strategy has counted.
    """

    connections: int = gauge("Connections that are open.")
    requests: int = counter("Calls received; of a client: made.")
    errors: int = counter("Calls answered with a status other than OK.")
    expired: int = counter("Calls of a server whose deadline passed before they were done, or begun.")
    calls: int = gauge("Calls whose handlers wait for something; of a client: in flight.")
    queued: int = gauge("Calls that have come and are not begun.")
    refused: int = counter("Connections beyond the limit.")
    retired: int = counter("Connections that had reached their age.")
    handshakes_failed: int = counter("Connections that did not get through TLS.")
    unauthenticated: int = counter("Connections whose credentials were not accepted.")
    exhausted: dict[str, int] = field(default_factory=dict)
    threads: int = gauge("Blocking handlers that run.")
    waiting: int = gauge("Calls of blocking handlers that wait for a thread.")
    payload_bytes_mapped: int = counter("Bytes of payloads that were mapped.")
    payload_bytes_copied: int = counter("Bytes of payloads that were copied into regions.")
    mapped_percent: float = 0.0
    fallbacks: dict[str, int] = field(default_factory=dict)
    frames_in: int = counter("Frames received.")
    frames_out: int = counter("Frames sent.")
    bytes_in: int = counter("Bytes received.")
    bytes_out: int = counter("Bytes sent.")
    outbound_bytes: int = gauge("Bytes that wait to be sent.")
    paused: int = gauge("Connections that are not read now, for want of memory or because their peer does not read.")
    sends_zerocopy: int = counter("Payloads sent without a copy.")
    sends_zerocopy_copied: int = counter("Payloads that the kernel copied although they were to be sent without.")
    streams: int = gauge("Streams that are open, each direction of a call for itself.")
    items_in: int = counter("Items of streams received.")
    items_out: int = counter("Items of streams sent.")
    credit_stalls: int = counter("Times that a stream had to wait for its peer to take items.")
    violations: int = counter("Connections closed because their peer broke the protocol.")
    timed_out: int = counter("Connections closed for want of a hello, of an identity, or of an answer to a ping.")
    compressed_bytes_in: int = counter("Bytes of payloads that came compressed.")
    decompressed_bytes_in: int = counter("Bytes that they are decompressed.")
    compressed_bytes_out: int = counter("Bytes of payloads that were sent compressed.")
    uncompressed_bytes_out: int = counter("Bytes that they were before.")
    decompressed_bytes: int = gauge("Bytes of decompressed payloads that are still in use.")
    decompressions_failed: int = counter("Payloads whose compression was malformed, or of which there was too much.")


_OF_REACTORS: Final = [
    name for name, _ in ffi.typeof("struct zc_reactor_stats").fields if name in Stats.__slots__ and name != "fallbacks"
]


def collect(reactors: Iterable[Reactor], regions: RegionMap, packing: Packing | None = None, **own: Any) -> Stats:
    """The statistics of several reactors on one region map, and what a server or a client counts itself: `own`, fields
    of `Stats` by name."""
    reactors = list(reactors)
    native = [each.stats() for each in reactors]
    sums = {name: sum(getattr(each, name) for each in native) for name in _OF_REACTORS}
    mapped, copied = sums["payload_bytes_mapped"], sums["payload_bytes_copied"]
    memory = regions.stats()
    found = sums | {each.name: getattr(memory, each.name) for each in fields(memory)}
    found |= {
        "mapped_percent": 100.0 * mapped / (mapped + copied) if mapped + copied else 0.0,
        "fallbacks": {name: sum(each.fallbacks[index] for each in native) for name, index in _REASONS.items()},
        "streams": sum(each.streams.open for each in reactors),
        "items_in": sum(each.streams.items_in for each in reactors),
        "items_out": sum(each.streams.items_out for each in reactors),
        "credit_stalls": sum(each.streams.stalls for each in reactors),
        "violations": sum(each.violations for each in reactors),
        "timed_out": sum(each.timed_out for each in reactors),
    }
    if packing is not None:
        found |= {
            "compressed_bytes_in": packing.packed_in,
            "decompressed_bytes_in": packing.plain_in,
            "compressed_bytes_out": packing.packed_out,
            "uncompressed_bytes_out": packing.plain_out,
            "decompressed_bytes": packing.used,
            "decompressions_failed": packing.failures,
        }
    return Stats(**found | own)
