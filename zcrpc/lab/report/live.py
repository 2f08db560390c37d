"""What live servers showed: the seed experiment, and uploads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from markupsafe import Markup

from zcrpc.lab.report import plots
from zcrpc.lab.report.figures import Case, Spread, by, cases, duration, number
from zcrpc.lab.report.kinds import KINDS
from zcrpc.lab.report.plots import Line
from zcrpc.lab.report.reading import Collection
from zcrpc.lab.report.sections import (
    Look,
    Missing,
    Panel,
    Section,
    bars,
    extremes,
    findings,
    ladders,
    left_out,
    measured_on,
    medians,
    panels,
    percentile_legend,
    rounds,
    series_legend,
)
from zcrpc.lab.seed import Round
from zcrpc.lab.upload import Upload

_SHARE = "What share of the receivers' CPU goes into the lock path?"
_SPEED = "How many requests does the server answer?"
_WAIT = "How long does a receive wait for the lock, with a writer and without?"
_RECEIVE = "How long does finding, locking and receiving take, with a writer and without?"
_CROSSOVER = "From which size on does mapping pay?"


def sections(found: Collection, look: Look) -> Iterator[Section | Missing]:
    """The sections on live servers."""
    measured = found.of("seed", Round)
    if measured:
        yield from _seed(
            sorted(
                cases(measured, _scenario, _payload, _connections, _sharing, _threads, lambda row: row.receive),
                key=lambda case: case.rows[0].scenario == "writer-storm",
            ),
            look,
        )
    else:
        for question in (_SHARE, _SPEED, _WAIT, _RECEIVE):
            yield Missing(question, KINDS["seed"].command)
    uploads = found.of("upload", Upload)
    yield _crossover(cases(uploads), look) if uploads else Missing(_CROSSOVER, KINDS["upload"].command)


# ---- the seed experiment ----


def _scenario(row: Round) -> str:
    if row.scenario == "readers-only":
        return "readers only"
    how = "computing" if row.writer_busy else "sleeping"
    return f"writer holds the map lock {row.writer_hold_us:,} of every {row.writer_interval_us:,} µs, {how}"


def _payload(row: Round) -> str:
    return plots.binary(row.payload_bytes)


def _connections(row: Round) -> str:
    return f"{row.connections} connections"


def _sharing(row: Round) -> str:
    return f"{row.connections_per_region or 'all'} connections to a region"


def _threads(row: Round) -> str:
    return f"{row.receive_threads} receive threads"


def _seed(found: Sequence[Case[Round]], look: Look) -> Iterator[Section]:
    quiet = [case for case in found if case.rows[0].scenario == "readers-only"]
    first = found[0].rows[0]
    setting = (
        f" {first.connections} connections, each with one request of {_payload(first)} in flight, "
        f"{first.receive_threads} receive threads, receive {first.receive}."
        f" {rounds(found[0].rows)}.{left_out(found, max(len(by(case.rows, 'strategy')) for case in found))}"
        + measured_on(found)
    )

    def draw(name: str, unit: str, alt: str) -> list[Panel]:
        return panels(
            found,
            lambda case: bars(case.rows, "strategy", lambda row: getattr(row, name), look, unit=unit, alt=alt),
        )

    yield Section(
        "share",
        _SHARE,
        findings(quiet or found, _say_share),
        "CPU cycles from looking for the region to having unlocked it, the receive call itself left out, over all CPU "
        "cycles of the receiving threads." + setting,
        draw("lock_path_share_percent", " %", "lock-path share of each strategy"),
    )
    yield Section(
        "requests",
        _SPEED,
        findings(found, _say_speed),
        "Requests per second that were received and answered; the load generator runs on the same CPUs." + setting,
        draw("requests_per_second", "/s", "requests per second with each strategy"),
    )
    for anchor, question, prefix, what in (
        ("lock-wait", _WAIT, "lock_wait", "From asking for the lock to having it; the axis is logarithmic."),
        ("receive", _RECEIVE, "receive", "From looking for the region to the end of the receive call."),
    ):
        yield Section(
            anchor,
            question,
            findings(found, partial(_say_waits, prefix)),
            what + setting,
            panels(found, partial(_ladders, prefix, look)),
            percentile_legend(),
        )


def _ladders(prefix: str, look: Look, case: Case[Round]) -> Markup:
    return ladders(case.rows, "strategy", prefix, look, alt=f"percentiles of {prefix.replace('_', ' ')} by strategy")


def _say_share(rows: list[Round]) -> str:
    shares = medians(rows, "strategy", lambda row: row.lock_path_share_percent)
    return f"finding, locking and unlocking takes {extremes(shares, ' %')} of the receivers' CPU."


def _say_speed(rows: list[Round]) -> str:
    speeds = medians(rows, "strategy", lambda row: row.requests_per_second)
    text = extremes(speeds, "/s")
    if len(speeds) > 1 and min(speeds.values()) > 0:
        text += f"; the fastest does {number(max(speeds.values()) / min(speeds.values()))} × what the slowest does"
    return f"{text}."


def _say_waits(prefix: str, rows: list[Round]) -> str:
    waits = medians(rows, "strategy", lambda row: getattr(row, f"{prefix}_p999_us"))
    what = "waits" if prefix == "lock_wait" else "takes"
    return f"one receive in a thousand {what} {extremes(waits, say=duration)}, or longer."


# ---- uploads ----


def _crossover(found: Sequence[Case[Upload]], look: Look) -> Section:
    sizes = sorted({row.payload_bytes for case in found for row in case.rows})
    speed = panels(found, lambda case: _by_size(case.rows, "gigabytes_per_second", "GB/s", look))
    cost = panels(found, lambda case: _by_size(case.rows, "_cpu", "CPU s/GB, both ends", look))
    return Section(
        "crossover",
        _CROSSOVER,
        findings(found, _say_crossover),
        f"Uploads one after the other on one connection, client and server in Python, {len(sizes)} sizes; GB = 10⁹ "
        "bytes; CPU of client and server together. zerocopy and copy are forced, auto chooses; small payloads are read "
        "with their frame, whatever was asked for." + measured_on(found),
        speed + cost,
        series_legend((row.receive for case in found for row in case.rows), look),
    )


def _by_size(rows: list[Upload], field: str, y: str, look: Look) -> Markup:
    def figure(row: Upload) -> float:
        return _cpu(row) if field == "_cpu" else float(getattr(row, field))

    series = [
        Line(
            way,
            look(way),
            [(size, Spread.of(map(figure, same))) for size, same in by(group, "payload_bytes").items()],
        )
        for way, group in by(rows, "receive").items()
    ]
    return plots.lines(series, x="bytes in an upload", y=y, alt=f"{y} by size", tick=plots.binary)


def _cpu(row: Upload) -> float:
    return row.server_cpu_seconds_per_gigabyte + row.client_cpu_seconds_per_gigabyte


def _say_crossover(rows: list[Upload]) -> str:
    groups = by(rows, "receive", "payload_bytes")
    mapped = sorted(size for (way, size), group in groups.items() if way == "zerocopy" and _is_mapped(group))
    both = [size for size in mapped if ("copy", size) in groups]
    if not both:
        return ""
    said = []
    for what, cost in (
        ("uploads are faster mapped than copied", lambda row: -row.gigabytes_per_second),
        ("they take less CPU", _cpu),
    ):
        costs = {key: Spread.of(map(cost, group)).median for key, group in groups.items()}
        pays = [size for size in both if costs["zerocopy", size] < costs["copy", size]]
        said.append(f"{what} {_from_where(both, pays)}")
    return "; ".join(said) + "."


def _is_mapped(rows: list[Upload]) -> bool:
    """Small payloads are read with their frame, whatever was asked for."""
    return Spread.of(row.mapped_percent for row in rows).median > 50


def _from_where(sizes: list[int], pays: list[int]) -> str:
    """Where mapping wins: from a size on, at some sizes, everywhere or nowhere."""
    if not pays:
        return "at no size that was mapped"
    if pays == sizes:
        return "at every size that was mapped" if len(sizes) > 1 else f"at {plots.binary(sizes[0])}"
    if pays == sizes[-len(pays) :]:
        return f"from {plots.binary(pays[0])} on"
    return "at " + ", ".join(map(plots.binary, pays))
