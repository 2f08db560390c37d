"""The figures that zcrpc is to reach, each measured in one run as medians of alternating rounds, beside their targets.

    python benchmarks/figures.py [--rounds 5] [--soak 1000000] [--json FILE] [name …]

With names, only those; without, all of them: about ten minutes on two cores. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median

import beside_uploads
import connections
import failover
import importing
import lock_figures
import peer_figures
import soak
import streams
from peers import zcrpc_server
from rich.console import Console
from rich.table import Table
from rounds import alternate, medians
from targets import Figure, Settings

from zcrpc.balancing import PICKERS
from zcrpc.lab import seed, upload

KIB, MIB = 1 << 10, 1 << 20
SIZES = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB]


def mapped(settings: Settings) -> Iterator[Figure]:
    """Zerocopy forced: is everything mapped, and right?"""
    for payload in (MIB, 16 * MIB):
        runs = [upload.run("zerocopy", payload, 1.0) for _ in range(settings.rounds)]
        percent, wrong = min(each.mapped_percent for each in runs), sum(each.wrong for each in runs)
        yield Figure(
            f"mapped, {payload // MIB} MiB uploads, zerocopy forced",
            "≥ 99 % of bytes, contents verified",
            f"{percent:.3f} % at least, {wrong} wrong of {sum(each.uploads for each in runs):,}",
            percent >= 99 and wrong == 0,
        )


def locks(settings: Settings) -> Iterator[Figure]:
    """The seed experiment in both scenarios."""
    rounds = list(seed.run(seed.Experiment(seconds=1.0 * settings.rounds, rounds=settings.rounds)))

    def of(scenario: str, strategy: str, name: str) -> float:
        return median(getattr(each, name) for each in rounds if (each.scenario, each.strategy) == (scenario, strategy))

    share = {name: of("readers-only", name, "lock_path_share_percent") for name in ("global", "per-region")}
    yield Figure(
        "lock-path share, readers only",
        "per-region ≤ 0.45 %",
        f"per-region {share['per-region']:.2f} %, global {share['global']:.2f} %",
        share["per-region"] <= 0.45,
    )
    wait = {name: of("writer-storm", name, "lock_wait_p999_us") for name in ("global", "per-region")}
    yield Figure(
        "lock wait p99.9 in the storm",
        "per-region ≤ 1/100 of global",
        f"{wait['per-region']:.2f} µs against {wait['global']:,.0f} µs: 1/{wait['global'] / wait['per-region']:,.0f}",
        wait["per-region"] * 100 <= wait["global"],
    )
    speed = {name: of("writer-storm", name, "requests_per_second") for name in ("global", "per-region")}
    ratio = speed["per-region"] / speed["global"]
    yield Figure(
        "requests/s in the storm",
        "per-region ≥ 1.25 × global",
        f"{speed['per-region']:,.0f} against {speed['global']:,.0f}: {ratio:.2f} ×",
        ratio >= 1.25,
    )
    writer = {name: of("writer-storm", name, "writer_wait_p999_us") for name in ("global", "per-region")}
    locked = {name: of("writer-storm", name, "writer_locks_per_second") for name in ("global", "per-region")}
    yield Figure(
        "the writer in the storm",
        "does not starve",
        " · ".join(f"{name}: {locked[name]:,.0f} locks/s, wait p99.9 {writer[name]:,.0f} µs" for name in writer),
        min(locked.values()) >= 100,
    )


def receiving(settings: Settings) -> Iterator[Figure]:
    """The seed workload mapped, against the same receivers with recv."""
    ways = {}
    for receive in ("zerocopy", "copy-pages", "copy"):
        experiment = seed.Experiment(seconds=1.0, rounds=1, receive=receive)
        ways[receive] = partial(seed.run_round, experiment, "per-region", "readers-only")
    found = alternate(ways, settings.rounds)
    speed = medians(found, lambda each: each.requests_per_second)
    cpu = medians(found, lambda each: each.server_cpu_us_per_request)
    client = medians(found, lambda each: each.client_cpu_us_per_request)
    percent = min(each.mapped_percent for each in found["zerocopy"])
    for other, what in (
        ("copy-pages", "of the same segments"),
        ("copy", "of plain sends, header and payload together"),
    ):
        ratio = speed["zerocopy"] / speed[other]
        yield Figure(
            f"seed workload mapped, against recv {what}",
            "≥ 0.9 × requests/s, mapped ≥ 99 %",
            f"{speed['zerocopy']:,.0f} against {speed[other]:,.0f}: {ratio:.2f} ×; server {cpu['zerocopy']:.1f} "
            f"against {cpu[other]:.1f} µs, sender {client['zerocopy']:.1f} against {client[other]:.1f}; "
            f"mapped {percent:.2f} %",
            ratio >= 0.9 and percent >= 99,
        )


def auto(settings: Settings) -> Iterator[Figure]:
    """`auto` against the better of the two ways that it chooses from, as calibration decides on this host."""
    everything = {"place_from": 4 * KIB, "map_from": 4 * KIB}
    for payload in SIZES:
        with ExitStack() as stack:
            peers = [
                stack.enter_context(zcrpc_server("upload", receive, receive=receive, more=everything))
                for receive in ("auto", "copy", "zerocopy")
            ]
            ways = {peer.name: partial(peer.run, "upload", payload, seconds=0.4, warm_up_seconds=0.2) for peer in peers}
            found = alternate(ways, settings.rounds)
        speed = medians(found, lambda each: each.gigabytes_per_second)
        ratio = speed["auto"] / max(speed["copy"], speed["zerocopy"])
        yield Figure(
            f"auto, uploads of {payload // KIB} KiB",
            "within 5 % of the better",
            f"{ratio:.2f} ×: " + ", ".join(f"{name} {figure:.2f} GB/s" for name, figure in speed.items()),
            ratio >= 0.95,
        )


def controller(settings: Settings) -> Iterator[Figure]:
    """How `auto` decides from payload to payload where all come in whole pages, as if calibration had asked for them:
    by the server's CPU time, which is what it can know."""
    mapping, copying = {"place_from": 4 * KIB, "map_from": 16 * KIB}, {"place_from": 4 * KIB, "map_from": 1 << 30}
    for payload in SIZES[2:]:
        with ExitStack() as stack:
            peers = [
                replace(
                    stack.enter_context(
                        zcrpc_server("upload", name, receive=receive, whole_pages_from=16 * KIB, more=options)
                    ),
                    whole_pages_from=16 * KIB,
                )
                for name, receive, options in (
                    ("auto", "auto", mapping),
                    ("copying", "zerocopy", copying),
                    ("mapping", "zerocopy", mapping),
                )
            ]
            ways = {peer.name: partial(peer.run, "upload", payload, seconds=0.4, warm_up_seconds=0.2) for peer in peers}
            found = alternate(ways, settings.rounds)
        cpu = medians(found, lambda each: each.server_cpu_seconds_per_gigabyte)
        ratio = cpu["auto"] / min(cpu["copying"], cpu["mapping"])
        yield Figure(
            f"auto, uploads of {payload // KIB} KiB in whole pages, server CPU",
            "within 5 % of the better",
            f"{ratio:.2f} ×: " + ", ".join(f"{name} {figure:.3f} s/GB" for name, figure in cpu.items()),
            ratio <= 1.05,
        )


