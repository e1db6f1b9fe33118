"""A headless Chromium, steered through its DevTools protocol over two pipes. Needs nothing beside the browser."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120  # for an answer of the browser


def find_browser() -> str | None:
    """The path of a browser; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class CallFailed(Exception):
    """The browser does not do what it was told, for instance since the page is being left."""


class Browser:
    """One tab of a browser."""

    def __init__(self, write: int, read: int):
        self._write, self._read = write, read
        self._number, self._left, self._session = 0, b"", None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: object) -> Any:
        """Call a method of the protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise CallFailed(answer["error"]["message"])
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._left:
            read = os.read(self._read, 1 << 16)
            assert read, "the browser ended"
            self._left += read
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def size(self, width: int, dark: bool = False) -> None:
        """Make the window ``width`` pixels wide, with a light or a dark scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Open a page, and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait(f"location.href.startsWith({json.dumps(address)}) && document.readyState == 'complete'")

    def wait(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with suppress(CallFailed):  # as one page follows another
                if self.value(condition):
                    return
            time.sleep(0.1)
        raise AssertionError(condition)

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def write(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press Enter or Tab."""
        code, text = {"Enter": (13, "\r"), "Tab": (9, "")}[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in the folder ``profile``."""
    program = find_browser()
    assert program is not None
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()

    # Root, as in a container, has no sandbox. The small /dev/shm of containers is avoided.
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    flags += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"]
    pipes = f'exec "$0" "$@" 3<&{in_read} 4>&{out_write}'  # the browser reads from 3 and writes to 4
    process = subprocess.Popen(
        ["bash", "-c", pipes, program, *flags, "about:blank"],
        pass_fds=(in_read, out_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(in_read)
    os.close(out_write)
    try:
        yield Browser(in_write, out_read)
    finally:
        process.terminate()
        process.wait(60)
        os.close(in_write)
        os.close(out_read)
