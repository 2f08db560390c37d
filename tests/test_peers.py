"""The suite that compares zcrpc with other stacks: what it measures by, how it verifies, and its command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import peers
import pytest
from click.testing import CliRunner
from peers import plot, stacks, suite, tables
from peers.__main__ import peers as command
from peers.connection import Connection, Task
from peers.payloads import ITEM, acknowledgement, is_whole, summed
from peers.runtimes import Tasks, Threads, finish
from peers.stacks import STACKS, Stack
from peers.suite import Row
from peers.window import Window, percentile
from peers.workloads import WORKLOADS, Work
from test_cli import heed_interrupts

from zcrpc.commands.group import main_of
from zcrpc.lab import load as lab_load
from zcrpc.lab.load import Load

BENCHMARKS = Path(peers.__file__).parents[1]
PEERS = (sys.executable, "-m", "peers")
QUICK = ("--rounds", "1", "--seconds", "0.05")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PEERS, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestWindow:
    def test_what_was_before_it_is_not_counted(self) -> None:
        window = Window(os.getpid(), warm_up=0.05, seconds=0.1)
        goes_on = True
        while goes_on:
            began = time.perf_counter()
            time.sleep(0.01)
            goes_on = window.add(began, time.perf_counter())
        found = window.result()
        assert 0.1 <= found.seconds < 1
        assert 2 <= found.calls <= 10
        assert found.p99_us >= found.p50_us >= 10_000

    def test_callers_that_come_late_stop_too(self) -> None:
        window = Window(os.getpid(), warm_up=0, seconds=0)
        now = time.perf_counter()
        assert [window.add(now, now + 1) for _ in range(4)] == [True, False, False, False]
        assert window.result().calls == 1

    @pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
    def test_percentiles(self, share: float, expected: int) -> None:
        assert percentile([float(each) for each in range(1, 101)], share) == expected


class TestRuntimes:
    async def _note(self, into: list[int], number: int) -> None:
        into.append(number)

    @pytest.mark.parametrize("runtime", [Tasks(), Tasks(asyncio.run), Threads()])
    def test_all_are_run(self, runtime: Tasks | Threads) -> None:
        noted: list[int] = []

        async def main() -> str:
            await runtime.together(*(self._note(noted, number) for number in range(5)))
            return "done"

        assert runtime.run(main()) == "done"
        assert sorted(noted) == list(range(5))

    def test_what_waits_for_a_loop_is_refused_in_a_thread(self) -> None:
        async def suspends() -> None:
            await asyncio.sleep(0)

        work = suspends()
        with pytest.raises(RuntimeError, match="waits for an event loop"):
            finish(work)
        work.close()


class Answers(Connection):
    """A stack of which every second answer to an echo is wrong."""

    def __init__(self) -> None:
        self.calls = 0

    async def echo(self, payload: bytes) -> bytes:
        self.calls += 1
        return payload if self.calls % 2 else bytes(len(payload))


class TestVerification:
    def test_wrong_answers_are_counted(self) -> None:
        connection, window = Answers(), Window(os.getpid(), 0, 0.01)
        (caller,) = connection.callers(Task.of("echo", 64, 1), window, 1)
        finish(caller)
        assert window.wrong == connection.calls // 2 > 0

    def test_the_first_answer_must_be_right(self) -> None:
        connection = Answers()
        connection.calls = 1
        with pytest.raises(ValueError, match="first answer"):
            finish(connection.begin(Task.of("echo", 64, 1)))

    @pytest.mark.parametrize("size", [16, 4096, 10_000])
    def test_a_download_tells_when_it_is_damaged(self, size: int) -> None:
        body = bytearray(summed(size))
        assert is_whole(body, size)
        assert not is_whole(body[:-1], size)
        body[0] ^= 1
        assert not is_whole(body, size)

    @pytest.mark.parametrize(
        ("work", "right", "wrong"),
        [("upload", acknowledgement, lambda _: bytes(16)), ("stream", lambda count: count, lambda count: count - 1)],
    )
    def test_the_checks_of_answers(self, work: Work, right: object, wrong: object) -> None:
        for request, is_right in Task.of(work, 9000, 7).check():
            assert is_right(right(request))  # type: ignore[operator]
            assert not is_right(wrong(request))  # type: ignore[operator]

    def test_the_native_client_adds_up_downloads(self) -> None:
        for size in (16, 4096, 1_000_000):
            with peers.c_floor("download", size) as peer:
                found = peer.run("download", 8, connections=2, in_flight=3, requests=50, warm_up_seconds=0)
            assert (found.requests, found.mismatches) == (50, 0)

    def test_the_native_client_notices_a_download_that_is_damaged(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=_serve_damaged, args=(listener,), daemon=True).start()
            load = Load(
                port=listener.getsockname()[1],
                payload=8,
                protocol="raw",
                verify="own-sum",
                requests=4,
                warm_up_seconds=0,
            )
            found = lab_load.generate(load)
        assert (found.requests, found.mismatches) == (4, 2)

    def test_the_uvloop_floor_does_both_at_once(self) -> None:
        with peers.uvloop_floor("mixed") as peer:
            echoes = peer.run("echo", 64, requests=20, warm_up_seconds=0)
            uploads = peer.run("upload", 1 << 20, requests=5, warm_up_seconds=0)
        assert (echoes.requests, uploads.requests) == (20, 5)


def _serve_damaged(listener: socket.socket) -> None:
    """Every second download has a bit that is wrong."""
    connection, _ = listener.accept()
    with connection:
        for number in range(4):
            connection.recv(16, socket.MSG_WAITALL)
            body = bytearray(summed(10_000))
            body[4096] ^= number % 2
            connection.sendall(len(body).to_bytes(8, "little") + body)


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack that is not installed, and one that cannot start."""
    for stack in (
        Stack("absent", "absent", "rpc", "", ("no-such-distribution",)),
        Stack("broken", "no_such_adapter", "rpc", ""),
    ):
        monkeypatch.setitem(stacks.STACKS, stack.name, stack)


