"""What `import zcrpc` loads, and what it leaves till it is wanted; each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

import zcrpc

# Takes longer to import than a module of services needs: event loop, TLS, the core.
LATER = {"asyncio", "ssl", "socket", "logging", "subprocess", "zcrpc._core", "zcrpc.client", "zcrpc.server"}
# Nobody needs it who does not ask for it by name.
NEVER = {
    "click", "importlib.metadata", "multiprocessing", "numpy", "opentelemetry",
    "prometheus_client", "rich", "uvloop", "zcrpc.blocking", "zcrpc.lab", "zcrpc.supervisor", "zcrpc.testing",
    "zstandard",
}  # fmt: skip


def loaded(statements: str) -> set[str]:
    """The modules of a process that has run that."""
    code = f"{statements}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_what_describes_a_service_needs_no_event_loop() -> None:
    store = """
import zcrpc
class Store(zcrpc.Service):
    @zcrpc.method
    async def put(self, key: str, value: memoryview) -> int:
        raise zcrpc.NotFound(key)
"""
    there = loaded(store)
    assert "zcrpc.service" in there
    assert not there & (LATER | NEVER)


def test_both_ends_need_nothing_heavy_either() -> None:
    there = loaded("import zcrpc\nzcrpc.Server, zcrpc.connect, zcrpc.RegionMap(budget=1 << 21).close()")
    assert there >= LATER
    assert not there & NEVER


def test_a_command_loads_only_itself() -> None:
    help_of = "import sys\nsys.argv = ['zcrpc', {}'--help']\nfrom zcrpc.cli import main\nmain()"
    assert "zcrpc.commands.ping" in (there := loaded(help_of.format("'ping', ")))
    assert not there & {"rich", "zcrpc.commands.top", "zcrpc.commands.serve", "zcrpc.lab.results"}
    there = loaded(help_of.format(""))
    assert "zcrpc.commands.top" in there  # for what it says of itself
    assert not there & {"zcrpc.lab.results", "zcrpc.lab.commands.bench", "matplotlib", "numpy"}


def test_every_public_name_is_there() -> None:
    loaded("\n".join(["import zcrpc", *(f"zcrpc.{name}" for name in zcrpc.__all__)]))
    names = dict.fromkeys(zcrpc.__all__)
    exec(f"from zcrpc import {', '.join(names)}", names)
    for name in zcrpc.__all__:
        assert names[name] is getattr(zcrpc, name)
        assert getattr(names[name], "__name__", name).rpartition(".")[2] == name
    assert set(zcrpc._HOMES) <= set(zcrpc.__all__) <= set(dir(zcrpc))


def test_what_is_not_there_is_said_to_be_missing() -> None:
    assert not hasattr(zcrpc, "Sever")
    assert not hasattr(zcrpc, "regoins")