def streaming(settings: Settings) -> Iterator[Figure]:
    """Items per second of one stream, and what a slow consumer of a fast producer costs."""
    ways = {way: partial(streams.rate, way, 64, 200_000) for way in ("download", "upload")}
    speed = medians(alternate(ways, settings.rounds), lambda each: each.items_per_second)
    yield Figure(
        "64-byte items, one stream, Python to Python",
        "≥ 200,000 items/s from server to client",
        ", ".join(f"{way} {figure:,.0f}/s" for way, figure in speed.items()),
        speed["download"] >= 200_000,
    )
    for way in ("upload", "download"):
        found = streams.slow_consumer(way, MIB, 1024)
        yield Figure(
            f"1 GiB in a stream to a slow {'server' if way == 'upload' else 'client'}",
            "server memory ≤ 32 MiB above idle",
            f"{found.grown_bytes / MIB:.1f} MiB at its peak, in {found.seconds:.1f} s",
            found.grown_bytes <= 32 * MIB,
        )


def fairness(settings: Settings) -> Iterator[Figure]:
    """Small calls while others upload."""
    found = beside_uploads.run(settings.rounds)
    beside = found["uploads"]
    yield Figure(
        f"{beside_uploads.CONNECTIONS} connections of {beside_uploads.SMALL} B calls while {beside_uploads.UPLOADS} "
        f"upload {beside_uploads.LARGE // MIB} MiB",
        f"p99 ≤ {beside_uploads.LIMIT_MS:g} ms",
        f"p50 {beside.p50_ms:.2f}, p99 {beside.p99_ms:.2f}, p99.9 {beside.p999_ms:.2f} ms beside "
        f"{beside.upload_gigabytes_per_second:.2f} GB/s; p99 alone {found['nothing'].p99_ms:.2f} ms, beside uploads to "
        f"another server {found['uploads elsewhere'].p99_ms:.2f}",
        beside.p99_ms <= beside_uploads.LIMIT_MS,
    )


