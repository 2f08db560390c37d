"""The blocking client, against a server in another thread."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pytest
from in_thread import Running, eventually

import zcrpc
from zcrpc import blocking


class Store(zcrpc.Service):
    """Keeps blobs."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.began = self.cancelled = 0
        self.left = threading.Event()

    @zcrpc.method
    async def put(self, key: str, value: memoryview) -> int:
        """Keeps a blob."""
        self.blobs[key] = bytes(value)
        return len(value)

    @zcrpc.method
    async def get(self, key: str) -> memoryview:
        if key not in self.blobs:
            raise zcrpc.NotFound("no such key", details={"key": key})
        return memoryview(self.blobs[key])

    @zcrpc.method
    async def mean(self, values: numpy.ndarray[Any, Any]) -> float:
        return float(values.mean())

    @zcrpc.method
    async def wait(self) -> None:
        self.began += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    @zcrpc.method
    async def tenant(self) -> str:
        zcrpc.context().response_metadata["seen"] = "yes"
        return str(zcrpc.context().metadata["tenant"])

    @zcrpc.method
    async def count(self, to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
                await asyncio.sleep(0)
        finally:
            self.left.set()

    @zcrpc.method
    async def total(self, factor: int, rows: AsyncIterator[bytes]) -> int:
        return factor * sum([len(row) async for row in rows])

    @zcrpc.method
    async def double(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item


@pytest.fixture
def running() -> Iterator[Running[Store]]:
    made = Running(Store())
    yield made
    made.stop()


# ---- calls


def test_typed_calls(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:
        assert store.put("k", bytearray(1_000_000)) == 1_000_000
        view = store.get("k", timeout=5.0)
        assert store.mean(numpy.arange(5.0)) == 2.0
        assert (type(store).__name__, store.put.__doc__) == ("Store", "Keeps a blob.")
        assert store.ping() > 0
        assert store.stats().requests == 3
    assert isinstance(view, memoryview)
    assert len(view) == 1_000_000, "views outlive the client"


def test_untyped_calls(running: Running[Store]) -> None:
    with blocking.connect(running.address) as client:
        assert "Store.put" in client.methods
        assert client.state is zcrpc.State.READY
        assert client.call("Store.put", "k", b"abc") == 3
        assert client.call("Store.get", key="k", returns=bytes) == b"abc"
        with pytest.raises(zcrpc.NotFound) as caught:
            client.call("Store.get", "nothing")
        assert caught.value.details == {"key": "nothing"}


def test_a_timeout_cancels_the_handler(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:
        begun = time.monotonic()
        with pytest.raises(zcrpc.DeadlineExceeded):
            store.wait(timeout=0.1)
        assert time.monotonic() - begun < 2
        eventually(lambda: running.service.cancelled == 1)


def test_outgoing_options_and_metadata_belong_to_the_thread_that_calls(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:
        with zcrpc.outgoing(metadata={"tenant": "blue"}) as out:
            assert store.tenant() == "blue"
        assert out.response_metadata == {"seen": "yes"}
        assert store.tenant(metadata={"tenant": "green"}) == "green"


def test_many_threads_at_once(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store, ThreadPoolExecutor(8) as threads:
        lengths = list(threads.map(lambda number: store.put(str(number), bytes(number)), range(400)))
    assert lengths == list(range(400))


def test_nobody_there_and_nonsense() -> None:
    with pytest.raises(zcrpc.Unavailable):
        blocking.connect("unix:///nowhere/at/all")
    with pytest.raises(ValueError, match="expected"):
        blocking.connect("nonsense")
    with pytest.raises(TypeError):
        blocking.connect("tcp://127.0.0.1:1", timeuot=3)  # type: ignore[call-overload]


def test_after_close(running: Running[Store]) -> None:
    client = blocking.connect(running.address)
    client.close()
    client.close()
    with pytest.raises(zcrpc.Unavailable):
        client.call("Store.get", "k")


# ---- streams


def test_a_stream_of_results_is_an_iterator(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:
        assert list(store.count(2000)) == list(range(2000))
        assert list(store.client.stream("Store.count", 3, returns=int)) == [0, 1, 2]


def test_leaving_a_loop_cancels_the_call(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:
        for number in store.count(1_000_000_000):
            if number == 10:
                break
        assert running.service.left.wait(5)


def test_closing_an_iterator_cancels_the_call(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:
        with store.count(1_000_000_000) as items:
            assert next(items) == 0
        assert running.service.left.wait(5)
        assert list(items) == []


def test_iterables_are_sent(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:
        assert store.total(2, [b"a", b"bc"]) == 6
        assert store.total(2, (bytes(1) for _ in range(500))) == 1000
        assert store.total(rows={b"a": 1}.keys(), factor=3) == 3
        assert store.client.call("Store.total", 1, iter([b"abc"])) == 3
        assert list(store.double(range(300))) == list(range(0, 600, 2))


def test_a_generator_may_wait_for_what_comes_back(running: Running[Store]) -> None:
    """A conversation: each item is made of the answer before."""
    with blocking.connect(running.address, Store) as store:
        answers: list[int] = []
        answered = threading.Semaphore(0)

        def items() -> Iterator[int]:
            yield 1
            for _ in range(20):
                assert answered.acquire(timeout=5)
                yield answers[-1]

        for answer in store.double(items()):
            answers.append(answer)
            answered.release()
        assert answers[-1] == 2**21


def test_what_a_generator_raises(running: Running[Store]) -> None:
    def rows() -> Iterator[bytes]:
        yield b"a"
        raise LookupError("the file is gone")

    with blocking.connect(running.address, Store) as store:
        with pytest.raises(LookupError, match="the file is gone"):
            store.total(1, rows())
        with pytest.raises(TypeError):
            store.total(1, 5)


def test_a_generator_is_closed_when_the_call_is_over_before(running: Running[Store]) -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with blocking.connect(running.address, Store) as store:
        with store.double(endless()) as items:
            next(items)
        assert closed.wait(5)


# ---- loops, signals, processes


def test_it_works_where_another_loop_runs(running: Running[Store]) -> None:
    """As in a notebook, whose cells run inside a loop."""

    async def cell() -> int:
        with blocking.connect(running.address, Store) as store:
            return int(store.put("k", b"abc"))

    assert asyncio.run(cell()) == 3


def test_it_does_not_wait_for_itself(running: Running[Store]) -> None:
    with blocking.connect(running.address, Store) as store:

        async def source() -> AsyncIterator[bytes]:
            store.put("k", b"")  # in the blocking clients' own loop
            yield b""

        with pytest.raises(zcrpc.FailedPrecondition, match="its own event loop"):
            store.total(1, source())


def test_ctrl_c_cancels_the_call(running: Running[Store]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with blocking.connect(running.address, Store) as store:
            threading.Thread(
                target=lambda: (eventually(lambda: running.service.began), os.kill(os.getpid(), signal.SIGINT))
            ).start()
            with pytest.raises(KeyboardInterrupt):
                store.wait()
            eventually(lambda: running.service.cancelled == 1)
            assert store.put("k", b"abc") == 3, "the client goes on"
    finally:
        signal.signal(signal.SIGINT, before)


def script(text: str, address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", f"import os, sys, zcrpc\naddress = {address!r}\n{text}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_script_that_closes_nothing_ends_in_good_order(
    running: Running[Store], caplog: pytest.LogCaptureFixture
) -> None:
    done = script(
        "client = zcrpc.blocking.connect(address)\nprint(client.call('Store.put', 'k', b'abc'))\n"
        "items = client.stream('Store.count', 10**9); next(items)",
        running.address,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    eventually(lambda: running.server.stats().connections == 0)


def test_a_fork_is_told_and_may_connect_itself(running: Running[Store]) -> None:
    done = script(
        """
client = zcrpc.blocking.connect(address)
client.call("Store.put", "k", b"abc")
child = os.fork()
if child == 0:
    try:
        client.call("Store.get", "k")
    except zcrpc.FailedPrecondition as error:
        print("child:", error.message.replace(str(os.getppid()), "parent"), flush=True)
    with zcrpc.blocking.connect(address) as own:
        print("child:", bytes(own.call("Store.get", "k")), flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print("parent:", bytes(client.call("Store.get", "k")))
""",
        running.address,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "child: this client belongs to process parent, of which this is a fork; connect again here",
        "child: b'abc'",
        "parent: b'abc'",
    ]
