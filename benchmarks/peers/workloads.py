"""What the stacks are asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

KIB, MIB = 1 << 10, 1 << 20
Work = Literal["echo", "upload", "download", "stream"]


@dataclass(slots=True, frozen=True)
class Workload:
    """A closed loop: each connection keeps `in_flight` calls going.

    Args:
        work: "echo": the reply is the request; "upload": the handler touches every page and answers with 16 bytes;
            "download": the client touches every page; "stream": the server sends items of 64 bytes, and each call is
            for `items` of them.
        payload: bytes of a request, of a download, or of an item.
        idle: connections besides that have made one call and make no more.
        uploads: connections of a second client that upload 16 MiB meanwhile.
        gist: the one figure to compare stacks by.
    """

    name: str
    title: str
    work: Work
    payload: int
    connections: int = 1
    in_flight: int = 1
    idle: int = 0
    uploads: int = 0
    items: int = 1
    gist: Literal["rate", "bulk", "p50", "p99"] = "rate"


UPLOAD_BESIDE: Final = Workload("", "2 connections upload 16 MiB", "upload", 16 * MIB, connections=2, gist="bulk")

WORKLOADS: Final = {
    each.name: each
    for each in (
        Workload("echo", "100 connections, echo of 4 KiB", "echo", 4 * KIB, connections=100),
        Workload("sequential", "1 connection, echo of 64 B, one after the other", "echo", 64, gist="p50"),
        Workload("in-flight", "1 connection, echo of 64 B, 64 in flight", "echo", 64, in_flight=64),
        Workload("upload-1", "upload of 1 MiB", "upload", MIB, gist="bulk"),
        Workload("upload-16", "upload of 16 MiB", "upload", 16 * MIB, gist="bulk"),
        Workload("download-1", "download of 1 MiB", "download", MIB, gist="bulk"),
        Workload("download-16", "download of 16 MiB", "download", 16 * MIB, gist="bulk"),
        Workload(
            "beside-uploads",
            "50 connections, echo of 64 B, while 2 others upload 16 MiB",
            "echo",
            64,
            connections=50,
            uploads=2,
            gist="p99",
        ),
        Workload(
            "mostly-idle",
            "1,000 connections, 100 of them active: echo of 4 KiB",
            "echo",
            4 * KIB,
            connections=100,
            idle=900,
        ),
        Workload("stream", "server stream, items of 64 B", "stream", 64, items=5000),
    )
}
