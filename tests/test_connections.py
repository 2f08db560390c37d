"""Many connections on one server, and more than it has file descriptors for."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import connections
import pytest
from conftest import Serving, until
from peers import zcrpc_server

import zcrpc
from zcrpc.lab import load as lab_load

IDLE = 2000


class Echo(zcrpc.Service):
    @zcrpc.method
    async def echo(self, text: str) -> str:
        return text


def test_idle_connections_all_answer_and_do_not_disturb() -> None:
    connections.allow_files(IDLE + connections.OTHER_FILES)
    with zcrpc_server("echo") as peer, connections.Crowd(peer) as crowd:
        assert peer.service is not None
        crowd.join(100)
        arrival = connections.arrive(peer, crowd, IDLE - 100)
        result = peer.run("echo", 64, connections=10, warm_up_seconds=0, seconds=5, requests=2000)
        assert result.requests == 2000
        assert peer.service.snapshot().connections == IDLE
        assert crowd.all_answer() == IDLE
        assert arrival.resident_bytes < 2 * connections.LIMIT_BYTES
    assert result.fewest > 0


def test_connections_get_equal_shares() -> None:
    with zcrpc_server("echo") as peer:
        load = peer.load("echo", 64, connections=50, requests=20_000, warm_up_seconds=0, seconds=60)
        alone = lab_load.generate(load)
    assert (alone.errors, alone.mismatches) == (0, 0)
    assert alone.fairness > 0.95
    assert 0 < alone.fewest <= alone.requests / 50 <= alone.most


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process cannot open another one."""
    gc.collect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_without_file_descriptors_new_connections_wait(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zcrpc.server._ACCEPT_PAUSE_SECONDS", 0.3)
    waiting = [socket.socket() for _ in range(3)]
    async with serving(Echo()) as (server, address), zcrpc.connect(address) as client:
        assert await client.call("Echo.echo", "before") == "before"
        host = ("127.0.0.1", int(address.rpartition(":")[2]))
        with no_more_files(), caplog.at_level(logging.ERROR, "zcrpc.server"):
            for sock in waiting:
                sock.connect(host)
            await until(lambda: server.stats().accept_pauses == 1)
            turns = asyncio.get_running_loop().time() + 0.1
            while asyncio.get_running_loop().time() < turns:
                assert await client.call("Echo.echo", "meanwhile") == "meanwhile"
            assert server.stats().accept_pauses == 1  # and no busy loop around accept
            assert server.stats().connections == 1
        assert "cannot accept, trying again in 0.3 s" in caplog.text
        await until(lambda: server.stats().connections == 4)
        for sock in waiting:
            sock.close()
