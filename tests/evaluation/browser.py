"""A real browser for tests: Chromium through chromedriver's plain JSON protocol (W3C WebDriver), without a library."""

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

KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "back": "\ue003"}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, page: Path) -> None:
        self._ask("url", {"url": page.absolute().as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body in JavaScript returns; promises are waited for."""
        return self._ask("execute/sync", {"script": script, "args": list(arguments)})

    def click(self, element: str) -> None:
        found = self._ask("element", {"using": "css selector", "value": element})[_ELEMENT]
        self._ask(f"element/{found}/click", {})

    def press(self, key: str) -> None:
        """A key of the keyboard, down and up."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for kind in ("keyDown", "keyUp")]
        self._ask("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def wait(self, condition: str) -> None:
        """Until an expression in JavaScript is true."""
        while not self.run(f"return Boolean({condition})"):
            time.sleep(0.01)

    def resize(self, width: int, height: int, density: float = 1.0, dark: bool = False) -> None:
        """Of the view, in CSS pixels, as on a device with so many pixels to each."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def devtools(self, command: str, values: dict[str, object]) -> Any:
        return self._ask("goog/cdp/execute", {"cmd": command, "params": values})

    def screenshot(self, path: Path) -> None:
        with urllib.request.urlopen(f"{self._session}/screenshot") as answer:
            path.write_bytes(base64.b64decode(json.load(answer)["value"]))

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
            ],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
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
