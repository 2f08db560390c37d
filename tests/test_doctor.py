"""`zcrpc doctor`: what it finds on made-up hosts, on this one, and where calls are forbidden; and the calibration that
it shares with `receive="auto"`."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zcrpc import calibration
from zcrpc.calibration import Cost, WayCost
from zcrpc.commands.doctor import page
from zcrpc.doctor import Calibration, Diagnosis, advice, costs, host, interfaces
from zcrpc.doctor.finding import Finding, Verdict, answered
from zcrpc.doctor.host import Host
from zcrpc.doctor.interfaces import Interface

ZCRPC = [sys.executable, "-c", "from zcrpc.cli import main; main()"]
FORBIDDING = [sys.executable, str(Path(__file__).with_name("forbidding.py"))]
# Of a kernel for which the call is unknown, or a container in which it is forbidden.
ZEROCOPY_RECEIVE = "getsockopt:1=6:2=35"
SO_ZEROCOPY = "setsockopt:1=1:2=60"


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def examined(*command: str) -> tuple[int, dict[str, Any], dict[str, dict[str, str]]]:
    """Exit status, all that was said, and the findings by name."""
    done = run(*command, "doctor", "--seconds", "0.1", "--json", "-")
    assert done.stderr == ""
    said = json.loads(done.stdout)
    return done.returncode, said, {each["name"]: each for each in said["findings"]}


# ---- on this host


def test_everything_is_said() -> None:
    status, said, found = examined(*ZCRPC)
    assert status == 0
    assert said["can_map"]
    assert [each["length"] for each in said["costs"]] == [4096 << 2 * step for step in range(7)]
    for each in said["costs"]:
        assert each["mapped"] == 1.0
        assert all(each[way][end] > 0 for way in ("copy", "map") for end in ("sender", "receiver"))
    assert 0 < said["calibration"]["seconds"] < 5
    assert found["TCP_ZEROCOPY_RECEIVE"]["verdict"] == found["mapping over loopback"]["verdict"] == "good"
    assert {"kernel", "interface lo", *host.QUESTIONS} <= found.keys()
    assert {"receive", "place_from", "budget", "max_message"} <= {each["option"] for each in said["settings"]}


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_and_is_plain_where_it_is_no_terminal(width: int, tmp_path: Path) -> None:
    target = tmp_path / "host.json"
    environment = {"COLUMNS": str(width), "PATH": "/usr/bin"}
    done = run(*ZCRPC, "doctor", "--seconds", "0.1", "--interface", "lo", "--json", str(target), env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= width
    for expected in ("Payloads can be mapped here", "✓  kernel", "copying cheaper", "What to set", "max_message"):
        assert expected in done.stdout
    assert [each["name"] for each in json.loads(target.read_text())["findings"] if "interface" in each["name"]] == [
        "interface lo"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--interface", "nosuch"],
        ["--interface", "../net/lo"],
        ["--address", "host.invalid"],
        ["--interface", "lo", "--address", "127.0.0.1"],
        ["--seconds", "0"],
        ["--seconds", "long"],
        ["--json", "/nosuch/file"],
        ["surplus"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_one_line(arguments: list[str]) -> None:
    done = run(*ZCRPC, "doctor", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# ---- where calls are forbidden


def test_a_container_without_zerocopy_receive() -> None:
    status, said, found = examined(*FORBIDDING, ZEROCOPY_RECEIVE)
    assert (status, said["can_map"], said["calibration"]["map_from"]) == (1, False, 0)
    assert found["TCP_ZEROCOPY_RECEIVE"]["verdict"] == "bad"
    assert "seccomp" in found["TCP_ZEROCOPY_RECEIVE"]["found"]
    assert all(each["map"] is None and each["copy"]["receiver"] > 0 for each in said["costs"])
    assert "copies" in next(each["why"] for each in said["settings"] if each["option"] == "receive")


def test_a_container_without_zerocopy_sends() -> None:
    status, _, found = examined(*FORBIDDING, SO_ZEROCOPY)
    assert status == 1
    assert (found["TCP_ZEROCOPY_RECEIVE"]["verdict"], found["SO_ZEROCOPY"]["verdict"]) == ("good", "bad")


def test_a_container_without_sockets() -> None:
    status, said, found = examined(*FORBIDDING, "socket:0=2,io_uring_setup")
    assert (status, said["costs"]) == (1, [])
    assert found["mapping over loopback"]["verdict"] == "bad"
    assert "not permitted" in found["mapping over loopback"]["found"]
    assert found["segments"]["verdict"] == "unknown"
    assert found["io_uring"]["found"] == "forbidden"
    assert found["kernel"]["verdict"] == "good"


def test_the_page_of_a_host_that_cannot_map() -> None:
    done = run(*FORBIDDING, f"{ZEROCOPY_RECEIVE},socket:0=16", "doctor", "--seconds", "0.1", env={"COLUMNS": "100"})
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("Payloads cannot be mapped here.")
    assert "✗  TCP_ZEROCOPY_RECEIVE" in done.stdout


def test_payloads_that_cannot_be_pinned_are_copied() -> None:
    """Without RLIMIT_MEMLOCK, and without the privilege that lifts it, sends cannot be by reference."""
    program = """
