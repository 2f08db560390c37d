"""docs/prediction.md, written by `zcrpc lab simulate --document`: nothing in its tables is typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zcrpc.lab.simulate import machine, published
from zcrpc.lab.simulate.prediction import LOAD, Prediction
from zcrpc.lab.simulate.published import SWEPT, Check, Ranking
from zcrpc.lab.simulate.topology import Topology
from zcrpc.lab.tables import short

_HEAD = """# Prediction: locks on more cores than are at hand

Written by `zcrpc lab simulate --document docs/prediction.md`; the text is in `zcrpc/lab/simulate/document.py`.

A discrete-event model moves cache lines between CPUs. A lock is a little program over lines, its fallback path
included; the cost of a move comes from a topology (published, of an 8-socket Xeon 8176: 47.5 ns for a blind RMW on a
line of the same socket, 149 and 337 ns further away; 102, 443 and 945 ns if the RMW looks at the line first). Lines
serve who asks in turn, threads are dealt out over the sockets. *b* is the number of RMWs that a CPU gets done each time
it owns a line that others want.

**What is calibrated.** b, twice, each on one point, and used unchanged everywhere else: **b = 10** where a thread does
nothing but lock and unlock, **b = 1** as soon as there is a section or work between. No b serves both, and the model
does not say why: in the 9 µs series every RMW moves the line, although unlock and the next lock are back to back. The
columns on the right show the prediction for every b. The instructions around an RMW, and the work between two, are
those of one thread alone, where that is published.

**What is assumed.** Where a source does not name its machine, the costs of the Xeon: two of its sockets for uprobes;
for the kernel's slopes four and eight, of which only four fit. Nor is it recorded where the Xeon's threads ran: spread
over all sockets is what fits the 9 µs series.

**How blind this is.** Not very: the rule with two values of b, the placement and the points to calibrate on were chosen
knowing these series and the kernel's slopes. Given them, each single point is the model's own, and nothing was changed
to fit uprobes, folly or the seed workload. The program of `per-region` was corrected, after its C source, when the
row of one region on this machine had failed.

**What is left out.** Cores that two hardware threads share (above 224 threads on the Xeon), spinning waiters' traffic,
sleeping and waking, congestion of the links between sockets, preemption, and everything in a request but its lock.

## Against what was measured

Costs are ns per operation, all threads together, unless a unit is named. A point passes within 15 % of the measured
mean, or of the range's middle where only a range is known. The targets are zero-length and 9 µs sections up to 112
threads. Rows of this machine differ from run to run: others use it, too.
"""


def _why(checks: Sequence[Check]) -> str:
    def short_by(series: str) -> float:
        return max(each.published / each.predicted for each in checks if each.series == series)

    nine, long = short_by("pthread rwlock, 9 µs section"), short_by("pthread rwlock, 1000 µs section")
    return f"""
Where it fails, and what that says:

- *Zero-length, few threads*: a short queue that goes round far sockets; two threads keep the line longer, and four
  shorter, than any one b allows.
- *Above 112 threads*, and *100 µs and 1 ms sections with many*: measured costs keep growing with threads where the
  model's stay with the mean move of the line. Whatever grows there (links between sockets, retries of
  compare-and-swap, shared cores) is not modelled. So **what is predicted for global locks above 112 cores is too
  good**, by up to {nine:.1f} × for short and {long:.1f} × for long sections; what is predicted for locks without shared
  lines is not touched by this.
- *Uprobes before*: b = 1 says far too much; b = 2 and more come near the published range at 12 to 80 CPUs, and are
  still too dear at 8. With sections of some 100 ns, b = 1 is too pessimistic for `global`.
- *Uprobes after*: without shared lines the model scales perfectly; 80 hardware threads probably are 40 cores.
- *Seed, writer storm, global*: the wait is longer, and the loss of throughput smaller, than predicted. The model has
  receivers that never sleep, a writer with a core of its own, and no 100 connections that wait meanwhile.