def failing_over(settings: Settings) -> Iterator[Figure]:
    """One of three servers is killed, once with each way to choose among them in each round."""
    found = [each for balance in PICKERS for each in failover.rounds(settings.rounds, balance)]
    failed, calls = sum(each.failed for each in found), sum(each.calls for each in found)
    recovery = max(each.recovery_seconds for each in found)
    yield Figure(
        f"kill -9 of one of {failover.SERVERS} servers, calls with retries",
        f"0 failed idempotent calls, recovery ≤ {failover.LIMIT_SECONDS:g} s",
        f"{failed} failed of {calls:,}; recovery {recovery * 1e3:.0f} ms at most, longest call "
        f"{max(each.longest_seconds for each in found) * 1e3:.0f} ms",
        failed == 0 and recovery <= failover.LIMIT_SECONDS,
    )


def imported(settings: Settings) -> Iterator[Figure]:
    """How long a process waits for zcrpc."""
    found = importing.run(5 * settings.rounds)
    told = ", ".join(f"{name} {found[name]:.0f} ms" for name in importing.WAYS)
    yield Figure(
        "import zcrpc, the interpreter's start included",
        f"≤ {importing.LIMIT_MS} ms",
        told,
        found["import zcrpc"] <= importing.LIMIT_MS,
    )


def long_run(settings: Settings) -> Iterator[Figure]:
    """The soak."""
    found = soak.run(settings.soak_calls)
    yield Figure(
        f"soak of {found.calls:,} mixed calls",
        "RSS flat, no lease left",
        f"{found.grown_bytes / MIB:.2f} MiB grown, {found.leases_left} leases left, {found.wrong} wrong, "
        f"{found.calls / found.seconds:,.0f} calls/s",
        found.is_clean,
    )


FIGURES: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    "mapped": mapped,
    "locks": locks,
    "locks-alone": lock_figures.alone,
    "locks-together": lock_figures.together,
    "locks-beside-a-writer": lock_figures.beside_a_writer,
    "receiving": receiving,
    "echo": peer_figures.echo,
    "sequential": peer_figures.sequential,
    "in-flight": peer_figures.in_flight,
    "uploads": peer_figures.uploads,
    "downloads": peer_figures.downloads,
    "auto": auto,
    "controller": controller,
    "idle-connections": connections.idle,
    "busy-connections": connections.busy,
    "streams": streaming,
    "beside-uploads": fairness,
    "failover": failing_over,
    "import": imported,
    "soak": long_run,
}


def main() -> None:
    """Measures and prints; status 1 if something was not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(FIGURES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=int, default=1_000_000, help="calls of the soak")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(FIGURES)
    if unknown:
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    settings = Settings(rounds=arguments.rounds, soak_calls=arguments.soak)
    console = Console(width=None if sys.stdout.isatty() else 180)
    found = []
    for name in arguments.names or FIGURES:
        for figure in FIGURES[name](settings):
            console.print(
                f"{'reached' if figure.reached else 'MISSED '}  {figure.what}: {figure.measured}  ({figure.target})"
            )
            found.append(figure)
    table = Table("figure", "target", "measured", "", title=f"{settings.rounds} rounds on {os.cpu_count()} cores")
    for figure in found:
        table.add_row(figure.what, figure.target, figure.measured, "✓" if figure.reached else "✗")
    console.print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(figure) for figure in found], indent=2, ensure_ascii=False) + "\n")
    sys.exit(0 if all(figure.reached for figure in found) else 1)


if __name__ == "__main__":
    main()
