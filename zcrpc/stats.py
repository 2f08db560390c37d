"""What a server or a client has done so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from zcrpc._native import lib
from zcrpc.compression import Packing
from zcrpc.reactor import Reactor
from zcrpc.regions import LockCounters, RegionMap

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
class Stats:
    """Counters since the start, and gauges of this moment. Bytes are bytes.

    `requests`: calls received (of a client: made). `errors`: of these, answered with a status other than OK. `calls`:
    in flight now. `queued`: received and not begun yet. `refused`: connections beyond the limit. `accept_pauses`: times
    that new connections had to wait, since there was no file descriptor or no memory for them. `handshakes_failed`:
    connections closed for want of TLS. `unauthenticated`: connections whose credentials were not accepted. `exhausted`:
    calls answered with RESOURCE_EXHAUSTED, by the limit that was reached: in_flight, calls, queued, message, metadata,
    waiting, decompressed. `threads`: blocking handlers that run now. `waiting`: calls that wait for a thread.
    `fallbacks`: payloads that lie in a region and were not mapped, by reason: policy ("copy", or "auto" decided so for
    the socket), unsupported, unpadded (the sender did not send whole pages), small, cheaper ("auto" decided so for the
    size), unmappable. `paused`: connections that are not read now, for want of memory or because their peer does not
    read. `streams`: open now, each direction of a call for itself. `credit_stalls`: times that one had to wait for its
    peer to take items. `violations`: connections closed because their peer broke the protocol.
    `compressed_bytes_in`, `compressed_bytes_out`: payloads that travelled compressed, and `decompressed_bytes_in`,
    `uncompressed_bytes_out`: what they were without. `decompressed_bytes`: of those that came, still in use.
    `decompressions_failed`: payloads that were malformed, too long or too much.
    """

    connections: int
    requests: int
    errors: int
    calls: int
    queued: int
    refused: int
    accept_pauses: int
    handshakes_failed: int
    unauthenticated: int
    exhausted: dict[str, int]
    threads: int
    waiting: int
    payload_bytes_mapped: int
    payload_bytes_copied: int
    mapped_percent: float
    fallbacks: dict[str, int]
    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int
    outbound_bytes: int
    paused: int
    sends_zerocopy: int
    sends_zerocopy_copied: int
    streams: int
    items_in: int
    items_out: int
    credit_stalls: int
    violations: int
    compressed_bytes_in: int
    decompressed_bytes_in: int
    compressed_bytes_out: int
    uncompressed_bytes_out: int
    decompressed_bytes: int
    decompressions_failed: int
    regions: int
    arena_bytes: int
    idle_bytes: int
    leases: int
    leased_bytes: int
    recycles: int
    budget_refusals: int
    lock: LockCounters


_SUMMED: Final = (
    "payload_bytes_mapped",
    "payload_bytes_copied",
    "frames_in",
    "frames_out",
    "bytes_in",
    "bytes_out",
    "outbound_bytes",
    "paused",
    "sends_zerocopy",
    "sends_zerocopy_copied",
)


def collect(
    reactors: Iterable[Reactor],
    regions: RegionMap,
    *,
    connections: int,
    requests: int,
    errors: int,
    calls: int,
    refused: int = 0,
    accept_pauses: int = 0,
    handshakes_failed: int = 0,
    queued: int = 0,
    unauthenticated: int = 0,
    exhausted: Mapping[str, int] = MappingProxyType({}),
    threads: int = 0,
    waiting: int = 0,
    packing: Packing | None = None,
) -> Stats:
    """Sums struct zc_reactor_stats of several reactors on one region map."""
    reactors = list(reactors)
    native = [each.stats() for each in reactors]
    sums = {name: sum(getattr(each, name) for each in native) for name in _SUMMED}
    streams = [each.streams for each in reactors]
    memory = regions.stats()
    mapped, copied = sums["payload_bytes_mapped"], sums["payload_bytes_copied"]
    return Stats(
        connections=connections,
        requests=requests,
        errors=errors,
        calls=calls,
        queued=queued,
        refused=refused,
        accept_pauses=accept_pauses,
        handshakes_failed=handshakes_failed,
        unauthenticated=unauthenticated,
        exhausted=dict(exhausted),
        threads=threads,
        waiting=waiting,
        mapped_percent=100.0 * mapped / (mapped + copied) if mapped + copied else 0.0,
        fallbacks={name: sum(each.fallbacks[index] for each in native) for name, index in _REASONS.items()},
        streams=sum(each.open for each in streams),
        items_in=sum(each.items_in for each in streams),
        items_out=sum(each.items_out for each in streams),
        credit_stalls=sum(each.stalls for each in streams),
        violations=sum(each.violations for each in reactors),
        compressed_bytes_in=packing.packed_in if packing else 0,
        decompressed_bytes_in=packing.plain_in if packing else 0,
        compressed_bytes_out=packing.packed_out if packing else 0,
        uncompressed_bytes_out=packing.plain_out if packing else 0,
        decompressed_bytes=packing.used if packing else 0,
        decompressions_failed=packing.failures if packing else 0,
        regions=memory.regions,
        arena_bytes=memory.arena_bytes,
        idle_bytes=memory.idle_bytes,
        leases=memory.leases,
        leased_bytes=memory.leased_bytes,
        recycles=memory.recycles,
        budget_refusals=memory.budget_refusals,
        lock=memory.lock,
        **sums,
    )
