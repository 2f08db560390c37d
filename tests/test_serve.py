"""`zcrpc serve`: real processes, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import pytest
import trustme
from conftest import Waits, until

import zcrpc
from zcrpc.address import Address
from zcrpc.cli import cli
from zcrpc.supervisor import DidNotStart, Supervisor

APP = """
import asyncio, os, threading, time
from collections.abc import AsyncIterator
import zcrpc

class Store(zcrpc.Service):
    @zcrpc.method
    async def pid(self) -> int:
        return os.getpid()

    @zcrpc.method
    async def slow(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return os.getpid()

    @zcrpc.method
    async def count(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            await asyncio.sleep(0.005)
            yield number

    @zcrpc.method(blocking=True)
    def block(self) -> None:
        threading.Event().wait()

class Other(zcrpc.Service):
    @zcrpc.method
    def ping(self) -> str:
        return "pong"

class Needs(zcrpc.Service):
    def __init__(self, argument): ...

made = zcrpc.Server(Store(), max_connections=3)

def factory():
    return Store()

class holder:
    inside = Store()

number = 1
"""


class Served:
    """A running `zcrpc serve`, in a directory with app.py."""

    def __init__(
        self, directory: Path, *arguments: str, listen: str | None = "tcp://127.0.0.1:0", **options: Any
    ) -> None:
        (directory / "app.py").exists() or (directory / "app.py").write_text(APP)
        self.log = directory / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zcrpc.cli", "serve", *arguments, *(["--listen", listen] if listen else [])],
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                **options,
            )

    def address(self) -> str:
        """The next one that it says it listens on; waits until it does."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), self.log.read_text()
        return line.removeprefix("listening on ").strip()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 20.0) -> int:
        return self.process.wait(timeout)

    async def says(self, text: str, times: int = 1) -> None:
        try:
            await until(lambda: self.log.read_text().count(text) >= times, timeout=30)
        except TimeoutError:
            pytest.fail(f"no {text!r} in {self.log.read_text()}")

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if kind is not None:
            print(self.log.read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- one process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_calls_finish(tmp_path: Path, number: signal.Signals) -> None:
    with Served(tmp_path, "app:Store") as served:
        address = served.address()
        client = await zcrpc.connect(address, retries=None)
        call = asyncio.ensure_future(client.call("Store.slow", 0.6))
        await asyncio.sleep(0.2)
        served.signal(number)
        await served.says("going away")
        with pytest.raises(zcrpc.Unavailable):
            await zcrpc.connect(address)
        assert await call == served.process.pid
        await client.close()
        assert served.end() == 0


async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--grace", "60", "--no-uvloop") as served:
        client = await zcrpc.connect(served.address(), retries=None)
        call = asyncio.ensure_future(client.call("Store.slow", 30))
        await asyncio.sleep(0.2)
        served.signal(signal.SIGTERM)
        await served.says("SIGTERM: going away\n")
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        with pytest.raises(zcrpc.Unavailable, match="the server has gone away"):
            await call
        await client.close()
        assert served.end() == 0
        assert time.monotonic() - begun < 10


async def test_a_thread_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--grace", "0.1") as served:
        client = await zcrpc.connect(served.address(), retries=None)
        call = asyncio.ensure_future(client.call("Store.block"))
        await asyncio.sleep(0.2)
        served.signal(signal.SIGTERM)
        with pytest.raises(zcrpc.Unavailable):
            await call
        await client.close()
        assert served.end() == 0
        assert "1 blocking calls are abandoned" in served.log.read_text()


async def test_serves_what_is_named(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Served(tmp_path, "app:factory, app:Other", "--listen", f"unix://{path}", "--max-calls", "1") as served:
        for address in (served.address(), served.address()):
            async with zcrpc.connect(address, retries=None) as client:
                assert await client.call("Store.pid") == served.process.pid
                assert await client.call("Other.ping") == "pong"
                call = asyncio.ensure_future(client.call("Store.slow", 1))
                await asyncio.sleep(0.1)
                with pytest.raises(zcrpc.ResourceExhausted):
                    await client.call("Store.slow", 0)
                await call
        served.signal(signal.SIGTERM)
        assert served.end() == 0
    assert not path.exists()


async def test_serves_a_server_and_attributes_of_objects(tmp_path: Path) -> None:
    for name in ("app:made", "app:holder.inside"):
        with Served(tmp_path, name) as served:
            async with zcrpc.connect(served.address()) as client:
                assert await client.call("Store.pid") == served.process.pid


async def test_inherits_sockets(tmp_path: Path) -> None:
    """As systemd hands them over."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        fd, port = sock.fileno(), sock.getsockname()[1]
        with Served(tmp_path, "app:Store", listen=f"fd://{fd}", pass_fds=[fd]) as served:
            address = f"tcp://127.0.0.1:{port}"
            assert served.address() == address
            async with zcrpc.connect(address) as client:
                assert await client.call("Store.pid") == served.process.pid


async def test_serves_by_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    context = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    with Served(tmp_path, "app:Store", "--certificate", str(tmp_path / "pem")) as served:
        address = served.address()
        async with zcrpc.connect(address, ssl=context) as client:
            assert await client.call("Store.pid") == served.process.pid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app"], "expected module:Service"),
        (["app:"], "expected module:Service"),
        (["nowhere:Store"], "there is no module 'nowhere'"),
        (["nowhere.inside:Store"], "there is no module 'nowhere'"),
        (["app:Nothing"], "app:Nothing: there is no 'Nothing' in app"),
        (["app:number"], "app:number is no zcrpc.Service or zcrpc.Server, but int"),
        (["app:os"], "app:os is no zcrpc.Service or zcrpc.Server, but module"),
        (["app:made", "--locks", "global"], "is a Server with options of its own; locks cannot be given"),
        (["app:made,app:Other"], "app:made is a Server; it cannot be served together with others"),
        (["app:Store,app:factory"], "two services have a method Store."),
        (["app:Store", "--locks", "nonsense"], "nonsense"),
        (["app:Store", "--listen", "nonsense"], "expected tcp://host:port or unix://path"),
        (["app:Store", "--listen", "fd://x"], "expected fd://number"),
        (["app:Store", "--workers", "0"], "0 is not in the range"),
        (["app:Store", "--grace", "-1"], "-1.0 is not in the range"),
        (["app:Store", "--key", "app.py"], "need a --certificate"),
        (["app:Store", "--certificate", "app.py"], "the certificate or its key cannot be used"),
    ],
)
def test_bad_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "app", raising=False)
    with pytest.raises(click.UsageError) as caught:
        cli.main(["serve", *arguments], standalone_mode=False)
    assert message in caught.value.format_message()


def test_bad_usage_is_one_line(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Nothing") as served:
        assert served.end() == 2
    assert served.log.read_text() == "zcrpc: app:Nothing: there is no 'Nothing' in app\n"


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_an_address_that_cannot_be_had(tmp_path: Path, workers: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as sock:
        taken = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        with Served(tmp_path, "app:Store", *workers, listen=taken) as served:
            assert served.end() == 1
    assert "zcrpc: cannot listen: " in served.log.read_text()


@pytest.mark.parametrize("listen", ["fd://0", "fd://999"])
def test_a_descriptor_that_cannot_listen(tmp_path: Path, listen: str) -> None:
    with Served(tmp_path, "app:Store", listen=listen, stdin=subprocess.DEVNULL) as served:
        assert served.end() == 1
    assert "zcrpc: cannot listen: " in served.log.read_text()


# ---- workers


async def pids_of(address: str, count: int) -> set[int]:
    """Of the workers behind an address. Connections are dealt out by chance."""
    found: set[int] = set()
    async with asyncio.timeout(30):
        while len(found) < count:
            async with zcrpc.connect(address) as client:
                found.add(await client.call("Store.pid"))
    return found


class Load:
    """Clients that call all the time, and what went wrong."""

    def __init__(self, clients: list[zcrpc.Client]) -> None:
        self.clients = clients
        self.running = True
        self.calls = self.streams = 0
        self.pids: set[int] = set()
        self.failures: list[BaseException] = []
        self.tasks = [asyncio.ensure_future(loop(client)) for client in clients for loop in (self.call, self.stream)]

    async def call(self, client: zcrpc.Client) -> None:
        while self.running:
            try:
                self.pids.add(await client.call("Store.slow", 0.001, timeout=20))
            except zcrpc.ZcrpcError as error:
                self.failures.append(error)
            self.calls += 1

    async def stream(self, client: zcrpc.Client) -> None:
        while self.running:
            try:
                assert [each async for each in client.stream("Store.count", 20, timeout=20)] == list(range(20))
            except zcrpc.ZcrpcError as error:
                self.failures.append(error)
            self.streams += 1

    async def end(self) -> None:
        self.running = False
        await asyncio.gather(*self.tasks)
        for client in self.clients:
            await client.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_rolling_restart_loses_no_call(tmp_path: Path, kind: str) -> None:
    listen = "tcp://127.0.0.1:0" if kind == "tcp" else f"unix://{tmp_path}/socket"
    with Served(tmp_path, "app:Store", "--workers", "2", listen=listen) as served:
        address = served.address()
        before = await pids_of(address, 2)
        load = Load([await zcrpc.connect(address) for _ in range(4)])
        served.signal(signal.SIGHUP)
        await served.says("all workers have been restarted")
        await asyncio.sleep(0.2)
        load.pids.clear()
        await asyncio.sleep(0.2)
        await load.end()
        assert not load.failures
        assert load.calls > 100
        assert load.streams > 8
        assert load.pids
        assert not load.pids & before
        assert not await pids_of(address, 2) & before
        assert not any(map(alive, before))
        served.signal(signal.SIGTERM)
        assert served.end() == 0
    assert "killed" not in served.log.read_text()


async def test_workers_that_die_are_replaced_and_their_queues_are_not_lost(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--workers", "2") as served:
        address = served.address()
        before = await pids_of(address, 2)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        # Nobody accepts for a while, and nobody is turned away.
        assert not await pids_of(address, 2) & before
        log = served.log.read_text()
        assert log.count("was killed by SIGKILL") == 2
        assert log.count("another worker is started in 0.1 s") == 2
        served.signal(signal.SIGINT)
        assert served.end() == 0


async def test_a_worker_that_keeps_dying_is_started_ever_later(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--workers", "1") as served:
        address = served.address()
        (pid,) = await pids_of(address, 1)
        (tmp_path / "app.py").write_text("import os; os._exit(7)")
        os.kill(pid, signal.SIGKILL)
        await served.says("ended with status 7 before it was ready", 2)
        (tmp_path / "app.py").write_text(APP)
        assert await pids_of(address, 1) != {pid}
    delays = [line.rpartition(" in ")[2] for line in served.log.read_text().splitlines() if "is started in" in line]
    assert delays[:3] == ["0.1 s", "0.2 s", "0.4 s"]


async def test_nobody_waits_for_a_worker_that_keeps_dying(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--workers", "2") as served:
        address = served.address()
        before = await pids_of(address, 2)
        (tmp_path / "app.py").write_text("import os; os._exit(7)")
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await served.says("ended with status 7 before it was ready")
        for _ in range(20):  # one in a million that all of them go to the other by chance
            async with zcrpc.connect(address, timeout=2) as client:
                assert {await client.call("Store.pid")} == before - {victim}
        (tmp_path / "app.py").write_text(APP)
        after = await pids_of(address, 2)
        assert after & before == before - {victim}


async def test_tells_systemd_when_it_serves(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(20)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Served(tmp_path, "app:Store", "--workers", "2", env=environment) as served:
            assert await asyncio.to_thread(notified.recv, 100) == b"READY=1"
            assert len(await pids_of(served.address(), 2)) == 2


async def test_a_restart_with_a_broken_module_keeps_the_old_workers(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--workers", "2") as served:
        address = served.address()
        before = await pids_of(address, 2)
        (tmp_path / "app.py").write_text("a bug")
        served.signal(signal.SIGHUP)
        await served.says("the restart is given up, and the workers that are there go on")
        assert "SyntaxError" in served.log.read_text()
        assert await pids_of(address, 2) == before
        served.signal(signal.SIGTERM)
        assert served.end() == 0


def test_workers_that_cannot_start(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Nothing", "--workers", "3") as served:
        assert served.end() == 1
    log = served.log.read_text()
    assert log.count("zcrpc: app:Nothing: there is no 'Nothing' in app") == 1
    assert "before it was ready: nothing is served" in log


async def test_workers_do_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--workers", "2") as served:
        workers = await pids_of(served.address(), 2)
        served.process.kill()
        served.end()
        await until(lambda: not any(map(alive, workers)), timeout=20)


async def test_a_supervisor_lets_calls_finish_and_hurries_when_told_twice(tmp_path: Path) -> None:
    with Served(tmp_path, "app:Store", "--workers", "1", "--grace", "60") as served:
        client = await zcrpc.connect(served.address(), retries=None)
        short, long = (asyncio.ensure_future(client.call("Store.slow", seconds)) for seconds in (0.5, 50))
        await asyncio.sleep(0.1)
        served.signal(signal.SIGTERM)
        assert await short
        begun = time.monotonic()
        served.signal(signal.SIGTERM)
        with pytest.raises(zcrpc.Unavailable):
            await long
        await client.close()
        assert served.end() == 0
        assert time.monotonic() - begun < 10


# ---- in a program


@contextmanager
def handler(number: signal.Signals, what: Any) -> Iterator[None]:
    before = signal.signal(number, what)
    try:
        yield
    finally:
        signal.signal(number, before)


async def test_serve_until_signalled_restores_what_was_there() -> None:
    mine: list[int] = []
    with handler(signal.SIGTERM, lambda number, frame: mine.append(number)):
        server = zcrpc.Server(Waits())
        async with server.listen("tcp://127.0.0.1:0"):
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
            assert await server.serve_until_signalled() is signal.SIGTERM
        assert not mine
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: mine)


async def test_serve_until_signalled_ends_with_the_server_too() -> None:
    server = zcrpc.Server(Waits())
    await server.listen("tcp://127.0.0.1:0")
    asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(server.close()))
    assert await server.serve_until_signalled() is None


async def test_signals_are_for_the_main_thread() -> None:
    async def elsewhere() -> None:
        server = zcrpc.Server(Waits())
        async with server.listen("tcp://127.0.0.1:0"):
            await server.serve_until_signalled()

    with pytest.raises(RuntimeError, match="in the main thread only"):
        await asyncio.to_thread(asyncio.run, elsewhere())


async def test_closing_again_shortens_the_grace() -> None:
    service = Waits()
    server = zcrpc.Server(service)
    client = await zcrpc.connect(await server.listen("tcp://127.0.0.1:0"), retries=None)
    call = asyncio.ensure_future(client.call("Waits.wait"))
    await until(lambda: service.began)
    closing = asyncio.ensure_future(server.close(grace=60))
    await asyncio.sleep(0.05)
    assert not closing.done()
    async with asyncio.timeout(10):
        await server.close(grace=0.05)
        await closing
    with pytest.raises(zcrpc.Unavailable):
        await call
    await client.close()


async def test_listens_on_a_socket_that_is_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    tcp, local = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    local.bind(str(path))
    server = zcrpc.Server(Waits())
    port = tcp.getsockname()[1]
    assert await server.listen(tcp) == f"tcp://127.0.0.1:{port}"
    assert await server.listen(local) == f"unix://{path}"
    for address in (f"tcp://127.0.0.1:{port}", f"unix://{path}"):
        async with zcrpc.connect(address):
            pass
    await server.close()
    assert path.exists()  # it was not made here
    with pytest.raises(ValueError, match="is no stream socket"), socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        await zcrpc.Server(Waits()).listen(datagrams)


async def test_a_worker_that_cannot_be_started_is_a_failure_like_others() -> None:
    supervisor = Supervisor(["/nowhere/python"], [Address(host="127.0.0.1", port=0)], 1, 1.0)
    said: list[Any] = []
    with pytest.raises(DidNotStart, match=r"a worker cannot be started: .*No such file"):
        await supervisor.run(said.append)
    assert not said
