"""Chromium without a window, led by the DevTools protocol over a pipe: opens a page as a phone, a desktop or a printer
would, and says what happened.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-pipe",  # commands on descriptor 3, answers on 4, a NUL after each
    "--no-sandbox",  # which root cannot have, nor many containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "about:blank",
)


class Page:
    """A tab. `events` has everything that was reported since the page was opened."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._last = 0
        self._session: str | None = None
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Gives a command and waits for its answer."""
        self._last += 1
        command = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._last:
                assert "error" not in message, message
                return dict(message["result"])

    def open(self, path: Path, *, width: int, height: int = 900, phone: bool = False, dark: bool = False) -> None:
        """Loads a file at a width in CSS pixels."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.events.clear()
        self.do("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, target: Path) -> None:
        """The whole page as PNG."""
        self._save(target, self.do("Page.captureScreenshot", captureBeyondViewport=True))

    def print(self, target: Path) -> None:
        """The page as PDF, as its print style has it, for somebody who likes screens dark."""
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        self.do("Emulation.setEmulatedMedia", media="print", features=[dark])
        self._save(target, self.do("Page.printToPDF", preferCSSPageSize=True, printBackground=False))

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, exceptions, and what could not be loaded."""
        bad = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in bad]

    def requested(self) -> list[str]:
        """Every address that was loaded, except those that are data."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        addresses = [str(event["params"]["request"]["url"]) for event in sent]
        return [address for address in addresses if not address.startswith("data:")]

    def close(self) -> None:
        self._commands.close()
        self._answers.close()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._answers.fileno(), 1 << 16)
            assert more, "chromium has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found

    @staticmethod
    def _save(target: Path, result: dict[str, Any]) -> None:
        target.write_bytes(base64.b64decode(result["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A tab of a browser of our own, with an empty profile in that directory."""
    assert PROGRAM is not None
    its_commands, commands = os.pipe()
    answers, its_answers = os.pipe()
    # The shell puts the pipes where the browser looks for them.
    script = f'exec "$@" 3<&{its_commands} 4>&{its_answers}'
    browser = subprocess.Popen(
        ["bash", "-c", script, "chromium", PROGRAM, f"--user-data-dir={profile}", *_ARGUMENTS],
        pass_fds=(its_commands, its_answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
    )
    os.close(its_commands)
    os.close(its_answers)
    page = Page(commands, answers)
    try:
        yield page
    finally:
        page.close()  # which ends it
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