"""


def write(
    topology: Topology, predictions: Sequence[Prediction], optimistic: Sequence[Prediction], say: Callable[[str], None]
) -> str:
    """The whole page. `optimistic`: the same predictions for a larger b. `say` is told what is going on."""
    say("comparing with published figures")
    checks = list(published.table_checks())
    targets = list(published.rwlock((0.0, 9.0), range(1, 113)))
    rankings = list(published.folly())
    say("running this machine's lock benchmark")
    own = machine.measure()
    parts = [_HEAD, *_validation(checks + own), "", *_score(targets), *_ranking(rankings), _why(checks)]
    return "\n".join([*parts, *_predictions(topology, predictions, optimistic)]) + "\n"


def _validation(checks: Iterable[Check]) -> list[str]:
    heads = ["series", "threads", "published", "range", "predicted", "off by", "", *(f"b={b}" for b in SWEPT)]
    rows = []
    for each in checks:
        published_range = f"{_cost(each.low)} – {_cost(each.high)}" if each.low < each.high else "–"
        verdict = f"**{each.verdict}**" if each.verdict == "fail" else each.verdict
        unit = "" if each.unit == "ns" else f", {each.unit}"
        rows.append(
            [
                each.series + unit,
                str(each.threads),
                _cost(each.published),
                published_range,
                _cost(each.predicted),
                f"{each.error_percent:+.0f} %",
                verdict,
                *(map(_cost, each.by_b) if each.by_b else ["–"] * len(SWEPT)),
            ]
        )
    return _table(heads, rows)


def _score(targets: Sequence[Check]) -> list[str]:
    lines = ["All published points up to 112 threads, calibrated ones left out:", ""]
    rows = []
    for series in dict.fromkeys(each.series for each in targets):
        points = [each for each in targets if each.series == series and each.verdict != "calibrated"]
        passed = sum(each.verdict == "pass" for each in points)
        inside = sum(each.low <= each.predicted <= each.high for each in points)
        failed = ", ".join(f"{each.threads} ({each.error_percent:+.0f} %)" for each in points if each.verdict == "fail")
        rows.append([series, str(len(points)), str(passed), str(inside), failed or "none"])
    heads = ["series", "points", "within 15 %", "within the runs' range", "failures: threads (off by)"]
    return [*lines, *_table(heads, rows), ""]


def _ranking(rankings: Sequence[Ranking]) -> list[str]:
    rows = [
        [
            f"{100 * each.write_fraction:g} %",
            f"{each.faster} before {each.slower}",
            f"{each.published_ratio:.3g} ×",
            f"{each.predicted_ratio:.3g} ×",
            each.verdict,
        ]
        for each in rankings
    ]
    said = (
        "folly's table, 32 threads: only the order is compared, as its machine is not recorded. The ratios are not met."
    )
    return [said, "", *_table(["writes", "order", "published", "predicted", "order right"], rows)]


def _predictions(topology: Topology, predictions: Sequence[Prediction], optimistic: Sequence[Prediction]) -> list[str]:
    b = predictions[0].b
    return [
        "## The seed workload on more cores",
        "",
        f"Machine: {topology.name}, {topology.source}.",
        "A request takes 10.4 µs of CPU, 1.65 µs of it between find and unlock, as `zcrpc lab seed` has it on two",
        "cores; a region for each receiving thread; nothing else is shared.",
        "",
        f"### Readers only, saturated: millions of requests a second, b = {b}",
        "",
        "In brackets the asymptotic bound, min(n / (work + hold), 1 / (line moves × mean move)), of the same run.",
        "",
        *_by_cores(predictions, _saturated),
        "",
        f"With b = {optimistic[0].b} no figure of this table changes by more than "
        f"{_most_change(predictions, optimistic):.1f} %: a request has its",
        "two RMWs too far apart for one ownership to serve both.",
        "",
        f"### Readers only, arrivals at {LOAD:.0%} of what cores without locks could do: wait for the lock, p99 in µs",
        "",
        "*over*: less than 95 % of what arrives is done, so queues and waits grow for as long as that lasts.",
        "",
        *_by_cores(predictions, lambda each: _waits(each, storm=False)),
        "",
        "### A writer holds the map lock 500 µs of every 1,000, same arrivals: wait for the lock, p99 in µs",
        "",
        *_by_cores(predictions, lambda each: _waits(each, storm=True)),
        "",
        "Does the writer get in at all, in the 2.5 ms or more that are simulated?",
        "",
        *_by_cores(predictions, lambda each: "yes" if each.storm.writes_per_second else "**starved**"),
        "",
        *_conclusions(predictions),
    ]


def _most_change(predictions: Sequence[Prediction], optimistic: Sequence[Prediction]) -> float:
    pairs = zip(predictions, optimistic, strict=True)
    return max(100 * abs(b.saturated.operations_per_second / a.saturated.operations_per_second - 1) for a, b in pairs)


def _conclusions(predictions: Sequence[Prediction]) -> list[str]:
    """Sentences with the figures of this run in them; none without both strategies that they are about."""
    most = max(each.cores for each in predictions)
    last = {each.locks: each for each in predictions if each.cores == most}
    if not {"global", "per-region"} <= last.keys():
        return []
    gain = last["per-region"].saturated.operations_per_second / last["global"].saturated.operations_per_second
    full = max((each.cores for each in predictions if each.locks == "global" and _share(each) > 0.9), default=0)
    waits = [last[name].storm.wait_p99_us for name in ("global", "per-region")]
    return [
        "What follows: with readers alone `global` does more than 90 % of what the cores could do, up to",
        f"{full} cores. At {most} cores `per-region` does {gain:.1f} × as many requests, and by the failures above",
        "rather more than that. Under the writer storm one receive in a hundred waits",
        f"{waits[0]:,.0f} µs or more with `global` and {waits[1]:.1g} µs with `per-region`; that difference is there",
        "at any number of cores. `speculative` is a sequence count over the whole map here, with the",
        "receive inside the section: any write to the map undoes it, so that it waits as a global lock does.",
    ]


def _share(each: Prediction) -> float:
    """Of what the cores could do without a lock."""
    return LOAD * each.saturated.operations_per_second / each.offered_per_second


def _saturated(each: Prediction) -> str:
    done, bound = each.saturated.operations_per_second, each.saturated.bound_per_second
    return f"{done / 1e6:.2f} ({bound / 1e6:.2f})"


def _waits(each: Prediction, *, storm: bool) -> str:
    outcome = each.storm if storm else each.readers_only
    return short(outcome.wait_p99_us) + (", over" if each.overloaded(outcome) else "")


def _by_cores(predictions: Sequence[Prediction], cell: Callable[[Prediction], str]) -> list[str]:
    locks = list(dict.fromkeys(each.locks for each in predictions))
    by_key = {(each.cores, each.locks): each for each in predictions}
    cores = sorted({each.cores for each in predictions})
    return _table(["cores", *locks], [[str(n), *(cell(by_key[n, name]) for name in locks)] for n in cores])


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (heads, ruler, *rows)]
