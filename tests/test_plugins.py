"""Lock strategies from outside: written by `zcrpc lab new`, compiled against strategy.h alone, loaded, refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from plugins import changed, run

import zcrpc
from zcrpc import locks
from zcrpc.lab import seed


def test_strategy_h_is_installed() -> None:
    assert (locks.include_directory() / "zcrpc" / "strategy.h").is_file()
    assert [path.name for path in locks.include_directory().rglob("*.h")] == ["strategy.h"]


def test_a_new_lock_builds_and_passes_its_tests(tmp_path: Path) -> None:
    made = run(sys.executable, "-m", "zcrpc.cli", "lab", "new", "lock-to-test", "--in", tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    directory = tmp_path / "lock-to-test"
    assert f"make -C {directory} test" in made.stdout
    assert f"ZCRPC_LOCKS={directory}/lock_to_test.so zcrpc lab torture --locks lock-to-test" in made.stdout
    done = run("make", "-C", directory, "test", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_it_can_be_used_everywhere(tmp_path: Path) -> None:
    plugin = changed(tmp_path, "used-everywhere")
    strategy = locks.load(plugin)
    assert strategy == locks.load(plugin) == locks.find("used-everywhere")
    assert locks.names()[-1] == "used-everywhere"
    assert locks.names().count("used-everywhere") == 1
    assert locks.plugins()["used-everywhere"] == plugin
    with zcrpc.RegionMap(locks="used-everywhere") as regions:
        region = regions.attach(1)
        with regions.read(region.start) as found:
            assert found == region
    one = seed.Experiment(locks=("used-everywhere",), connections=4, seconds=0.2, rounds=1)
    assert seed.run_round(one, "used-everywhere", "readers-only").requests > 0  # in a process of its own


def test_the_environment_names_plugins(tmp_path: Path) -> None:
    plugin = changed(tmp_path, "from-environment")
    code = (
        "import zcrpc; print(zcrpc.locks.names()[-1]); zcrpc.RegionMap(locks='from-environment'); zcrpc.locks.find('x')"
    )
    done = run(sys.executable, "-c", code, ZCRPC_LOCKS=f"{plugin}{os.pathsep}{tmp_path / 'gone.so'}")
    assert done.stdout == "from-environment\n"
    assert "a plugin was left out" in done.stderr
    assert f'"from-environment"; left out was ZCRPC_LOCKS={tmp_path}/gone.so: ' in done.stderr
    assert "there is no such file" in done.stderr


@pytest.mark.parametrize("kind", ["path", "function"])
def test_an_entry_point_names_a_plugin(tmp_path: Path, kind: str) -> None:
    plugin = changed(tmp_path, f"from-a-{kind}")
    (tmp_path / "my_locks.py").write_text(f"path = {str(plugin)!r}\n\ndef function():\n    return path\n")
    metadata = tmp_path / "my_locks-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-locks\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[zcrpc.locks]\nmine = my_locks:{kind}\nbroken = my_locks:nothing\n")
    done = run(sys.executable, "-c", "import zcrpc; print(zcrpc.locks.names()[-1])", PYTHONPATH=str(tmp_path))
    assert done.stdout == f"from-a-{kind}\n", done.stderr
    assert "broken = my_locks:nothing" in done.stderr


REFUSED = {
    "another ABI": (
        (".abi = ZC_STRATEGY_ABI", ".abi = 77"),
        "built for version 77 of the strategy ABI; this is version 1",
    ),
    "another table": ((".size = sizeof(struct zc_strategy)", ".size = 8"), "its table has 8 bytes"),
    "no read_unlock": ((".read_unlock = read_unlock,", ".read_unlock = NULL,"), "its table lacks read_unlock"),
    "no attach": ((".attach = nothing,", ""), "its table lacks attach"),
    "half a look": ((".detach = nothing,", ".detach = nothing, .peek = (void *)nothing,"), "its table lacks confirm"),
    "a taken name": (('.name = "refused"', '.name = "per-region"'), 'there is a strategy named "per-region" already'),
    "the name none": (('.name = "refused"', '.name = "none"'), 'there is a strategy named "none" already'),
    "an impossible name": (('.name = "refused"', '.name = "a,b"'), "its name must be 1 to 40 of"),
    "much state": ((".region_size = 0", ".region_size = 1 << 30"), "is over 1048576"),
    "no symbol": (("zc_strategy zcrpc_strategy =", "zc_strategy another_name ="), 'exports no symbol "zcrpc_strategy"'),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_with_a_plugin_is_said(tmp_path: Path, what: str) -> None:
    change, message = REFUSED[what]
    plugin = changed(tmp_path, "refused", change)
    before = locks.names()
    with pytest.raises(locks.BadPlugin) as raised:
        locks.load(plugin)
    assert str(raised.value).startswith(f"{plugin}: ")
    assert message in str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert locks.names() == before


def test_what_is_no_shared_object_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no ELF")
    with pytest.raises(locks.BadPlugin, match=rf"^{text}: .+"):
        locks.load(text)
    with pytest.raises(locks.BadPlugin, match="there is no such file"):
        locks.load(tmp_path / "gone.so")
    with pytest.raises(locks.BadPlugin, match="there is no such file"):
        locks.load(tmp_path)


def test_two_plugins_of_one_name(tmp_path: Path) -> None:
    first = changed(tmp_path / "first", "twice")
    second = changed(tmp_path / "second", "also-twice", ('.name = "also-twice"', '.name = "twice"'))
    locks.load(first)
    with pytest.raises(locks.BadPlugin, match='there is a strategy named "twice" already'):
        locks.load(second)
    assert locks.plugins()["twice"] == first


@pytest.mark.parametrize("name", ["", "Upper", "two words", "../up", "9lives", "a" * 41, "global", "none"])
def test_a_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    done = run(sys.executable, "-m", "zcrpc.cli", "lab", "new", name, "--in", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("zcrpc: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my-lock").mkdir()
    done = run(sys.executable, "-m", "zcrpc.cli", "lab", "new", "my-lock", "--in", tmp_path)
    assert (done.returncode, done.stderr) == (2, f"zcrpc: cannot write {tmp_path}/my-lock: File exists\n")