import os, resource
from zcrpc.calibration import compare
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setuid(65534)
cost = compare(1 << 20, 3)
assert cost.mapped == 0.0 and not cost.mapping_pays, cost
assert cost.map.receiver > 0, cost
"""
    done = run(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


# ---- made-up hosts


def made_up(root: Path, files: dict[str, str], release: str = "6.8.0") -> Host:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Host(root, release)


@pytest.mark.parametrize(
    ("release", "verdict"), [("5.10.12", "bad"), ("5.11", "good"), ("6.18.44-fc", "good"), ("next", "unknown")]
)
def test_kernels(release: str, verdict: Verdict, tmp_path: Path) -> None:
    assert answered("kernel", host.kernel, Host(tmp_path, release)).verdict == verdict


@pytest.mark.parametrize("name", ["machine", "huge pages", "cores", "memory", "socket buffers"])
def test_what_cannot_be_read_is_unknown(name: str, tmp_path: Path) -> None:
    found = answered(name, host.QUESTIONS[name], Host(tmp_path))
    assert (found.name, found.verdict) == (name, "unknown")
    assert "No such file" in found.found


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sys/kernel/mm/transparent_hugepage/enabled", "huge pages"),
        ("proc/meminfo", "memory"),
        ("proc/sys/net/ipv4/tcp_rmem", "socket buffers"),
    ],
)
@pytest.mark.parametrize("text", ["", "nonsense", "\0"])
def test_what_is_not_as_expected_is_unknown(file: str, name: str, text: str, tmp_path: Path) -> None:
    assert answered(name, host.QUESTIONS[name], made_up(tmp_path, {file: text})).verdict == "unknown"


@pytest.mark.parametrize(
    ("files", "release", "verdict", "source"),
    [
        ({"proc/vmstat": "nr_free 1\nvma_lock_success 0\n"}, "6.8", "good", "/proc/vmstat"),
        ({"boot/config-6.8": "CONFIG_PER_VMA_LOCK=y\n"}, "6.8", "good", "/boot/config-6.8"),
        ({"boot/config-6.8": "# CONFIG_PER_VMA_LOCK is not set\n"}, "6.8", "note", "none"),
        ({}, "6.8", "good", "probably"),
        ({}, "6.3", "note", "none"),
    ],
)
def test_locks_of_mappings(files: dict[str, str], release: str, verdict: Verdict, source: str, tmp_path: Path) -> None:
    found = host.per_vma_locks(made_up(tmp_path, files, release))
    assert found.verdict == verdict
    assert source in found.found


def test_locks_of_mappings_from_the_zipped_configuration(tmp_path: Path) -> None:
    here = made_up(tmp_path, {"proc/config.gz": ""})
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_A=y\nCONFIG_PER_VMA_LOCK=y\n"))
    assert "/proc/config.gz" in host.per_vma_locks(here).found
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_PER_VMA_LOCK=y\n")[:-9])
    assert "probably" in host.per_vma_locks(here).found


def test_huge_pages(tmp_path: Path) -> None:
    here = made_up(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n"})
    assert host.huge_pages(here).verdict == "note"


V2 = {"proc/self/cgroup": "0::/app/worker\n"}
V1 = {"proc/self/cgroup": "4:memory:/app\n3:cpu,cpuacct:/app\n0::/\n"}
MEMORY = {"proc/meminfo": "MemTotal:       16777216 kB\n"}


@pytest.mark.parametrize(
    ("files", "bytes_", "source"),
    [
        (V2, 16 << 30, "the machine"),
        (V2 | {"sys/fs/cgroup/app/memory.max": "max\n"}, 16 << 30, "the machine"),
        (V2 | {"sys/fs/cgroup/app/memory.max": f"{1 << 30}\n"}, 1 << 30, "/sys/fs/cgroup/app/memory.max"),
        (V2 | {"sys/fs/cgroup/memory.max": f"{1 << 30}\n"}, 1 << 30, "/sys/fs/cgroup/memory.max"),
        (V1 | {"sys/fs/cgroup/memory/app/memory.limit_in_bytes": "9223372036854771712"}, 16 << 30, "the machine"),
        (V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 << 20}"}, 256 << 20, "memory.limit_in_bytes"),
    ],
)
def test_memory_limits(files: dict[str, str], bytes_: int, source: str, tmp_path: Path) -> None:
    here = made_up(tmp_path, MEMORY | files)
    limit, who = here.memory()
    assert limit == bytes_
    assert source in who
    assert host.memory(here).verdict == ("good" if limit >= 2 << 30 else "note")
    budget = {each.option: each.value for each in advice.settings(here, 0, [], True)}["budget"]
    assert budget == ("the default" if limit >= 4 << 30 else f"{bytes_ // 4 >> 20} << 20")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        (V2 | {"sys/fs/cgroup/app/worker/cpu.max": "50000 100000\n"}, 0.5),
        (V2 | {"sys/fs/cgroup/app/cpu.max": "50000 100000\n", "sys/fs/cgroup/app/worker/cpu.max": "max 100000\n"}, 0.5),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            },
            0.5,
        ),
    ],
)
def test_limits_of_cores(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    here = made_up(tmp_path, files)
    assert here.cores()[0] == cores
    assert {each.option: each.value for each in advice.settings(here, 0, [], True)}["--workers"] == "1"


# ---- interfaces


@pytest.mark.parametrize(
    ("interface", "verdict", "said"),
    [
        (Interface("lo", 65536, "", None), "good", "hands over"),
        (Interface("veth0", 1500, "", None), "unknown", "not measured"),
        (Interface("eth0", 4148, "mlx5_core", True), "good", "1 whole pages"),
        (Interface("eth0", 8244, "mlx5_core", True), "good", "2 whole pages"),
        (Interface("eth0", 9000, "mlx5_core", True), "note", "copied"),
        (Interface("eth0", 52, "mlx5_core", True), "note", "copied"),
        (Interface("eth0", 4148, "virtio_net", None), "note", "may have to be copied"),
        (Interface("eth0", 4148, "virtio_net", False), "note", "are copied"),
    ],
)
def test_interfaces(interface: Interface, verdict: Verdict, said: str) -> None:
    found = interfaces.finding(interface)
    assert found.verdict == verdict
    assert said in found.means
    assert ("MTU" in found.to_do) == (verdict == "note" and interface.mtu not in (4148, 8244))
    assert ("tcp-data-split" in found.to_do) == (verdict == "note" and not interface.header_split)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_own_addresses_are_reached_over_loopback(address: str) -> None:
    assert interfaces.towards(address).name == "lo"


def test_interfaces_of_this_host() -> None:
    found = interfaces.all_up()
    assert found[0].is_loopback
    assert all(interfaces.look(each.name) == each for each in found)
    assert interfaces.header_split("lo") is None
    assert interfaces.header_split("nosuch") is None


# ---- costs and advice


def cost(length: int, copy: float, mapped: float | None, share: float = 1.0) -> Cost:
    return Cost(length, WayCost(copy / 2, copy / 2), None if mapped is None else WayCost(mapped / 2, mapped / 2), share)


def crossing(at: int) -> list[Cost]:
    """Mapping is half as dear from so many bytes on, and twice below."""
    return [cost(length, 1.0, 0.5 if length >= at else 2.0) for length in costs.SIZES]


def measured_as(found: list[Cost]) -> Callable[[int, int], Cost]:
    by_length = {each.length: each for each in found}
    return lambda length, rounds: by_length[length]


@pytest.mark.parametrize("at", [*costs.SIZES[:-1], 1 << 40])
def test_auto_asks_for_whole_pages_where_mapping_pays(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    compare = measured_as(crossing(at))
    monkeypatch.setattr(calibration, "compare", lambda length, rounds: asked.append(length) or compare(length, rounds))
    monkeypatch.setattr(calibration, "_costs", None)
    assert calibration.cheaper_from(calibration.measure()) == (at if at < 1 << 40 else 0)
    until_it_loses = [each for each in reversed(calibration.SIZES) if each >= at // 4]
    calibration.measure()
    assert asked == (until_it_loses or [calibration.SIZES[-1]])  # once


def test_mapping_has_to_win_clearly_and_to_work() -> None:
    assert cost(4096, 1.0, 0.94).mapping_pays
    assert not cost(4096, 1.0, 0.96).mapping_pays
    assert not cost(4096, 1.0, 0.5, share=0.98).mapping_pays
    assert not cost(4096, 1.0, None).mapping_pays
    assert calibration.cheaper_from([]) == 0
    # smaller sizes do not count once a larger one has lost
    assert calibration.cheaper_from([cost(1, 1.0, 0.5), cost(2, 1.0, 2.0), cost(3, 1.0, 0.5)]) == 3


def test_calibration_that_fails_means_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(length: int, rounds: int) -> Cost:
        raise OSError(24, "too many files")

    monkeypatch.setattr(calibration, "compare", fails)
    monkeypatch.setattr(calibration, "_costs", None)
    assert calibration.measure() == []


async def test_costs_can_be_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_costs", None)
    calibration.assume(crossing(1 << 20))
    assert await calibration.mapped_from("auto", 4096) == 1 << 20
    assert await calibration.mapped_from("auto", 2 << 20) == 2 << 20
    assert await calibration.mapped_from("zerocopy", 4096) == 4096
    assert await calibration.mapped_from("copy", 4096) == 0


async def test_calibration_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_costs", None)
    before = threading.active_count()
    await calibration.mapped_from("auto", 4096)
    assert threading.active_count() == before


@pytest.mark.parametrize(("length", "rounds"), [(0, 1), (4097, 1), (128 << 20, 1), (4096, 0), (4096, 1001)])
def test_what_cannot_be_measured_is_refused(length: int, rounds: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        calibration.compare(length, rounds)


@pytest.mark.parametrize(
    ("map_from", "can_map", "options"),
    [
        (0, False, {"receive": '"auto"'}),
        (0, True, {"receive": '"auto"', "place_from": "the default"}),
        (16384, True, {"receive": '"auto"', "map_from": "16 << 10", "place_from": "the default"}),
        (1 << 20, True, {"receive": '"auto"', "map_from": "the default", "place_from": "the default"}),
    ],
)
def test_advice_on_receiving(map_from: int, can_map: bool, options: dict[str, str], tmp_path: Path) -> None:
    given = advice.settings(Host(tmp_path), map_from, crossing(map_from or 1 << 40), can_map)
    assert {each.option: each.value for each in given} == options  # nothing on a host of which nothing can be read


def drawn(found: Diagnosis) -> Iterator[str]:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(page(found))
    yield from capture.get().splitlines()


def diagnosis(**changes: Any) -> Diagnosis:
    given: dict[str, Any] = {
        "findings": [Finding("kernel", "note", "6.1", "[old]", "wait")],
        "costs": crossing(1 << 20),
        "calibration": Calibration(seconds=0.0321, map_from=1 << 20),
        "can_map": True,
        "cheaper_from": 1 << 20,
        "settings": [],
    }
    return Diagnosis(**given | changes)


def test_the_crossover_is_drawn() -> None:
    lines = list(drawn(diagnosis()))
    sides = [line.partition("│") for line in lines if " × " in line]
    assert ["█" in left for left, _, _ in sides] == [False] * 4 + [True] * 3
    assert ["█" in right for _, _, right in sides] == [True] * 4 + [False] * 3
    assert len({line.index("│") for line in lines if "│" in line}) == 1
    said = " ".join(lines)
    assert "and that pays" in said
    assert "from 1 MiB on" in said
    assert "32 ms" in said
    assert "[old]" in said


def test_mapping_that_could_not_be_measured_is_a_dash() -> None:
    rows = [cost(length, 1.0, None, 0.0) for length in costs.SIZES]
    lines = list(drawn(diagnosis(costs=rows, can_map=False, cheaper_from=0)))
    assert sum("–" in line for line in lines) == len(rows)
    assert lines[0].startswith("Payloads cannot be mapped here.")
