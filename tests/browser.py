"""A real browser for tests: Chromium via chromedriver's JSON protocol (W3C WebDriver), without a library."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEYS = {
    "left": "\ue012",
    "up": "\ue013",
    "right": "\ue014",
    "down": "\ue015",
    "back": "\ue003",
    "tab": "\ue004",
    "enter": "\ue007",
    "escape": "\ue00c",
    "shift": "\ue008",
    "control": "\ue009",
}
_PATIENCE = 120  # seconds after which a test has failed instead of hanging
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


FORGET = "try { sessionStorage.clear() } catch {}"
"""A script: what the last page kept of what was drawn is forgotten."""


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, page: Path | str) -> None:
        """A file, or an address."""
        self._ask("url", {"url": page if isinstance(page, str) else page.absolute().as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body in JavaScript returns; promises are waited for."""
        return self._ask("execute/sync", {"script": script, "args": list(arguments)})

    def click(self, element: str) -> None:
        self._ask(f"element/{self._find(element)}/click", {})

    def press(self, key: str, *held: str) -> None:
        """A key of the keyboard, down and up, while others are held down."""
        keys = [KEYS.get(one, one) for one in (*held, key)]
        actions = [{"type": "keyDown", "value": one} for one in keys]
        actions += [{"type": "keyUp", "value": one} for one in reversed(keys)]
        self._ask("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def type(self, element: str, text: str) -> None:
        """Into a field, after what it holds."""
        self._ask(f"element/{self._find(element)}/value", {"text": text})

    def choose_file(self, element: str, *files: Path) -> None:
        """Into an `input` of type file, hidden or not."""
        self.type(element, "\n".join(str(file.absolute()) for file in files))

    def drag(self, element: str, *points: tuple[float, float], finger: bool = False) -> None:
        """With the pointer down along points, as shares of the element's width and height; one point is a click.

        What is out of view is scrolled to first.
        """
        box = """const shown = document.querySelector(arguments[0]);
            shown.scrollIntoViewIfNeeded();
            const { x, y, width, height } = shown.getBoundingClientRect();
            return [x, y, width, height];"""
        left, top, width, height = self.run(box, element)
        places = [(round(left + x * width), round(top + y * height)) for x, y in points]
        moves = [{"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"} for x, y in places]
        kind = "touch" if finger else "mouse"
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
        self._ask("actions", {"actions": [pointer]})

    def wait(self, condition: str) -> None:
        """Until an expression in JavaScript is true; long before a person would give up."""
        give_up = time.monotonic() + _PATIENCE
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < give_up, f"{condition} did not become true"
            time.sleep(0.01)

    def resize(self, width: int, height: int, density: float = 1.0, dark: bool = False) -> None:
        """Of the view, in CSS pixels, as on a device with so many pixels to each."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def messages(self) -> list[str]:
        """What the page and the browser wrote to the console since it was last asked for, with its level."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._ask("se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The addresses that were asked for, of pages and of everything on them, since they were last asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self._ask("se/log", {"type": "performance"})]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def devtools(self, command: str, values: dict[str, object]) -> Any:
        return self._ask("goog/cdp/execute", {"cmd": command, "params": values})

    def screenshot(self, path: Path) -> None:
        with urllib.request.urlopen(f"{self._session}/screenshot") as answer:
            path.write_bytes(base64.b64decode(json.load(answer)["value"]))

    def _find(self, element: str) -> str:
        return self._ask("element", {"using": "css selector", "value": element})[_ELEMENT]

    def _ask(self, what: str, values: dict[str, object]) -> Any:
        return _post(f"{self._session}/{what}", values)


@contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A new window of a new profile. Skips the test where Chromium or its driver is not installed."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, program in programs.items():
        if program is None:
            pytest.skip(f"{name} is not installed")
    driver = subprocess.Popen(
        [programs["chromedriver"], "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    session = None
    try:
        assert driver.stdout is not None
        port = next(line.split()[-1].rstrip(".") for line in driver.stdout if "successfully on port" in line)
        options = {
            "binary": programs["chromium"],
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-extensions",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}}
        root = f"http://127.0.0.1:{port}/session"
        session = f"{root}/{_post(root, {'capabilities': wanted})['sessionId']}"
        yield Browser(session)
    finally:
        if session is not None:
            urllib.request.urlopen(urllib.request.Request(session, method="DELETE")).close()
        driver.terminate()
        driver.wait()


def _post(address: str, values: dict[str, object]) -> Any:
    body = json.dumps(values).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{address}: {error.read().decode()[:2000]}") from None
