"""A drawing: one panel for each workload, a bar for each stack."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peers.stacks import STACKS
from peers.suite import Row, by_stack
from peers.tables import GIST, ITEMS, middle
from peers.workloads import WORKLOADS, Workload

_COLOURS: Final = {"zcrpc": "#bb3a6d", "floor": "#9aa0a6", "rpc": "#359bd9", "messages": "#a5931b"}
_KINDS: Final = {"zcrpc": "zcrpc", "floor": "floors: no RPC", "rpc": "RPC", "messages": "messages only"}
_ROW_INCHES: Final = 0.24
_TITLE_WIDTH: Final = 44  # characters that fit above a panel
_SETTINGS: Final = {"svg.fonttype": "none", "svg.hashsalt": "zcrpc", "font.family": "sans-serif", "font.size": 10}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes an SVG, or what the name ends in. Raises OSError; ValueError for a name that matplotlib does not know."""
    workloads = [WORKLOADS[name] for name in dict.fromkeys(row.workload for row in rows)]
    stacks = list(dict.fromkeys(row.stack for row in rows))
    with matplotlib.rc_context(_SETTINGS):
        across = min(2, len(workloads))
        down = ceil(len(workloads) / across)
        height = down * (_ROW_INCHES * len(stacks) + 0.75) + 0.4
        figure = Figure(figsize=(5.2 * across, height), layout="constrained", facecolor="white")
        panels = list(figure.subplots(down, across, squeeze=False).flat)
        for axes, workload in zip(panels, workloads, strict=False):
            _panel(axes, workload, stacks, rows)
        for axes in panels[len(workloads) :]:
            axes.axis("off")
        handles = [matplotlib.patches.Patch(color=_COLOURS[kind], label=text) for kind, text in _KINDS.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, workload: Workload, stacks: Sequence[str], rows: Sequence[Row]) -> None:
    column = ITEMS if workload.work == "stream" else GIST[workload.gist]
    found = by_stack(rows, workload.name)
    scale = 1e-3 if column.heading == "p99 ms" else 1.0
    values = [scale * middle(found[name], column) if name in found else 0.0 for name in stacks]
    axes.barh(range(len(stacks)), values, color=[_COLOURS[STACKS[name].kind] for name in stacks], height=0.7)
    longest = max(values) or 1.0
    for place, (name, value) in enumerate(zip(stacks, values, strict=True)):
        text = column.write(value / scale) if name in found else "–"
        axes.text(value + 0.01 * longest, place, text, va="center", ha="left", fontsize=9)
    axes.set_yticks(range(len(stacks)), stacks)
    axes.set_ylim(len(stacks) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * longest)
    axes.xaxis.set_visible(False)
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    title = f"{fill(workload.title, _TITLE_WIDTH)}\n{column.heading}, {'less' if column.less else 'more'} is better"
    axes.set_title(title, loc="left", fontsize=10, x=0)
