"""Booting other kernels: everything but the boot itself always; that, too, if ZCRPC_KERNEL_AB is set, as it takes a
minute and fetches two kernels.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import msgspec
import pytest
from kernel_ab import document, initramfs, machine, packages

from zcrpc.lab import results
from zcrpc.lab.kernel import kernel_round
from zcrpc.lab.kernel_receivers import KernelReceivers, KernelResult
from zcrpc.lab.results import Latency

BENCHMARKS = Path(initramfs.__file__).parents[1]
LINE = (
    '{"kernel": "6.1.0-50-cloud-amd64", "writer": "mprotect", "failed": "", "elapsed_seconds": 0.5, '
    '"receiver_cpu_seconds": 0.14, "payloads": 322, "receives": 322, "bytes_mapped": 1318912, "bytes_copied": 0, '
    '"wrong": 0, "receive": {"samples": 322, "p50_us": 2600.893, "p99_us": 4747.261, "p999_us": 4952.593, '
    '"max_us": 4952.593, "mean_us": 2548.108}, "change": {"samples": 322, "p50_us": 3156.424, "p99_us": 5403.797, '
    '"p999_us": 6045.08, "max_us": 6045.08, "mean_us": 3103.072}, "changes": 322, "counted_receives": 2000, '
    '"acquisitions": 2000, "waited_us": 4576063.0, "longest_wait_us": 29207.0, "not_counted": ""}'
)
CONSOLE = f"\x1bc[    0.3] Loading\r\n{LINE}\r\n[   16.7] reboot: Power down\r\n".encode()


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), **({"PATH": str(path)} if path else {})}
    return subprocess.run(
        [sys.executable, "-m", "kernel_ab", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins that are found before the real programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\n" + textwrap.dedent(script))
    path.chmod(0o755)


class TestArchive:
    def test_entries_are_as_the_kernel_unpacks_them(self) -> None:
        entries = [
            initramfs.Entry("dev", 0o40755),
            initramfs.Entry("dev/console", 0o20600, device=(5, 1)),
            initramfs.Entry("init", 0o100755, b"12345"),
        ]
        archive = initramfs.cpio(entries)
        assert _unpack(archive) == [
            ("dev", 0o40755, (0, 0), b""),
            ("dev/console", 0o20600, (5, 1), b""),
            ("init", 0o100755, (0, 0), b"12345"),
            ("TRAILER!!!", 0, (0, 0), b""),
        ]

    def test_the_program_runs_by_itself(self, tmp_path: Path) -> None:
        program = initramfs.compile_program(tmp_path / "program")
        done = subprocess.run(
            [program, "warm_up=0.05", "seconds=0.1", "area_mib=8", "counted=200"], capture_output=True, check=True
        )
        found = machine.answers(done.stdout)
        assert [each.writer for each in found] == ["none", "mprotect", "mmap"]
        for each in found:
            assert each.kernel == platform.release()
            assert each.failed == ""
            assert each.result.bytes_mapped >= 99 * each.result.bytes_copied
            assert each.result.wrong == 0
            assert (each.result.counted_receives >= 200) != (each.result.not_counted != "")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_somebody_who_may_not_count_is_told(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)  # pytest's folders are its user's alone
            program = initramfs.compile_program(Path(folder, "program"))
            done = subprocess.run([program, "writers=none", "seconds=0.1"], user=65534, capture_output=True, check=True)
        (found,) = machine.answers(done.stdout)
        assert found.result.receives > 0
        assert found.result.counted_receives == 0
        assert "Permission denied" in found.result.not_counted or "cannot be" in found.result.not_counted

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs process numbers of its own")
    def test_a_count_that_is_blind_is_none(self, tmp_path: Path) -> None:
        program = initramfs.compile_program(tmp_path / "program")
        elsewhere = ["unshare", "--pid", "--fork", "sh", "-c", '"$@"; exit $?', "sh"]
        done = subprocess.run(
            [*elsewhere, program, "writers=none", "seconds=0.1", "counted=100"], capture_output=True, check=False
        )
        if b"unshare" in done.stderr:
            pytest.skip(done.stderr.decode().strip())
        (found,) = machine.answers(done.stdout)
        assert (found.result.counted_receives, found.result.acquisitions) == (0, 0)
        if os.access("/sys/kernel/tracing/events/mmap_lock", os.R_OK):
            assert found.result.not_counted.startswith("the tracepoints showed 0 of 16 acquisitions")

    def test_unknown_words_are_refused(self, tmp_path: Path) -> None:
        program = initramfs.compile_program(tmp_path / "program")
        done = subprocess.run([program, "colour=blue"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, "kernel_ab: what is colour=blue?\n")


def _unpack(archive: bytes) -> list[tuple[str, int, tuple[int, int], bytes]]:
    """A reader of "newc" that shares nothing with the writer."""
    found = []
    at = 0
    while at < len(archive):
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, device, length = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = archive[at + 110 : at + 110 + length]
        assert name.endswith(b"\0")
        begin = (at + 110 + length + 3) // 4 * 4
        found.append((name[:-1].decode(), mode, device, archive[begin : begin + size]))
        at = (begin + size + 3) // 4 * 4
    return found


class TestMachine:
    def test_command(self) -> None:
        line = machine.command(Path("/k"), Path("/i"), {"writers": "none,mmap", "seconds": 2.0})
        assert line[0] == "qemu-system-x86_64"
        for option, value in (("-accel", "tcg,thread=multi"), ("-smp", "2"), ("-kernel", "/k"), ("-initrd", "/i")):
            assert line[line.index(option) + 1] == value
        assert "-no-reboot" in line
        passed = line[line.index("-append") + 1]
        assert passed.startswith("console=ttyS0 ")
        assert passed.endswith(" -- writers=none,mmap seconds=2.0")

    def test_answers_are_found_among_other_lines(self) -> None:
        (found,) = machine.answers(CONSOLE)
        assert (found.kernel, found.writer, found.failed) == ("6.1.0-50-cloud-amd64", "mprotect", "")
        assert (found.result.acquisitions, found.result.counted_receives) == (2000, 2000)
        assert found.result.receive.p50_us == 2600.893

    @pytest.mark.parametrize("torn", [LINE[:200], LINE.replace('"mprotect"', "7"), LINE.replace("2000", '"many"')])
    def test_a_torn_line_is_no_answer(self, torn: str) -> None:
        assert machine.answers(f"{torn}\n{LINE}\n".encode()) == machine.answers(LINE.encode())

    def test_a_guest_that_dies_is_started_again_for_the_rest(self, programs: Path, tmp_path: Path) -> None:
        (tmp_path / "mprotect").write_bytes(CONSOLE)
        (tmp_path / "mmap").write_bytes(CONSOLE.replace(b"mprotect", b"mmap"))
        script = f"""
            case "$*" in
            *writers=mmap,mprotect*) cat {tmp_path}/mprotect; echo 'Kernel panic';;
            *writers=mmap*) cat {tmp_path}/mmap;;
            esac
            """
        stand_in(programs, machine.QEMU, script)
        found = machine.boot(Path("vmlinuz-1"), Path("i"), ["mmap", "mprotect"], {}, 10)
        assert [each.writer for each in found] == ["mmap", "mprotect"]

    def test_a_guest_that_always_dies_is_given_up(self, programs: Path, tmp_path: Path) -> None:
        stand_in(programs, machine.QEMU, f"echo started >> {tmp_path}/starts; echo Kernel panic")
        with pytest.raises(machine.MachineFailed, match="vmlinuz-1 gave no result with none, 6 times: Kernel panic"):
            machine.boot(Path("vmlinuz-1"), Path("i"), ["none"], {}, 10)
        assert (tmp_path / "starts").read_text().count("started") == machine.ATTEMPTS

    def test_a_guest_that_hangs_is_stopped(self, programs: Path) -> None:
        stand_in(programs, machine.QEMU, "echo booting; exec sleep 60")
        with pytest.raises(machine.MachineFailed, match=r"no result with none, 6 times, for 0\.2 s: booting"):
            machine.boot(Path("vmlinuz-1"), Path("i"), ["none"], {}, 0.2)

    def test_a_machine_that_does_not_start_says_why(self, programs: Path) -> None:
        stand_in(programs, machine.QEMU, "echo 'could not load kernel' >&2; exit 1")
        with pytest.raises(machine.MachineFailed, match="ended with status 1: could not load kernel"):
            machine.boot(Path("vmlinuz-1"), Path("i"), ["none"], {}, 10)


class TestPackages:
    def test_a_kernel_in_the_cache_needs_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = tmp_path / "trixie" / "vmlinuz-6.12.1"
        kept.parent.mkdir()
        kept.touch()
        monkeypatch.setenv("PATH", "")
        assert packages.kernel("trixie", tmp_path) == kept

    def test_a_kernel_is_fetched_once(self, programs: Path, tmp_path: Path) -> None:
        package = _package(tmp_path, "boot/vmlinuz-6.12.1", "lib/modules/much")
        calls = tmp_path / "calls"
        stand_in(
            programs, "apt-get", f'echo "$1" >> {calls}; test -r "$APT_CONFIG" && test "$1" = update || cp {package} .'
        )
        stand_in(programs, "apt-cache", "printf 'linux-image-cloud-amd64\\n  Depends: linux-image-6.12.1\\n'")
        for _ in range(2):
            found = packages.kernel("trixie", tmp_path / "cache")
            assert (found.name, found.read_text()) == ("vmlinuz-6.12.1", "of boot/vmlinuz-6.12.1")
        assert calls.read_text().split() == ["update", "download"]
        assert [path.name for path in (tmp_path / "cache" / "trixie").iterdir()] == ["vmlinuz-6.12.1"]

    def test_a_package_without_a_kernel(self, programs: Path, tmp_path: Path) -> None:
        package = _package(tmp_path, "lib/modules/much")
        stand_in(programs, "apt-get", f'test "$1" = update || cp {package} .')
        stand_in(programs, "apt-cache", "echo '  Depends: linux-image-6.12.1'")
        with pytest.raises(machine.MachineFailed, match=r"there is no kernel in .*\.deb"):
            packages.kernel("trixie", tmp_path / "cache")

    @pytest.mark.parametrize(
        ("script", "complaint"),
        [
            ("echo 'Err:1 http://deb.debian.org trixie: could not resolve' >&2", "could not resolve"),
            ("echo 'W: Failed to fetch http://deb.debian.org' >&2", "Failed to fetch"),
            ("echo 'E: no space left' >&2; exit 100", "no space left"),
            ("exit 100", "apt-get update ended with status 100"),
        ],
    )
    def test_what_apt_complains_of_is_told(self, programs: Path, tmp_path: Path, script: str, complaint: str) -> None:
        stand_in(programs, "apt-get", script)
        with pytest.raises(machine.MachineFailed, match=f"the kernel of trixie cannot be had: .*{complaint}"):
            packages.kernel("trixie", tmp_path)
        assert list((tmp_path / "trixie").iterdir()) == []

    def test_a_mirror_without_the_kernel(self, programs: Path, tmp_path: Path) -> None:
        stand_in(programs, "apt-get", "exit 0")
        stand_in(programs, "apt-cache", "exit 0")
        with pytest.raises(machine.MachineFailed, match="has no linux-image-cloud-amd64"):
            packages.kernel("trixie", tmp_path)

    def test_without_apt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(machine.MachineFailed, match="apt-get, which fetches Debian's kernels, is not here"):
            packages.kernel("trixie", tmp_path)

    def test_the_cache_is_where_the_environment_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert packages.default_cache() == Path("/somewhere/zcrpc/kernel_ab")


def _package(tmp_path: Path, *files: str) -> Path:
    """A Debian package with these files in it."""
    tree = tmp_path / "tree"
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"of {name}")
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir()
    control.write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: p\n"
    )
    package = tmp_path / "p.deb"
    try:
        subprocess.run(["dpkg-deb", "--build", tree, package], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("dpkg-deb is not here")
    return package


class TestDocument:
    def test_the_table_goes_between_the_marks(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"before\n{document.MARKS[0]}\nold\n{document.MARKS[1]}\nafter\n")
        head = msgspec.json.decode(LINE)
        counted = msgspec.json.decode(LINE, type=KernelResult)
        options = KernelReceivers(writer="mprotect")
        rows = [
            kernel_round(options, counted, 0, kernel=head["kernel"], emulated=True),
            kernel_round(options, "pages cannot be mapped", 0, kernel="6.18.1"),
        ]
        document.write(page, rows, "a day")
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old" not in text
        assert "| 6.1.0-50-cloud-amd64 | emulated | mprotect | **1.000** (2,000 of 2,000) | 4,576.1 | 29,207 |" in text
        assert "| 6.18.1 | this machine's | mprotect | – (pages cannot be mapped) | – | – | – |" in text

    @pytest.mark.parametrize("content", [None, "no marks", document.MARKS[0]])
    def test_a_page_without_marks_is_refused_before_anything_runs(self, tmp_path: Path, content: str | None) -> None:
        page = tmp_path / "page.md"
        if content is not None:
            page.write_text(content)
        done = run("--document", str(page))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


class TestCommand:
    def test_without_qemu_it_says_so_in_one_line(self, tmp_path: Path) -> None:
        done = run(path=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "zcrpc: qemu-system-x86_64 is not here; Debian's package is qemu-system-x86\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--suites", "potato"], "no such suite: potato; there are bookworm, trixie"),
            (["--suites", ""], "no such suite: none; there are"),
            (["--writers", "fork"], "no such writer: fork; there are none, mprotect, mmap"),
            (["--seconds", "0"], "seconds must be"),
            (["--area-mib", "4096"], "the area 1 to 512 MiB"),
            (["--timeout", "nan"], "the timeout more than 0"),
            (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json"),
        ],
    )
    def test_the_impossible_is_one_line_and_status_2(self, arguments: list[str], message: str) -> None:
        done = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr

    @pytest.mark.skipif("ZCRPC_KERNEL_AB" not in os.environ, reason="boots virtual machines; set ZCRPC_KERNEL_AB")
    def test_before_and_after(self, tmp_path: Path) -> None:
        target = tmp_path / "kernel.json"
        done = run("--seconds", "0.5", "--json", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        rows = results.read(target).rows
        emulated = {(row["kernel"].split(".")[1], row["writer"]): row for row in rows if row["emulated"]}
        assert set(emulated) == {(minor, writer) for minor in ("1", "12") for writer in ("none", "mprotect", "mmap")}
        for (minor, _), row in emulated.items():
            assert row["acquisitions_per_receive"] == pytest.approx(1 if minor == "1" else 0, abs=0.01)
            assert row["mapped_percent"] >= 99
            assert row["wrong"] == 0
        assert [row["emulated"] for row in rows[-3:]] == [False] * 3


def test_latencies_are_read_as_they_are_printed() -> None:
    found = msgspec.json.decode(LINE, type=KernelResult)
    assert found.change == Latency(322, 3156.424, 5403.797, 6045.08, 6045.08, 3103.072)
