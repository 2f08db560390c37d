"""The report as it is seen: opened in Chromium as a phone, a desktop and a printer, light and dark."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from report_rows import ROWS, row_of

from zcrpc.lab import results
from zcrpc.lab.report import page, reading

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium")

HOSTILE = "<script>console.error(1)</script>"
PHONE, DESKTOP = 390, 1280
SMALLEST_TEXT = 16  # px; half a pixel less where a drawing is scaled to the width
# Every element that is wider than the window, and every text that is cut off at the edge of its drawing.
TOO_WIDE = """
    [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll > *')
        && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
        .map(e => e.outerHTML.slice(0, 200))
"""
CUT_OFF = """
    [...document.querySelectorAll('.drawing text')].filter(text => {
        const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();
        return inner.left < outer.left - 1 || inner.right > outer.right + 1
            || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
    }).map(text => text.textContent)
"""
# Pairs of texts of one drawing that lie over each other.
OVERLAPPING = """
    [...document.querySelectorAll('.drawing')].flatMap(drawing => {
        const texts = [...drawing.querySelectorAll('text')];
        const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
        return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
            Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
            && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3).map(([b]) => [a, b]));
    })
"""
SMALL_TEXT = """
    [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
        .map(e => [e.textContent.trim().slice(0, 40), e.closest('svg')
            ? e.getScreenCTM().a * parseFloat(getComputedStyle(e).fontSize) : parseFloat(getComputedStyle(e).fontSize)])
"""
# Luminance (0 to 1) of a colour of the page.
LUMINANCE = """
    (name => {
        const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
        canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => (v / 255) ** 2.2);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    })('%s')
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section, many strategies, long names, and a file that could not be read."""
    directory = tmp_path_factory.mktemp("report")
    many = [
        row_of("seed", strategy=name, scenario=scenario, round=number, requests_per_second=4e4 + 3e4 * number)
        for name in (
            *(f"per-region-6.4-convert-{n}" for n in range(14)),
            "<script>console.error(1)</script>" + "x" * 60,
        )
        for scenario in ("readers-only", "writer-storm")
        for number in (0, 1)
    ]
    for kind, rows in ROWS.items():
        results.write(directory / f"{kind}.json", kind, rows + many if kind == "seed" else rows)
    found = reading.read([*directory.iterdir(), directory / ("a-long-name-that-does-not-break" * 6)])
    target = directory / "report.html"
    target.write_text(page.render(found))
    return target


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, PHONE, 768, DESKTOP])
def test_it_fits_and_is_quiet(tab: chromium.Page, html: Path, width: int, dark: bool) -> None:
    tab.open(html, width=width, phone=width < 500, dark=dark)
    assert tab.complaints() == []
    assert tab.requested() == [html.as_uri()]
    assert tab.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.ask("document.documentElement.clientWidth") <= width
    assert tab.ask(TOO_WIDE) == []
    assert tab.ask("document.querySelectorAll('.drawing').length") > 20
    assert tab.ask("document.documentElement.scrollHeight") > 3000


def test_it_can_be_painted(tab: chromium.Page, html: Path, tmp_path: Path) -> None:
    tab.open(html, width=PHONE, phone=True)
    tab.screenshot(tmp_path / "page.png")
    drawn = (tmp_path / "page.png").read_bytes()
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", drawn[16:24])[1] > 3000


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_text_is_large_and_whole(tab: chromium.Page, html: Path, width: int) -> None:
    tab.open(html, width=width, phone=width == PHONE)
    assert tab.ask(CUT_OFF) == []
    assert tab.ask(OVERLAPPING) == []
    sizes = tab.ask(SMALL_TEXT)
    assert len(sizes) > 200
    assert [(text, size) for text, size in sizes if size < SMALLEST_TEXT - 0.5] == []


def test_tables_that_are_opened_fit_too(tab: chromium.Page, html: Path) -> None:
    tab.open(html, width=PHONE, phone=True)
    assert tab.ask("[...document.querySelectorAll('details')].map(e => e.open = true).length") > 10
    assert tab.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.ask(TOO_WIDE) == []


def test_colours_follow_the_scheme_and_stand_out(tab: chromium.Page, html: Path) -> None:
    for dark in (False, True):
        tab.open(html, width=PHONE, phone=True, dark=dark)
        paper = tab.ask(LUMINANCE % "--card")
        assert (paper < 0.1) == dark
        for name in ("--text", "--faint", "--accent", *(f"--c{n}" for n in range(1, 7))):
            low, high = sorted((tab.ask(LUMINANCE % name), paper))
            least = 4.5 if name in ("--text", "--faint", "--accent") else 3  # WCAG: of text, of graphics
            assert (high + 0.05) / (low + 0.05) >= least - 0.15, (name, dark)  # a gamma of 2.2 is not quite sRGB's


def test_names_from_files_do_nothing(tab: chromium.Page, html: Path) -> None:
    tab.open(html, width=DESKTOP)
    assert tab.ask("document.scripts.length") == 0
    assert "<script>console" in tab.ask("document.body.textContent")


def test_it_is_printed_light(tab: chromium.Page, html: Path, tmp_path: Path) -> None:
    tab.open(html, width=DESKTOP, dark=True)
    tab.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert tab.ask(LUMINANCE % "--card") > 0.9  # the media are still those of the printer
    assert tab.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
