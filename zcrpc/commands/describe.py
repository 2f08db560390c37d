"""`zcrpc describe`."""

from __future__ import annotations

import textwrap
from typing import Any

import click
import msgspec

from zcrpc.commands.common import Target, main, targeted, to_json
from zcrpc.reflection import MethodDescription, ServiceDescription

_BUILTIN = "zcrpc."


@click.command()
@targeted
@click.argument("what", metavar="[SERVICE|METHOD]", default="")
@click.option("--all", "everything", is_flag=True, help="The services that every server has, too.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with schemas.")
def describe(target: Target, what: str, everything: bool, as_json: bool) -> None:
    """Print what a server serves: methods, signatures, docstrings."""
    main(_describe(target, what, everything, as_json))


async def _describe(target: Target, what: str, everything: bool, as_json: bool) -> None:
    async with target.connect() as client:
        # Over a name that the server may not know: it may be older, or keep to itself what it serves.
        options: dict[str, Any] = {"timeout": target.timeout}
        methods = [
            each
            async for each in client.stream("zcrpc.Reflection.describe", what, returns=MethodDescription, **options)
        ]
        services = {
            each.name: each
            async for each in client.stream("zcrpc.Reflection.services", returns=ServiceDescription, **options)
        }
    shown = [each for each in methods if what or everything or not each.name.startswith(_BUILTIN)]
    if as_json:
        click.echo(to_json([msgspec.to_builtins(each) for each in shown], indent=2))
        return
    last = None
    for each in shown:
        service = each.name.rpartition(".")[0]
        if service != last:
            _print_service(service, services.get(service), first=last is None)
            last = service
        _print_method(each)


def _print_service(name: str, found: ServiceDescription | None, *, first: bool) -> None:
    if not first:
        click.echo()
    click.secho(name, bold=True)
    if found is not None and found.doc:
        click.echo(textwrap.indent(found.doc, "    "))


def _print_method(found: MethodDescription) -> None:
    kind = "" if found.kind == "unary" else f"   [{found.kind}]"
    click.echo(f"\n    {found.name.rpartition('.')[2]}{found.signature}{kind}")
    if found.doc:
        click.echo(textwrap.indent(found.doc, "        "))
