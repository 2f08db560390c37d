"""Questions about the kernel, its limits and this process's, and about what zcrpc is made of."""

from __future__ import annotations

import ctypes
import errno
import gzip
import os
import platform
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from zcrpc import locks
from zcrpc.doctor.finding import Finding, Unanswered

MIB: Final = 1 << 20
PAGE: Final = 4096  # ZC_PAGE
BUDGET: Final = 1 << 30  # of a server, unless it says otherwise
CONNECTIONS: Final = 10_000  # the same
_IO_URING_SETUP: Final = 425  # on x86-64 and arm64 alike


@dataclass(slots=True, frozen=True)
class Host:
    """Where things are read from."""

    root: Path = Path("/")
    release: str = platform.release()

    def read(self, path: str) -> str:
        """A file's contents. OSError, with its path as on the host."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace")
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    def kernel(self) -> tuple[int, int]:
        """Its version. `Unanswered` if it is called something else."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        if found is None:
            raise Unanswered(f"{self.release!r} is no version")
        return int(found[1]), int(found[2])

    def memory(self) -> tuple[int, str]:
        """Bytes that this process may use, and who says so."""
        total = int(re.findall(r"MemTotal:\s+(\d+) kB", self.read("/proc/meminfo"))[0]) * 1024
        said = self._cgroup("memory", "memory.max") + self._cgroup("memory", "memory.limit_in_bytes")
        limits = [(int(text), f"cgroup {path}") for path, text in said if text != "max"]
        return min([(total, "the machine"), *limits])  # v1 has a number near 2⁶³ for no limit

    def cores(self) -> tuple[float, str]:
        """CPUs that this process may use at a time, and who says so."""
        found: list[tuple[float, str]] = [(float(len(os.sched_getaffinity(0))), "the CPUs that it may run on")]
        for path, text in self._cgroup("cpu", "cpu.max"):
            quota, _, period = text.partition(" ")
            if quota != "max":
                found.append((int(quota) / int(period), f"cgroup {path}"))
        for path, text in self._cgroup("cpu", "cpu.cfs_quota_us"):
            if text != "-1":
                period = self.read(path.replace("cfs_quota_us", "cfs_period_us"))
                found.append((int(text) / int(period), f"cgroup {path}"))
        return min(found)

    def _cgroup(self, controller: str, name: str) -> list[tuple[str, str]]:
        """What files of that name say of this process, with their paths: of its cgroup and of all above."""
        found = []
        for line in self.read("/proc/self/cgroup").splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            mount = f"/sys/fs/cgroup/{controller}" if controllers else "/sys/fs/cgroup"
            # In a container the path may be as the host sees it, while the mount begins further down.
            for directory in (Path(own), *Path(own).parents):
                path = f"{mount}{directory}".rstrip("/") + f"/{name}"
                try:
                    found.append((path, self.read(path).strip()))
                except OSError:
                    continue
        return found


def kernel(host: Host) -> Finding:
    """Whether the kernel is one that can map what is received: Linux 5.11 or later."""
    if host.kernel() < (5, 11):
        return Finding("", "bad", host.release, "too old to map what is received", "use Linux 5.11 or later")
    return Finding("", "good", host.release, "new enough to map what is received")


def page_size(host: Host) -> Finding:
    """Whether pages have the size that payloads are padded to."""
    size = os.sysconf("SC_PAGE_SIZE")
    if size != PAGE:
        return Finding("", "bad", f"{size:,} bytes", "payloads come in whole pages of 4,096 bytes: they are copied")
    return Finding("", "good", f"{size:,} bytes", "payloads can come in whole pages")


def virtual(host: Host) -> Finding:
    """Whether page tables are nested. Raises Unanswered where the processor says nothing."""
    text = host.read("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    if flags is None:
        raise Unanswered("/proc/cpuinfo has no flags")
    if "hypervisor" in flags[1].split():
        return Finding("", "note", "a virtual machine", "page tables are nested, so mapping costs more than elsewhere")
    return Finding("", "good", "no virtual machine", "mapping costs no more than it has to")


def per_vma_locks(host: Host) -> Finding:
    """Whether receives take a lock of one mapping, or that of the whole address space."""
    means = "mapping a payload waits for nobody who changes the address space"
    for source, holds in (("/proc/vmstat", "vma_lock_success"), (_kernel_config(host), "CONFIG_PER_VMA_LOCK=y")):
        try:
            text = _unzipped(host, source) if source.endswith(".gz") else host.read(source)
        except OSError:
            continue
        if re.search(rf"^{holds}\b", text, re.MULTILINE):
            return Finding("", "good", f"{holds} in {source}", means)
        if source != "/proc/vmstat":
            break  # the configuration, and it is not there; counters are optional
    else:
        if host.kernel() >= (6, 4):
            return Finding("", "good", "probably: the version says so, no configuration can be read", means)
    return Finding(
        "",
        "note",
        "none",
        "mapping a payload takes the process's mmap lock, and waits while another thread maps memory",
        "use Linux 6.4 or later; with this one few threads in a server",
    )


def _kernel_config(host: Host) -> str:
    own = f"/boot/config-{host.release}"
    return "/proc/config.gz" if (host.root / "proc/config.gz").exists() else own


def _unzipped(host: Host, path: str) -> str:
    try:
        return gzip.decompress((host.root / path.lstrip("/")).read_bytes()).decode(errors="replace")
    except EOFError:
        raise OSError(errno.EIO, "cut off", path) from None


def huge_pages(host: Host) -> Finding:
    """Whether ordinary memory of the arena comes in pages of 2 MiB."""
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    chosen = re.findall(r"\[(\w+)\]", host.read(path))[0]
    if chosen == "never":
        to_do = f"echo madvise > {path}"
        return Finding("", "note", "never", "memory that is copied into is faulted in 4 KiB at a time", to_do)
    return Finding("", "good", chosen, "memory that is copied into is in pages of 2 MiB")


def io_uring(host: Host) -> Finding:
    """Whether io_uring is there, and allowed. Nothing depends on it."""
    means = "zcrpc works with epoll, and needs none"
    try:
        disabled = host.read("/proc/sys/kernel/io_uring_disabled").strip()
    except OSError:
        disabled = "0"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(_IO_URING_SETUP), ctypes.c_long(0), ctypes.c_long(0))  # no entries: refused if there
    said = ctypes.get_errno()
    if said == errno.ENOSYS:
        return Finding("", "good", "not there", means)
    if said == errno.EPERM or disabled == "2":
        return Finding("", "good", "forbidden", means)
    return Finding("", "good", "there", means)


