"""Small results of every kind, for the tests of the report: possible figures, different in each round."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

from zcrpc.lab.report.kinds import KINDS

_BY_TYPE: dict[str, Any] = {
    "str": "",
    "int": 1000,
    "float": 2.5,
    "bool": False,
    "int | None": 10,
    "float | None": 1.5,
    "dict[str, int]": {},
    "tuple[float, ...]": (),
}
_PERCENTILES = {"p50_us": 0.5, "p99_us": 4.0, "p999_us": 60.0, "max_us": 900.0}
_SETTINGS: dict[str, dict[str, Any]] = {
    "seed": {
        "strategy": "global",
        "scenario": "readers-only",
        "round": 0,
        "connections": 100,
        "payload_bytes": 4096,
        "receive_threads": 2,
        "connections_per_region": 1,
        "receive": "zerocopy",
        "requests_per_second": 90_000.0,
        "server_cpu_us_per_request": 10.0,
    },
    "bench": {
        "strategy": "global",
        "loop": "closed",
        "layout": "disjoint",
        "threads": 1,
        "regions": 16,
        "hold_ns": 0,
        "write_percent": 0.0,
        "round": 0,
        "operations_per_second": 2e7,
    },
    "kernel": {
        "strategy": "kernel",
        "kernel": "6.12.5-generic",
        "writer": "none",
        "round": 0,
        "receivers": 1,
        "payload_bytes": 4096,
        "area_mib": 64,
        "acquisitions_per_receive": 0.0,
    },
    "upload": {"receive": "copy", "payload_bytes": 1 << 20, "mapped_percent": 0.0},
    "torture": {"strategy": "global", "operations": 5_000_000},
    "conflicts": {"strategy": "global", "way": "holding", "disjoint_lines": 2.0, "hot_lines": 2.0},
    "simulate": {"scenario": "saturated", "topology": "xeon", "b": 1, "cores": 2, "locks": "global", "threads": 2},
    "simulate-validation": {"series": "pthread rwlock", "unit": "ns", "threads": 2, "verdict": "pass"},
}


def row_of(kind: str, **changes: Any) -> Any:
    """A row of a kind, with some fields as given."""
    row = KINDS[kind].row
    values = {}
    for field in dataclasses.fields(row):
        ending = next((value for name, value in _PERCENTILES.items() if field.name.endswith(name)), None)
        values[field.name] = _BY_TYPE.get(str(field.type)) if ending is None else ending
    return row(**(values | _SETTINGS[kind] | changes))


def _seed() -> list[Any]:
    return [
        row_of(
            "seed",
            strategy=strategy,
            scenario=scenario,
            round=number,
            requests_per_second=90_000.0 + 500 * number,
            lock_path_share_percent=0.4 + 0.05 * number + 6 * (strategy == "global"),
            lock_wait_p999_us=60.0 + number + 1500 * (strategy == "global") * (scenario == "writer-storm"),
            writer_interval_us=1000 * (scenario == "writer-storm"),
            writer_hold_us=500 * (scenario == "writer-storm"),
        )
        for number, scenario, strategy in product(
            range(3), ("readers-only", "writer-storm"), ("global", "per-region", "per-region-6.4-convert")
        )
    ]


def _bench() -> list[Any]:
    speeds = {"global": 2e7, "per-region": 4e7, "speculative": 9e7}
    return [
        row_of(
            "bench",
            strategy=strategy,
            loop=loop,
            layout=layout,
            threads=threads,
            write_percent=percent,
            round=number,
            operations_per_second=speeds[strategy] * (1 + (strategy != "global") * (threads - 1)) / (1 + percent),
            read_latency_p999_us=20.0 * (1 + percent) * (1 + number),
        )
        for number, strategy, loop, layout, threads, percent in product(
            range(2), speeds, ("closed", "open"), ("disjoint", "hot"), (1, 2), (0.0, 0.1, 1.0, 10.0, 100.0)
        )
        if layout == "disjoint" or threads > 1
    ]


def _kernel() -> list[Any]:
    kernels = (("6.1.0-44-amd64", True, 1.0), ("6.12.5-amd64", True, 0.0), ("6.18.1", False, 0.0))
    rows = [
        row_of("kernel", kernel=name, emulated=emulated, writer=writer, round=number, acquisitions_per_receive=count)
        for number, (name, emulated, count), writer in product(range(2), kernels, ("none", "mprotect", "mmap"))
    ]
    beside = product(range(2), ("global", "per-region"), ("none", "write-lock"))
    return rows + [
        row_of("kernel", strategy=name, kernel="6.18.1", writer=writer, round=number, acquisitions_per_receive=None)
        for number, name, writer in beside
    ]


def _upload() -> list[Any]:
    sizes = {4096: 0.05, 65536: 0.5, 1 << 20: 2.5, 16 << 20: 5.0}
    return [
        row_of(
            "upload",
            receive=way,
            payload_bytes=size,
            round=number,
            gigabytes_per_second=speed * (1 + 0.1 * number) * (1 if way == "copy" else 0.5 + speed / 4),
            mapped_percent=100.0 * (way == "zerocopy" and size > 4096),
        )
        for number, way, (size, speed) in product(range(3), ("zerocopy", "copy", "auto"), sizes.items())
    ]


def _simulate() -> list[Any]:
    return [
        row_of(
            "simulate",
            scenario=scenario,
            locks=name,
            cores=cores,
            threads=cores,
            operations_per_second=96_000.0 * (min(cores, 16) if name == "global" else cores),
            wait_p99_us=0.3 + 400 * (name == "global"),
            offered_per_second=None if scenario == "saturated" else 67_000.0 * cores,
        )
        for scenario, name, cores in product(
            ("saturated", "readers-only", "writer-storm"), ("global", "per-region"), (1, 2, 4, 16, 64, 256)
        )
    ]


def _validation() -> list[Any]:
    return [
        row_of(
            "simulate-validation",
            series=f"pthread rwlock, {hold} µs section",
            threads=threads,
            published=100.0 * threads**0.3 + hold,
            low=90.0 * threads**0.3 + hold,
            high=120.0 * threads**0.3 + hold,
            predicted=110.0 * threads**0.25 + hold,
            verdict="calibrated" if threads == 28 else "pass" if threads < 112 else "fail",
        )
        for hold, threads in product((0, 9, 100), (1, 8, 28, 112, 444))
    ]


ROWS: dict[str, list[Any]] = {
    "seed": _seed(),
    "bench": _bench(),
    "kernel": _kernel(),
    "upload": _upload(),
    "torture": [row_of("torture", strategy=name) for name in ("global", "per-region", "my-lock")],
    "conflicts": [
        row_of("conflicts"),
        row_of("conflicts", strategy="per-region", disjoint_lines=0.0),
        row_of("conflicts", strategy="speculative", way="looking", disjoint_lines=0.0, hot_lines=0.0),
    ],
    "simulate": _simulate(),
    "simulate-validation": _validation(),
}
