"""`zcrpc lab`: a module for each command."""

from __future__ import annotations

import click

from zcrpc.lab.commands.bench import bench
from zcrpc.lab.commands.kernel import kernel
from zcrpc.lab.commands.new import new
from zcrpc.lab.commands.report import report
from zcrpc.lab.commands.seed import seed
from zcrpc.lab.commands.simulate import simulate
from zcrpc.lab.commands.torture import torture
from zcrpc.lab.commands.upload import upload


@click.group()
def lab() -> None:
    """The laboratory: locks, written, proved, measured and predicted."""


lab.add_command(bench)
lab.add_command(kernel)
lab.add_command(new)
lab.add_command(report)
lab.add_command(seed)
lab.add_command(simulate)
lab.add_command(torture)
lab.add_command(upload)