class TestCommand:
    def test_measures_writes_and_draws(self, tmp_path: Path) -> None:
        page, json_path, plot_path = tmp_path / "page.md", tmp_path / "rows.json", tmp_path / "plot.svg"
        page.write_text("before\n<!-- peers: begin -->\nold\n<!-- peers: end -->\nafter\n")
        done = run(
            *("--stacks", "zcrpc,C floor,uvloop floor", "--workloads", "echo,stream", *QUICK),
            *("--json", str(json_path), "--plot", str(plot_path), "--short", str(page)),
        )
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(json_path.read_text())
        assert found["kind"] == "peers"
        assert len(found["rows"]) == 4  # the floors have no streams
        for row in found["rows"]:
            assert (row["failed"], row["wrong"]) == ("", 0)
            assert min(row["requests_per_second"], row["server_cpu_us_per_request"], row["p50_us"]) > 0
        assert "stream: without C floor, uvloop floor: no streams" in done.stdout
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "| **zcrpc** |" in text
        assert "old" not in text
        assert plot_path.read_text().count("uvloop floor") == 2  # a panel each

        again = run("--read", str(json_path))
        assert (again.returncode, again.stdout) == (0, done.stdout)

    def test_what_is_not_installed_or_fails_is_named(self, strange: None) -> None:
        wanted = ["--stacks", "C floor,absent,broken", "--workloads", "sequential", *QUICK]
        done = CliRunner().invoke(command, wanted)
        assert done.exit_code == 1  # for the broken one
        assert "absent: skipped, no-such-distribution is not installed" in done.output
        assert "sequential: broken failed" in done.output
        assert "no_such_adapter" in done.output
        assert "C floor" in done.output

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--stacks", "gRPC"), "no such stack: gRPC; there are zcrpc, "),
            (("--workloads", "ehco"), "no such workload: ehco"),
            (("--rounds", "0"), "rounds 1 to 1000"),
            (("--seconds", "nan"), "seconds must be more than 0"),
            (("--plot", "figure.txt"), "a plot is a file of type"),
            (("--short", "no/such/file"), "cannot read no/such/file"),
            (("--read", "no/such/file"), "cannot read no/such/file"),
            (("--json", "no/such/file"), "cannot write no/such/file"),
            (("--nonsense",), "No such option"),
        ],
    )
    def test_wrong_options_are_one_line(
        self, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["peers", *arguments])
        with pytest.raises(SystemExit) as ended:
            main_of(command, "peers")
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith("peers: ")
        assert said in line

    def test_an_interrupt_keeps_what_was_measured(self, tmp_path: Path) -> None:
        target = tmp_path / "rows.json"
        process = subprocess.Popen(
            [*PEERS, "--stacks", "C floor", "--workloads", "sequential", "--rounds", "900", "--json", str(target)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        while not target.exists():  # it is made before anything is measured
            time.sleep(0.05)
        time.sleep(6)
        process.send_signal(signal.SIGINT)
        try:
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
        assert (process.returncode, stderr) == (130, "interrupted; this was measured\n")
        assert 0 < len(json.loads(target.read_text())["rows"]) < 900
        assert "sequential" in stdout


class TestTables:
    ROWS = (
        Row("zcrpc", "echo", 0, requests=1, requests_per_second=100_000, p50_us=1, p99_us=2),
        Row("zcrpc", "echo", 1, requests=1, requests_per_second=300_000, p50_us=1, p99_us=2),
        Row("zcrpc", "echo", 2, requests=1, requests_per_second=200_000, p50_us=1, p99_us=2, wrong=1),
        Row("aiohttp", "in-flight", 0, failed="it fell over"),
    )

    def test_medians(self) -> None:
        found = suite.by_stack(self.ROWS, "echo")
        assert list(found) == ["zcrpc"]
        assert tables.middle(found["zcrpc"], tables.RATE) == 200_000

    def test_what_is_missing_or_wrong_is_said(self) -> None:
        said = "\n".join(tables.remarks(self.ROWS, {"pyzmq": "pyzmq"}))
        assert "pyzmq: skipped, pyzmq is not installed" in said
        assert "in-flight: aiohttp failed: it fell over" in said
        assert "in-flight: without aiohttp: one request at a time on a connection" in said
        assert "echo: zcrpc gave WRONG answers" in said

    def test_every_stack_lacks_only_what_there_is(self) -> None:
        for stack in STACKS.values():
            assert set(stack.lacks) <= set(WORKLOADS), stack.name
            assert stack.adapter == "" or (BENCHMARKS / "peers" / "adapters" / f"{stack.adapter}.py").exists()

    def test_a_stack_without_figures_is_drawn_as_such(self, tmp_path: Path) -> None:
        plot.draw(self.ROWS, tmp_path / "plot.svg")
        assert "aiohttp" in (tmp_path / "plot.svg").read_text()

    def test_items_of_a_stream_are_as_the_service_sends_them(self) -> None:
        assert len(ITEM) == WORKLOADS["stream"].payload
