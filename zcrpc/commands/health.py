"""`zcrpc health`."""

from __future__ import annotations

from typing import Any

import click

import zcrpc
from zcrpc.commands.common import Target, main, targeted, to_json


@click.command()
@targeted
@click.argument("service", default="")
@click.option("--watch", is_flag=True, help="Print it now and whenever it changes, until the server goes away.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, in lines.")
def health(target: Target, service: str, watch: bool, as_json: bool) -> None:
    """Whether a server, or one SERVICE of it, is ready for calls. Exit status 0 if it is, 1 if not."""
    main(_health(target, service, watch, as_json))


async def _health(target: Target, service: str, watch: bool, as_json: bool) -> int:
    async with target.connect() as client:
        asked: Any = client.use(zcrpc.Health)
        if not watch:
            status = await asked.check(service, timeout=target.timeout)
            _print(service, status, as_json)
        else:
            status = zcrpc.Serving.SERVICE_UNKNOWN
            async for status in asked.watch(service):
                _print(service, status, as_json)
    return 0 if status is zcrpc.Serving.SERVING else 1


def _print(service: str, status: zcrpc.Serving, as_json: bool) -> None:
    click.echo(to_json({"service": service, "status": status}) if as_json else status.name)
