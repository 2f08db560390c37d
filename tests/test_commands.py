"""The commands that talk to a running server, run as a user does: in a process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pty
import re
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from in_thread import Running, eventually

import zcrpc
from zcrpc.commands.top import rates
from zcrpc.metering import BOUNDS
from zcrpc.statistics import LockStats, MethodStats, Snapshot

ZCRPC = [sys.executable, "-c", "from zcrpc.cli import main; main()"]


@dataclasses.dataclass
class Entry:
    key: str
    size: int


class Store(zcrpc.Service):
    """Keeps blobs."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.began = threading.Event()

    @zcrpc.method
    async def put(self, key: str, value: bytes, note: str | None = None) -> dict[str, Any]:
        """Keeps a blob.

        Says what it kept.
        """
        return {"key": key, "size": len(value), "note": note, "tenant": zcrpc.context().metadata.get("tenant")}

    @zcrpc.method
    async def echo(self, value: Any) -> Any:
        return value

    @zcrpc.method
    async def reverse(self, value: bytes) -> bytes:
        return value[::-1]

    @zcrpc.method
    async def fail(self) -> None:
        raise zcrpc.NotFound("no such key", details={"key": "k"})

    @zcrpc.method
    async def wait(self) -> None:
        self.began.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.cancelled.set()

    @zcrpc.method
    async def tail(self, count: int) -> AsyncIterator[Entry]:
        for number in range(count):
            yield Entry(str(number), number)

    @zcrpc.method
    async def blobs(self) -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    @zcrpc.method
    async def total(self, items: AsyncIterator[int]) -> int:
        return sum([item async for item in items])

    @zcrpc.method
    async def double(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item


@pytest.fixture(scope="module")
def running() -> Iterator[Running[Store]]:
    made = Running(Store())
    yield made
    made.stop()


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ZCRPC, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


def fine(*arguments: str, **options: Any) -> str:
    """Standard output of a command that succeeds and says nothing on standard error."""
    done = run(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- call


def test_call_with_a_file_text_and_keywords(running: Running[Store], tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(bytes(300_000))
    printed = fine(
        "call", running.address, "Store.put", "plain text", f"@{blob}", "-k", "note=@@home", "--metadata", "tenant=blue"
    )
    assert json.loads(printed) == {"key": "plain text", "size": 300_000, "note": "@home", "tenant": "blue"}
    assert printed.count("\n") > 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ('"12"', "12"),
        ("[1, {}]", [1, {}]),
        ("null", None),
        ("true", True),
        ("1.5", 1.5),
        ("été", "été"),
        ("{broken", "{broken"),
        ("", ""),
    ],
)
def test_arguments_are_json_or_else_text(running: Running[Store], text: str, value: Any) -> None:
    assert (
        fine("call", running.address, "Store.echo", text, "--json")
        == json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"
    )


def test_buffers_in_and_out(running: Running[Store], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*ZCRPC, "call", running.address, "Store.reverse", "@-"]
    done = subprocess.run(command, input=b"abc", capture_output=True, timeout=60, check=True)
    assert done.stdout == b'"Y2Jh"\n'
    done = subprocess.run([*command, "-o", str(out)], input=b"abc", capture_output=True, timeout=60, check=True)
    assert (done.stdout, out.read_bytes()) == (b"", b"cba")


def test_streams_print_a_line_per_item(running: Running[Store], tmp_path: Path) -> None:
    printed = fine("call", running.address, "Store.tail", "3")
    assert [json.loads(line) for line in printed.splitlines()] == [{"key": str(n), "size": n} for n in range(3)]
    out = tmp_path / "out"
    fine("call", running.address, "Store.blobs", "-o", str(out))
    assert out.read_bytes() == b"abc"


def test_streams_to_the_server_come_from_a_file(running: Running[Store], tmp_path: Path) -> None:
    items = tmp_path / "items"
    items.write_text("1\n2\n39\n")
    assert fine("call", running.address, "Store.total", "--items", str(items)) == "42\n"
    assert fine("call", running.address, "Store.double", "--items", "-", input="1\n2\n") == "2\n4\n"
    done = run("call", running.address, "Store.total")
    assert (done.returncode, done.stderr) == (
        2,
        "zcrpc: Store.total takes a stream of items; give them with --items\n",
    )
    items.write_text("1\nnonsense\n")
    done = run("call", running.address, "Store.total", "--items", str(items))
    assert done.returncode == 2
    assert "line 2" in done.stderr


def test_a_call_that_fails_is_status_1(running: Running[Store]) -> None:
    done = run("call", running.address, "Store.fail")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'zcrpc: NOT_FOUND: no such key\nzcrpc: details: {"key":"k"}\n'


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["Store.put", "k"], 1, "INVALID_ARGUMENT: Store.put() misses 'value'"),
        (["Store.put", "k", "5"], 1, "INVALID_ARGUMENT: Store.put(): 'value': Expected `bytes`, got `int`"),
        (["Store.nothing"], 1, "UNIMPLEMENTED"),
        (["Store.wait", "--timeout", "0.3"], 1, "DEADLINE_EXCEEDED"),
        (["Store.echo", "1", "--stream"], 1, "FAILED_PRECONDITION"),
        (["Store.put", "k", "@/nowhere/at/all"], 2, "cannot read /nowhere/at/all: No such file"),
        (["Store.put", "k", "-k", "note"], 2, "--keyword note: expected name=value"),
        (["Store.put", "--metadata", "=x"], 2, "--metadata =x: expected name=value"),
        (["Store.echo", "1", "--metadata", "Upper=x"], 1, "a key is a lower-case token"),
        (["Store.echo", "1", "--timeout", "0"], 2, "timeout"),
        (["Store.echo", "1", "-o", "/nowhere/at/all"], 2, "cannot write /nowhere/at/all"),
        (["Store.total", "--items", "/nowhere/at/all"], 2, "cannot read /nowhere/at/all"),
        (["Store.echo", "1", "--ca", "/nowhere"], 2, "--ca, --certificate and --key go with --tls"),
        (["Store.echo", "1", "--tls", "--ca", "/nowhere"], 2, "TLS: "),
        (["Store.echo", "1", "--server-name", "x"], 2, "--server-name goes with --tls"),
    ],
)
def test_what_is_wrong_is_one_line(running: Running[Store], arguments: list[str], status: int, message: str) -> None:
    done = run("call", running.address, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("zcrpc: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["call", "X.y"], ["describe"], ["ping"], ["health"], ["top"]])
def test_nobody_there_and_wrong_addresses(command: list[str]) -> None:
    name, *rest = command
    done = run(name, "unix:///nowhere/at/all", *rest)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("zcrpc: UNAVAILABLE: unix:///nowhere/at/all: ")
    done = run(name, "nonsense", *rest)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "expected tcp://host:port" in done.stderr


def test_an_interrupt_cancels_the_call(running: Running[Store]) -> None:
    running.service.began.clear()
    running.service.cancelled.clear()
    process = subprocess.Popen(
        [*ZCRPC, "call", running.address, "Store.wait"],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.service.began.wait(20)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1].strip() == b""
    assert process.returncode == 130
    assert running.service.cancelled.wait(5)


def test_a_token_comes_from_the_environment() -> None:
    def check(peer: zcrpc.Credentials) -> str:
        if peer.token != "secret":
            raise zcrpc.Unauthenticated("no such token")
        return "somebody"

    running = Running(Store(), authenticate=check, introspection=False)
    try:
        done = run("call", running.address, "Store.echo", "1")
        assert (done.returncode, done.stderr) == (1, "zcrpc: UNAUTHENTICATED: no such token\n")
        with_token = {**os.environ, "ZCRPC_TOKEN": "secret"}
        assert fine("call", running.address, "Store.echo", "1", env=with_token) == "1\n"
        # No introspection: the kind of call has to be said.
        done = run("call", running.address, "Store.tail", "1", env=with_token)
        assert (done.returncode, done.stderr.split(": ")[1]) == (1, "FAILED_PRECONDITION")
        assert fine("call", running.address, "Store.blobs", "--stream", env=with_token) == '"YWI="\n"Yw=="\n'
        done = run("describe", running.address, env=with_token)
        assert (done.returncode, done.stderr.split(": ")[1]) == (1, "UNIMPLEMENTED")
    finally:
        running.stop()


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    own, served = tmp_path / "client.pem", ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(served)
    authority.configure_trust(served)
    served.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("somebody").private_key_and_cert_chain_pem.write_to_path(own)
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(trusted)
    running = Running(Store(), tls=served)
    try:
        tls = ["--tls", "--ca", str(trusted), "--certificate", str(own), "--server-name", "localhost"]
        assert fine("call", running.address, "Store.echo", "1", *tls) == "1\n"
        done = run("ping", running.address, "--tls", "--ca", str(trusted))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "the certificate does not verify" in done.stderr
    finally:
        running.stop()


# ---- describe, ping, health


def test_describe(running: Running[Store]) -> None:
    printed = fine("describe", running.address)
    assert printed.startswith("Store\n    Keeps blobs.\n")
    assert (
        "\n    put(key: str, value: bytes, note: str | None = None) -> dict[str, Any]\n        Keeps a blob." in printed
    )
    assert "tail(count: int) -> AsyncIterator[Entry]   [server-stream]" in printed
    assert "zcrpc.Health" not in printed
    assert "zcrpc.Health" in fine("describe", running.address, "--all")
    assert "check(service: str = '')" in fine("describe", running.address, "zcrpc.Health")
    (found,) = json.loads(fine("describe", running.address, "Store.tail", "--json"))
    assert (found["name"], found["kind"]) == ("Store.tail", "server-stream")
    assert found["result_schema"]["$defs"]["Entry"]["properties"]["size"] == {"type": "integer"}
    done = run("describe", running.address, "Shop")
    assert (done.returncode, done.stderr) == (1, "zcrpc: NOT_FOUND: there is no service and no method 'Shop'\n")


def test_ping(running: Running[Store]) -> None:
    printed = fine("ping", running.address, "-c", "3", "-i", "0.01").splitlines()
    assert [line.startswith(f"pong from {running.address}: ") for line in printed] == [True, True, True, False]
    assert printed[3].startswith("3 sent, 3 received; min/avg/max = ")
    found = json.loads(fine("ping", running.address, "-c", "2", "-i", "0", "--json"))
    assert (found["sent"], found["received"]) == (2, 2)
    assert 0 < found["min_ms"] <= found["avg_ms"] <= found["max_ms"] < 1000


def test_health(running: Running[Store]) -> None:
    assert fine("health", running.address) == "SERVING\n"
    running.server.health.set("Store", serving=False)
    done = run("health", running.address, "Store", "--json")
    assert (done.returncode, done.stdout) == (1, '{"service":"Store","status":"NOT_SERVING"}\n')
    running.server.health.set("Store", serving=True)
    done = run("health", running.address, "Shop")
    assert (done.returncode, done.stderr) == (1, "zcrpc: NOT_FOUND: there is no service 'Shop'\n")


def test_health_watch_ends_with_the_server() -> None:
    running = Running(Store())
    try:
        process = subprocess.Popen(
            [*ZCRPC, "health", running.address, "--watch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "SERVING\n"
    finally:
        running.stop()
    printed, said = process.communicate(timeout=20)
    assert (printed, said, process.returncode) == ("NOT_SERVING\n", "", 1)


# ---- top


def test_top_once(running: Running[Store]) -> None:
    printed = fine("top", running.address, "--once", "-i", "0.2", env={**os.environ, "COLUMNS": "200"})
    assert running.address in printed
    assert "connections 1" in printed
    assert "lock per-region:" in printed


def test_top_measures_what_happens_meanwhile(running: Running[Store]) -> None:
    process = subprocess.Popen(
        [*ZCRPC, "top", running.address, "-i", "0.5", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: running.server.meter.measures, 20)
        with zcrpc.blocking.connect(running.address) as client:
            for _ in range(50):
                client.call("Store.reverse", bytes(100_000))
            with pytest.raises(zcrpc.NotFound):
                client.call("Store.fail")
        assert process.stdout is not None
        puts = fails = 0.0
        slowest = 0.0
        while (puts, fails) != (pytest.approx(50), pytest.approx(1)):
            seen = json.loads(process.stdout.readline())
            put, fail = (seen["methods"].get(f"Store.{name}", {}) for name in ("reverse", "fail"))
            puts += put.get("calls_per_second", 0) * seen["interval"]
            fails += fail.get("errors_per_second", 0) * seen["interval"]
            slowest = max(slowest, put.get("p99") or 0)
            assert puts < 51
        assert 0 < slowest < 1
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    eventually(lambda: not running.server.meter.measures)


def test_top_on_a_terminal(running: Running[Store]) -> None:
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [*ZCRPC, "top", running.address, "-i", "0.1"],
        stdout=end,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "160", "LINES": "40", "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(end)
    seen = ""
    until = time.monotonic() + 20
    while seen.count("requests/s") < 3 and time.monotonic() < until:
        seen += os.read(terminal, 1 << 16).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    while True:  # what it still says, lest it wait for us
        try:
            if not os.read(terminal, 1 << 16):
                break
        except OSError:
            break
    assert process.wait(20) == 130
    os.close(terminal)
    assert process.stderr is not None
    process.stderr.close()
    assert seen.count("requests/s") >= 3


def test_rates_between_two_snapshots() -> None:
    def snapshot(when: float, requests: int, mapped: int, fine: int, slow: int) -> Snapshot:
        buckets = [0] * (len(BOUNDS) + 1)
        buckets[BOUNDS.index(0.001)] = slow
        lock = LockStats(
            strategy="global", read_locks=requests, fallbacks=0, retries=0, misses=0, write_locks=0, waits=0
        )
        method = MethodStats(
            active=1, statuses={"OK": fine, "INTERNAL": slow - fine}, seconds=slow / 1000, buckets=buckets
        )
        return Snapshot(
            pid=1,
            when=when,
            uptime=when,
            counters={"requests": requests, "payload_bytes_mapped": mapped, "payload_bytes_copied": 100},
            fallbacks={},
            exhausted={},
            lock=lock,
            measures=True,
            bounds=list(BOUNDS),
            methods={"A.b": method},
        )

    now = rates(snapshot(10, 100, 0, 10, 10), snapshot(12, 300, 500, 30, 40))
    assert (now.interval, now.per_second["requests"], now.lock_per_second["read_locks"]) == (2, 100, 100)
    assert now.mapped_percent == 100
    method = now.methods["A.b"]
    assert (method.calls_per_second, method.errors_per_second) == (15, 5)
    assert method.mean == pytest.approx(0.001)
    assert method.p50 == pytest.approx(0.00075)
    idle = rates(snapshot(10, 100, 0, 10, 10), snapshot(11, 100, 0, 10, 10))
    assert (idle.mapped_percent, idle.methods["A.b"].mean, idle.methods["A.b"].p99) == (None, None, None)


# ---- the documentation


def test_the_documentations_commands() -> None:
    """Each is run in a shell, against a server of the page's service, and prints what the page says."""
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0], namespace)
    running = Running(namespace["Store"]())
    command = " ".join(map(shlex.quote, ZCRPC))
    try:
        for block in re.findall(r"^```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                typed, _, printed = part.partition("\n")
                typed = typed.replace("tcp://127.0.0.1:7000", running.address).replace("zcrpc ", f"{command} ", 1)
                done = subprocess.run(
                    ["bash", "-c", typed], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
                )
                assert done.stdout == printed, part
    finally:
        running.stop()
