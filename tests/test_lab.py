"""The laboratory, in short real runs: its figures must be there, be possible, and agree with each other."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from zcrpc import locks, wire
from zcrpc.lab import load as lab_load
from zcrpc.lab import seed, tables, upload
from zcrpc.lab.load import Load, LoadResult
from zcrpc.lab.processes import Child, ChildFailed
from zcrpc.lab.receivers import Receivers
from zcrpc.lab.service import ServiceOptions, ServiceProcess, page_sum

MIB = 1 << 20


@pytest.fixture(scope="module")
def experiment() -> seed.Experiment:
    return seed.Experiment(connections=20, seconds=0.6, rounds=2)


@pytest.fixture(scope="module")
def rounds(experiment: seed.Experiment) -> list[seed.Round]:
    return list(seed.run(experiment))


@pytest.mark.alone
class TestSeed:
    def test_every_strategy_runs_in_every_scenario_in_every_round(self, rounds: list[seed.Round]) -> None:
        ran = [(each.round, each.scenario, each.strategy) for each in rounds]
        assert ran == [
            (0, "readers-only", "global"),
            (0, "readers-only", "per-region"),
            (0, "writer-storm", "global"),
            (0, "writer-storm", "per-region"),
            (1, "readers-only", "per-region"),
            (1, "readers-only", "global"),
            (1, "writer-storm", "per-region"),
            (1, "writer-storm", "global"),
        ]

    def test_everything_is_mapped_and_arrives_as_it_was_sent(self, rounds: list[seed.Round]) -> None:
        for each in rounds:
            assert each.requests > 100
            assert each.mapped_percent >= 99
            assert each.wrong_replies == 0
            assert each.regions >= each.connections

    def test_figures_are_possible(self, rounds: list[seed.Round]) -> None:
        for each in rounds:
            assert each.requests_per_second == pytest.approx(each.requests / each.seconds)
            assert 0 < each.lock_path_share_percent < 100
            assert (
                0 <= each.lock_wait_p50_us <= each.lock_wait_p99_us <= each.lock_wait_p999_us <= each.lock_wait_max_us
            )
            assert each.lock_wait_p50_us < each.receive_p50_us <= each.receive_p999_us <= each.receive_max_us
            assert each.preempted_samples < each.samples / 100
            assert each.server_cpu_us_per_request > 1
            assert 0 <= each.fallback_percent <= 100

    def test_the_storm_has_a_writer_that_gets_in(self, rounds: list[seed.Round]) -> None:
        for each in rounds:
            if each.scenario == "readers-only":
                assert (each.writer_locks_per_second, each.writer_interval_us) == (0, 0)
            else:
                assert each.writer_locks_per_second > 50
                assert each.writer_hold_p50_us >= each.writer_hold_us == 500

    def test_a_writer_stalls_receives_under_global_only(self, rounds: list[seed.Round]) -> None:
        waited = {
            name: min(
                each.lock_wait_p999_us for each in rounds if (each.scenario, each.strategy) == ("writer-storm", name)
            )
            for name in ("global", "per-region")
        }
        assert waited["per-region"] < 50 < waited["global"]

    def test_the_table_has_a_column_for_each(self, rounds: list[seed.Round]) -> None:
        table = tables.table(rounds)
        headers = [str(column.header) for column in table.columns]
        assert headers == [
            "",
            "readers-only\nglobal",
            "readers-only\nper-region",
            "writer-storm\nglobal",
            "writer-storm\nper-region",
        ]
        assert tables.conclusion(rounds).startswith("Readers only, on ")

    def test_a_single_round_can_be_reported(self, rounds: list[seed.Round]) -> None:
        assert tables.table(rounds[:1]).row_count > 10
        assert "global" in tables.conclusion(rounds[:1])

    @pytest.mark.parametrize("receive", ["copy", "copy-pages"])
    def test_copying_maps_nothing(self, experiment: seed.Experiment, receive: str) -> None:
        copied = dataclasses.replace(experiment, receive=receive, seconds=0.3, rounds=1)
        found = seed.run_round(copied, "per-region", "readers-only")
        assert found.requests > 100
        assert found.wrong_replies == 0
        assert found.payload_bytes_mapped == 0 < found.payload_bytes_copied

    @pytest.mark.parametrize(("payload", "per_region"), [(100, 1), (5000, 0), (MIB + 1, 4), (3 * MIB, 1)])
    def test_payloads_of_any_size_are_mapped(self, payload: int, per_region: int) -> None:
        small = seed.Experiment(
            connections=4, payload=payload, connections_per_region=per_region, seconds=0.3, rounds=1
        )
        found = seed.run_round(small, "per-region", "readers-only")
        assert found.requests > 0
        assert found.wrong_replies == 0
        assert found.mapped_percent >= 99

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"locks": ("no-such-lock",)}, "no such lock strategy: no-such-lock; there are .*global.*"),
            ({"locks": ()}, "no lock strategy was named"),
            ({"locks": ("global", "global")}, "named twice"),
            ({"connections": 0}, "connections must be 1 or more"),
            ({"connections": 10**9, "receive_threads": 2}, "connections must be at most"),
            ({"payload": 0}, "payload must be"),
            ({"receive_threads": 0}, "receive threads must be"),
            ({"receive_threads": 3, "connections": 2}, "more receive threads than connections"),
            ({"connections_per_region": -1}, "connections per region"),
            ({"seconds": 0}, "seconds must be"),
            ({"seconds": float("nan")}, "seconds must be"),
            ({"rounds": 0}, "rounds must be"),
            ({"writer_interval_us": 100, "writer_hold_us": 100}, "shorter than its interval"),
            ({"writer_interval_us": 0, "writer_hold_us": 5}, "shorter than its interval"),
            ({"writer_interval_us": -1, "writer_hold_us": -2}, "must be 0 to 60 s"),
        ],
    )
    def test_the_impossible_is_refused(self, settings: dict[str, object], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            seed.Experiment(**settings)  # type: ignore[arg-type]

    def test_an_unknown_strategy_ends_the_server_with_a_message(self) -> None:
        receivers = Receivers(strategy="no-such-lock", receive="zerocopy", connections=1, threads=1, payload=1)
        with Child("zcrpc.lab.receivers", receivers) as server, pytest.raises(ChildFailed, match="no-such-lock"):
            server.receive(int)


class TestReport:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (0.3712, "0.37"),
            (9.999, "10.0"),
            (45.67, "45.7"),
            (999.7, "1.00k"),
            (1616, "1.62k"),
            (96512, "96.5k"),
            (2.5e6, "2.50M"),
        ],
    )
    def test_numbers_are_short(self, value: float, text: str) -> None:
        assert tables.short(value) == text


@pytest.fixture(scope="module")
def copying() -> Iterator[ServiceProcess]:
    with ServiceProcess(ServiceOptions(receive="copy")) as server:
        yield server


@pytest.fixture(scope="module")
def mapping() -> Iterator[ServiceProcess]:
    with ServiceProcess(ServiceOptions(receive="zerocopy")) as server:
        yield server


class TestLoad:
    def test_an_echo_is_verified(self, copying: ServiceProcess) -> None:
        load = _load(copying, "Bench.echo", "echo", 5000, connections=3, in_flight=4, requests=500)
        result = lab_load.generate(load)
        assert (result.requests, result.errors, result.mismatches) == (500, 0, 0)
        assert result.latency.samples == 500

    @pytest.mark.parametrize("payload", [MIB, MIB + 1, 5 * MIB - 17])
    def test_large_echoes_come_back_in_chunks(self, copying: ServiceProcess, payload: int) -> None:
        result = lab_load.generate(_load(copying, "Bench.echo", "echo", payload, connections=2, requests=20))
        assert (result.requests, result.errors, result.mismatches) == (20, 0, 0)

    @pytest.mark.parametrize("receive", ["copy", "zerocopy"])
    @pytest.mark.parametrize("payload", [1, 4096, 100_000, 3 * MIB + 5])
    @pytest.mark.parametrize("in_flight", [1, 3])
    def test_uploads_are_verified(
        self, copying: ServiceProcess, mapping: ServiceProcess, receive: str, payload: int, in_flight: int
    ) -> None:
        server = mapping if receive == "zerocopy" else copying
        padded = 0 < lab_load.hello_of(server.ready.port).map_from <= payload
        before = server.snapshot().payload_bytes_mapped
        load = _load(server, "Bench.put", "sum", payload, padded=padded, requests=20, in_flight=in_flight)
        result = lab_load.generate(load)
        counted = server.snapshot()
        mapped = counted.payload_bytes_mapped - before
        assert (result.requests, result.errors, result.mismatches) == (20, 0, 0)
        assert mapped >= 0.99 * 20 * payload if padded else mapped == 0
        assert counted.leases == 0

    def test_wrong_replies_are_noticed(self, copying: ServiceProcess) -> None:
        # an echo is no page sum
        result = lab_load.generate(_load(copying, "Bench.echo", "sum", 5000, requests=10))
        assert (result.requests, result.mismatches) == (10, 10)

    def test_refusals_are_errors(self, copying: ServiceProcess) -> None:
        load = dataclasses.replace(_load(copying, "Bench.put", "none", 10, requests=10), method=999)
        result = lab_load.generate(load)
        assert (result.requests, result.errors) == (10, 10)

    def test_the_cpu_of_the_server_is_read(self, copying: ServiceProcess) -> None:
        load = dataclasses.replace(_load(copying, "Bench.echo", "echo", 64, requests=2000), server_pid=copying.pid)
        result = lab_load.run(load)
        assert 0.001 < result.server_cpu_seconds < 10
        assert result.server_cpu_us_per_request == pytest.approx(result.server_cpu_seconds / 2000 * 1e6)

    def test_nobody_listens(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                lab_load.generate(Load(port=unused.getsockname()[1], payload=1))

    def test_somebody_else_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            threading.Thread(target=_answer_in_http, args=(other,), daemon=True).start()
            with pytest.raises(Exception, match="generating load"):
                lab_load.generate(Load(port=other.getsockname()[1], payload=1, seconds=10))

    def test_a_header_is_what_the_codec_writes(self) -> None:
        from zcrpc.codec import Codec

        payload = memoryview(os.urandom(5000))
        header, _, length = Codec().encode([[payload]])
        assert (header, length) == (lab_load.reference(5000), 5000)

    def test_hello(self, copying: ServiceProcess) -> None:
        assert lab_load.hello_of(copying.ready.port).methods == copying.ready.methods


class TestUpload:
    @pytest.mark.parametrize("receive", ["zerocopy", "copy", "auto"])
    def test_upload(self, receive: str) -> None:
        found = upload.run(receive, 3 * MIB + 5, 0.3, warm_up=0.1)  # type: ignore[arg-type]
        assert found.uploads > 0
        assert found.wrong == 0
        assert found.gigabytes_per_second == pytest.approx(found.uploads * found.payload_bytes / 1e9 / found.seconds)
        if receive == "zerocopy":
            assert found.mapped_percent >= 99
        if receive == "copy":
            assert found.mapped_percent == 0
            assert found.fallbacks["policy"] == found.uploads
        assert tables.upload_table([found]).row_count == 1

    def test_page_sum(self) -> None:
        payload = bytes([7]) * 4096 + bytes([8]) * 4096 + bytes([9])
        assert page_sum(payload) == page_sum(memoryview(payload)) == 24


def test_a_child_that_fails_says_why() -> None:
    with (
        Child("zcrpc.lab.load", Load(port=1, payload=1)) as child,
        pytest.raises(ChildFailed, match=r"status 1: .*refused"),
    ):
        child.receive(LoadResult)


def test_all_builtin_strategies_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed, "WARM_UP_SECONDS", 0.05)
    for name in locks.names():
        found = seed.run_round(
            seed.Experiment(locks=(name,), connections=4, seconds=0.05, rounds=1), name, "readers-only"
        )
        assert found.requests > 0
        assert found.wrong_replies == 0


def _load(server: ServiceProcess, method: str, verify: str, payload: int, **options: object) -> Load:
    return Load(
        port=server.ready.port,
        payload=payload,
        method=server.ready.methods[method],
        header=lab_load.reference(payload),
        verify=verify,  # type: ignore[arg-type]
        warm_up_seconds=0,
        seconds=30,
        **options,  # type: ignore[arg-type]
    )


def _answer_in_http(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(len(wire.PREFACE))
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.recv(1 << 16)
