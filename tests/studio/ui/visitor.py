"""Actions on the studio's page in a real browser."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.browser import FORGET, Browser

SHOTS = os.environ.get("PITI_SCREENSHOTS")
"""A folder into which the pictures of docs/pictures/ are taken anew; nothing is written without it."""
LAPTOP, PHONE = (1366, 800), (390, 844)


class Visitor:
    """Somebody at the page."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, size: tuple[int, int] = LAPTOP, dark: bool = False) -> None:
        self.browser.resize(*size, dark=dark)
        self.browser.run(FORGET)
        self.browser.open(self.address)
        self.browser.wait(
            "document.querySelector('#street-make') && document.querySelector('#street-drawing .picture')"
        )

    def stroke(self, name: str, *points: tuple[float, float], width: int = 40, model: str = "street") -> None:
        """Of a class or a tool, by its name in the palette."""
        self.browser.run(
            "const s = document.querySelector(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input', { bubbles: true }))",
            f"#{model}-drawing .size input", width,
        )  # fmt: skip
        if name:
            self.browser.click(f'#{model}-drawing [role=radio][aria-label="{name}"]')
        self.browser.drag(f"#{model}-drawing .surface", *points)

    def set(self, field: str, value: float) -> None:
        """A slider's or a number's value, once its field is there."""
        number = f"#{field} input[type=number]"
        self.browser.wait(f"document.querySelector('{number}')")
        self.browser.run(
            "const i = document.querySelector(arguments[0]);"
            "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(i, arguments[1]);"
            "for (const kind of ['input', 'change', 'blur']) i.dispatchEvent(new Event(kind, { bubbles: true }))",
            number, str(value),
        )  # fmt: skip

    def slowly(self, steps: int = 250) -> None:
        """With many steps."""
        self.browser.click("#street-more button")
        self.set("street-steps", steps)

    def state(self, model: str = "street") -> str:
        script = "return document.querySelector(arguments[0])?.closest('[data-state]')?.dataset.state ?? ''"
        return self.browser.run(script, f"#{model}-gallery .gallery")

    def until(self, test: Callable[[], object], what: str) -> None:
        give_up = time.monotonic() + 120
        while not test():
            assert time.monotonic() < give_up, f"{what} did not come; the page says: {self.words()}"
            time.sleep(0.02)

    def kept(self) -> Image.Image:
        """The drawing as the browser's storage has it for a reload; black where there is none."""
        file = self.browser.run("return sessionStorage['piti-painting-street-drawing'] ?? ''")
        if not file:
            return Image.new("RGB", LAPTOP)
        return Image.open(BytesIO(base64.b64decode(file.partition(",")[2]))).convert("RGB")

    def words(self, model: str = "street") -> str:
        return self.browser.run("return document.querySelector(arguments[0]).innerText", f"#{model}-gallery")

    def made(self, model: str = "street", then: str = "done") -> list[np.ndarray]:
        """Press the button, and wait for the pictures, each as it is downloaded."""
        self.browser.click(f"#{model}-make")
        self.until(lambda: self.state(model) in ("waiting", "running"), "the job")
        self.until(lambda: self.state(model) == then, then)
        return [np.asarray(Image.open(BytesIO(file))) for file in self.files(model)]

    def files(self, model: str = "street") -> list[bytes]:
        script = "return [...document.querySelectorAll(arguments[0])].map((link) => link.href)"
        files = []
        for link in self.browser.run(script, f"#{model}-gallery .download"):
            with urllib.request.urlopen(link) as answer:
                assert answer.headers["Content-Disposition"].startswith("attachment")
                files.append(answer.read())
        return files

    def shown(self, model: str = "street") -> list[list[int]]:
        """Sizes of the pictures as the browser decoded them."""
        script = f"""const images = [...document.querySelectorAll("#{model}-gallery .pictures img")];
            await Promise.all(images.map((image) => image.decode()));
            return images.map((image) => [image.naturalWidth, image.naturalHeight])"""
        return self.browser.run(f"return (async () => {{ {script} }})()")

    def example(self, k: int = 0, model: str = "street") -> None:
        """By its button; the page has drawn one already, so its words are taken away, and come with the new one."""
        self.until(lambda: "480 × 360" in self.below(model), "the first example")
        self.browser.run("document.querySelector(arguments[0]).textContent = ''", f"#{model}-drawing .below .what")
        self.browser.run(
            "document.querySelectorAll(arguments[0])[arguments[1]].click()", f"#{model}-examples button", k
        )
        self.until(lambda: "480 × 360" in self.below(model), "the example")

    def below(self, model: str = "street") -> str:
        return self.browser.run("return document.querySelector(arguments[0]).innerText", f"#{model}-drawing .below")

    def shot(self, name: str) -> None:
        """A picture for docs/pictures/, where they are asked for."""
        if SHOTS is None:
            return
        time.sleep(0.4)  # transitions
        target = Path(SHOTS) / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.browser.screenshot(target)
        Image.open(target).convert("RGB").save(target.with_suffix(".jpg"), quality=88, optimize=True)
        target.unlink()


def jobs(address: str) -> int:
    with urllib.request.urlopen(f"{address}healthz") as answer:
        return json.load(answer)["jobs"]


def post(address: str, fields: dict[str, Any], file: Path) -> subprocess.Popen[bytes]:
    """A request by another visitor, who uses curl."""
    form = [part for key, value in fields.items() for part in ("-F", f"{key}={value}")]
    command = ["curl", "-s", "-o", os.devnull, *form, "-F", f"condition=@{file}", f"{address}api/translate"]
    return subprocess.Popen(command)
