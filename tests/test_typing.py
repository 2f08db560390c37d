"""What a type checker says of programs that use typed clients: they stand in tests/typing_programs, and say
themselves, behind `# error:`, which of their lines are to be refused and with which of mypy's words."""

import re
from pathlib import Path

import pytest

mypy_api = pytest.importorskip("mypy.api")

PROGRAMS = Path(__file__).parent / "typing_programs"
ROOT = PROGRAMS.parent.parent
Found = dict[str, dict[int, list[str]]]  # by file and line
_SAYS = re.compile(r"(?P<file>[^:]+\.py):(?P<line>\d+): (?:error|note): (?P<what>.*)")


def expected(program: Path) -> dict[int, str]:
    lines = program.read_text().splitlines()
    return {n: line.partition("# error: ")[2] for n, line in enumerate(lines, 1) if "# error: " in line}


@pytest.fixture(scope="module", params=["without plugin", "with plugin"])
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Found]:
    """What mypy said: of each program, by line. One run for all, as most of its time goes into zcrpc itself."""
    plugin = request.param == "with plugin"
    directory = tmp_path_factory.mktemp("mypy")
    settings = "[mypy]\nstrict = true\n" + ("plugins = zcrpc.mypy\n" if plugin else "")
    (directory / "mypy.ini").write_text(settings)
    readme = directory / "readme.py"
    readme.write_text(
        re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[0]
    )
    programs = [*map(str, [*sorted(PROGRAMS.glob("*.py")), readme])]
    cache = ["--cache-dir", str(ROOT / ".mypy_cache" / request.param.replace(" ", "-"))]
    output, complaints, _ = mypy_api.run(["--config-file", str(directory / "mypy.ini"), *cache, *programs])
    assert not complaints
    found: Found = {}
    for match in filter(None, map(_SAYS.match, output.splitlines())):
        found.setdefault(Path(match["file"]).name, {}).setdefault(int(match["line"]), []).append(match["what"])
    return plugin, found


def check(said: dict[int, list[str]], wanted: dict[int, str]) -> None:
    for line, what in wanted.items():
        assert any(what in each for each in said.get(line, [])), f"line {line}: {what!r}, but {said.get(line)}"
    assert not said.keys() - wanted.keys(), said


@pytest.mark.parametrize("program", sorted(PROGRAMS.glob("*.py")), ids=lambda program: program.stem)
def test_program(checked: tuple[bool, Found], program: Path) -> None:
    plugin, found = checked
    wanted = expected(program)
    lines = program.read_text().splitlines()
    if program.stem == "plugin" and not plugin:  # what the plugin is for
        wanted = {n: "" for n, line in enumerate(lines, 1) if "# accepted" in line or "# error" in line}
    if program.stem == "plugin_blocking" and not plugin:  # all is Any
        wanted = {n: "Expression is of type" for n, line in enumerate(lines, 1) if "# accepted" in line}
    check(found.get(program.name, {}), wanted)


def test_readme(checked: tuple[bool, Found]) -> None:
    plugin, found = checked
    assert ("readme.py" in found) is not plugin, found["readme.py"]
