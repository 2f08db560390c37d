"""`zcrpc call`."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

import zcrpc
from zcrpc.commands.common import FILE, Target, main, read_file, targeted, to_json


@click.command()
@targeted
@click.argument("method")
@click.argument("arguments", nargs=-1)
@click.option("-k", "--keyword", "keywords", multiple=True, metavar="NAME=VALUE", help="An argument by name.")
@click.option("--metadata", multiple=True, metavar="KEY=TEXT", help="Sent along.")
@click.option(
    "--items", type=click.Path(path_type=Path, dir_okay=False), help="A file of items to send, a JSON value per line."
)
@click.option("--stream", is_flag=True, help="The results are a stream; for servers that do not describe themselves.")
@click.option("-o", "--output", type=FILE, help="Write the result into a file; a buffer, as it is.")
@click.option("--json", "compact", is_flag=True, help="Print the result in one line.")
def call(
    target: Target,
    method: str,
    arguments: tuple[str, ...],
    keywords: tuple[str, ...],
    metadata: tuple[str, ...],
    items: Path | None,
    stream: bool,
    output: Path | None,
    compact: bool,
) -> None:
    """Call METHOD, such as Store.put, and print its result as JSON; of a stream, a line for each item.

    ARGUMENTS are JSON, or text where they are not; @FILE is the bytes of a file, @- those of standard input, @@TEXT is
    text that begins with one @. Buffers are printed in base64.
    """
    given = dict(_pair(each, "--keyword") for each in keywords)
    sent_along = dict(_pair(each, "--metadata") for each in metadata)
    main(_call(target, method, arguments, given, sent_along, items, stream, output, compact))


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text}: expected name=value")
    return name, value


async def parse(text: str) -> Any:
    """An argument of the command line as one of the call."""
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@"):
        return await read_file(Path(text[1:]))
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


async def _call(
    target: Target,
    method: str,
    texts: tuple[str, ...],
    named: dict[str, str],
    metadata: dict[str, str],
    items: Path | None,
    stream: bool,
    output: Path | None,
    compact: bool,
) -> None:
    arguments = [await parse(text) for text in texts]
    keywords = {name: await parse(text) for name, text in named.items()}
    source = None if items is None else _open(items)
    async with target.connect() as client:
        kind = await _kind(client, method, target.timeout)
        if kind in ("client-stream", "bidi-stream") and source is None:
            raise click.UsageError(f"{method} takes a stream of items; give them with --items")
        if source is not None:
            arguments.append(_lines(source, str(items)))
        options: dict[str, Any] = {"timeout": target.timeout, "metadata": metadata or None}
        if stream or kind in ("server-stream", "bidi-stream"):
            await _print_items(client.stream(method, *arguments, **options, **keywords), output)
        else:
            result = await client.call(method, *arguments, **options, **keywords)
            _print(result, output, compact)


async def _kind(client: zcrpc.Client, method: str, timeout: float) -> str | None:
    """What kind of call a method has, if its server says."""
    if "zcrpc.Reflection.describe" not in client.methods or method not in client.methods:
        return None
    try:
        describe: Any = client.use(zcrpc.Reflection).describe
        async for found in describe(method, timeout=timeout):
            return str(found.kind)
    except zcrpc.PermissionDenied:
        pass
    return None


def _open(path: Path) -> BinaryIO:
    try:
        return sys.stdin.buffer if str(path) == "-" else path.open("rb")
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None


async def _lines(source: BinaryIO, name: str) -> AsyncIterator[Any]:
    number = 0
    while line := await asyncio.to_thread(source.readline):
        number += 1
        try:
            yield msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None


async def _print_items(stream: AsyncIterator[Any], output: Path | None) -> None:
    with _writing(output) as file:
        async for item in stream:
            file.write(item if output is not None and _is_buffer(item) else to_json(item).encode() + b"\n")
            file.flush()


def _print(result: Any, output: Path | None, compact: bool) -> None:
    with _writing(output) as file:
        if output is not None and _is_buffer(result):
            file.write(result)
        else:
            file.write(to_json(result, indent=0 if compact else 2).encode() + b"\n")


def _is_buffer(value: Any) -> bool:
    return isinstance(value, (bytes, memoryview))


def _writing(output: Path | None) -> BinaryIO:
    if output is None:
        sys.stdout.flush()
        return io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False))
    try:
        return output.open("wb")
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {error.strerror}") from None
