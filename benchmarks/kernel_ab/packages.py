"""Debian's kernels, fetched by apt with a configuration of our own, so that nothing of this system's is touched, and
kept in a cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from kernel_ab.machine import MachineFailed

MIRROR: Final = "http://deb.debian.org/debian"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
META: Final = "linux-image-cloud-amd64"  # depends on the suite's kernel, which is the only one without module baggage
_PREFIX: Final = "vmlinuz-"
_TIMEOUT: Final = 300  # seconds, for each call of apt

_CONFIGURATION = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "{folder}/none";
Dir::Etc::preferencesparts "{folder}/none";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
"""


def default_cache() -> Path:
    """Where kernels are kept unless the caller says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home if home else Path.home() / ".cache") / "zcrpc" / "kernel_ab"


def kernel(suite: str, cache: Path) -> Path:
    """The kernel image of a Debian suite, `vmlinuz-<release>`; from the cache if it is there.

    Raises:
        MachineFailed: it cannot be had; says why.
    """
    folder = cache / suite
    kept = sorted(folder.glob(f"{_PREFIX}*"))
    if kept:
        return kept[-1]
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise MachineFailed(f"{program}, which fetches Debian's kernels, is not here")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            return _extract(_download(suite, Path(temporary)), folder)
    except OSError as error:
        raise MachineFailed(f"the kernel of {suite} cannot be kept in {cache}: {error.strerror or error}") from None


def _download(suite: str, folder: Path) -> Path:
    """The package itself, in `folder`."""
    environment = os.environ | {"APT_CONFIG": str(_configure(suite, folder)), "LC_ALL": "C"}
    _apt(["apt-get", "update"], suite, folder, environment)
    depends = _apt(["apt-cache", "depends", META], suite, folder, environment)
    names = dependencies(depends)
    if not names:
        raise MachineFailed(f"the kernel of {suite} cannot be had: {MIRROR} has no {META} for it")
    _apt(["apt-get", "download", names[0]], suite, folder, environment)
    return next(folder.glob("*.deb"))


def _configure(suite: str, folder: Path) -> Path:
    for part in ("state/lists/partial", "cache/archives/partial", "none"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    signed = f" [signed-by={KEYRING}]" if KEYRING.exists() else ""  # else apt looks among those that it trusts
    (folder / "sources.list").write_text(f"deb{signed} {MIRROR} {suite} main\n")
    configuration = folder / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder))
    return configuration


def _apt(command: list[str], suite: str, folder: Path, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise MachineFailed(f"the kernel of {suite} cannot be had: {' '.join(command)} took too long") from None
    complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "Err:", "W: Failed to fetch"))]
    if done.returncode != 0 or complaints:
        why = complaints[0] if complaints else f"{' '.join(command)} ended with status {done.returncode}"
        raise MachineFailed(f"the kernel of {suite} cannot be had: {why}")
    return done.stdout


def dependencies(text: str) -> list[str]:
    """The kernels among what `apt-cache depends` says."""
    found = (line.partition("Depends:")[2].strip() for line in text.splitlines() if "Depends:" in line)
    return [name for name in found if name.startswith("linux-image-")]


def _extract(package: Path, folder: Path) -> Path:
    """Puts the kernel image of a package into `folder`, whole or not at all."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacked:
        assert unpacked.stdout is not None
        with tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive:
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if name.startswith(_PREFIX) and member.isfile() else None
                if content is not None:
                    unfinished = package.with_name(name)
                    unfinished.write_bytes(content.read())
                    unpacked.kill()  # what follows is modules
                    return unfinished.rename(folder / name)
    raise MachineFailed(f"there is no kernel in {package.name}")