def memory(host: Host) -> Finding:
    """Whether a server's budget fits into what the machine or the control group has."""
    limit, who = host.memory()
    found = f"{limit // MIB:,} MiB, says {who}"
    if limit < 2 * BUDGET:
        means = "a server's budget for payloads, 1 GiB, is more than half of it"
        return Finding("", "note", found, means, f"budget={limit // 4 // MIB} << 20")
    return Finding("", "good", found, "enough for a server's budget of 1 GiB")


def open_files(host: Host) -> Finding:
    """How many connections the soft limit leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft > CONNECTIONS:
        return Finding("", "good", _limit(soft), f"enough for a server's {CONNECTIONS:,} connections")
    to_do = f"ulimit -n {min(hard, 2 * CONNECTIONS) if hard > soft else 2 * CONNECTIONS}, or LimitNOFILE= in a unit"
    return Finding("", "note", _limit(soft), f"a server would take {CONNECTIONS:,} connections", to_do)


def locked_memory(host: Host) -> Finding:
    """How much may be sent by reference at a time, so that it can be mapped."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= 4 * MIB:
        return Finding("", "good", _limit(soft, MIB), "enough to send by reference what is to be mapped")
    means = "what is sent to be mapped counts against it until it has arrived; sends wait for that"
    return Finding("", "note", _limit(soft, MIB), means, "ulimit -l 65536, or LimitMEMLOCK= in a unit")


def _limit(value: int, unit: int = 1) -> str:
    if value == resource.RLIM_INFINITY:
        return "unlimited"
    return f"{value:,}" if unit == 1 else f"{value / unit:.1f} MiB"


def socket_buffers(host: Host) -> Finding:
    """Whether chunks of payloads fit into the buffers of TCP at their largest."""
    most = {name: int(host.read(f"/proc/sys/net/ipv4/tcp_{name}").split()[2]) for name in ("rmem", "wmem")}
    found = ", ".join(f"tcp_{name} {value / MIB:.1f} MiB" for name, value in most.items())
    small = [name for name, value in most.items() if value < 2 * MIB]
    if small:
        to_do = "sysctl " + " ".join(f"net.ipv4.tcp_{name}='4096 131072 6291456'" for name in small)
        return Finding("", "note", found, "less than two chunks of 1 MiB fit; large payloads come in bits", to_do)
    return Finding("", "good", found, "chunks of 1 MiB fit")


def cores(host: Host) -> Finding:
    """How many cores this process may use, by affinity and control group."""
    count, who = host.cores()
    found = f"{count:g}, by {who}"
    if count < 2:
        return Finding("", "note", found, "client and server of this host, or two workers, share one")
    return Finding("", "good", found, f"up to {count:.0f} workers, or native threads that receive")


def software(host: Host) -> Finding:
    """Versions of what zcrpc runs on."""
    parts = ", ".join(f"{name} {version(name)}" for name in ("zcrpc", "uvloop", "msgspec"))
    return Finding("", "good", f"{parts}, Python {platform.python_version()}", "what zcrpc runs on")


def lock_strategies(host: Host) -> Finding:
    """How many lock strategies there are, those of plugins included."""
    means = "a server takes per-region, unless it says otherwise"
    return Finding("", "good", f"{len(locks.names())}, with those of plugins", means)


# Whether payloads can be mapped; how fast that is, and what bounds a server.
KERNEL: Final[dict[str, Callable[[Host], Finding]]] = {"kernel": kernel, "page size": page_size}
QUESTIONS: Final[dict[str, Callable[[Host], Finding]]] = {
    "machine": virtual,
    "locks of mappings": per_vma_locks,
    "huge pages": huge_pages,
    "io_uring": io_uring,
    "cores": cores,
    "memory": memory,
    "open files": open_files,
    "locked memory": locked_memory,
    "socket buffers": socket_buffers,
    "software": software,
    "lock strategies": lock_strategies,
}
