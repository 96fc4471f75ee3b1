"""A headless Chromium that tests drive by its own protocol, through two pipes.

https://chromedevtools.github.io/devtools-protocol/. With `--remote-debugging-pipe` the browser
reads commands from descriptor 3 and answers on 4, JSON texts that end in a zero byte, so that
neither a port nor a driver is needed.
"""

import json
import os
import select
import shutil
import subprocess
from pathlib import Path

FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking",
)  # fmt: skip

SECONDS = 60  # of silence, after which it hangs


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Page:
    """One page, with what it asked the network for and what went wrong in it.

    requests   addresses the page loaded or tried to
    errors     exceptions, console errors, and what the browser itself complained of
    """

    def __init__(self, profile: Path, width: int = 1200, height: int = 900):
        read, child_writes = os.pipe()
        child_reads, write = os.pipe()
        words = [chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        redirected = f'exec "$@" 3<&{child_reads} 4>&{child_writes}'
        self.process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *words],
            pass_fds=(child_reads, child_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb", buffering=0)
        self._rest, self._count, self._session = b"", 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._address = self._loaded = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def send(self, method: str, **parameters) -> dict:
        """The answer to a command; events on the way are noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            told, _, _ = select.select([self._read], [], [], SECONDS)
            assert told, f"the browser says nothing for {SECONDS} s"
            part = os.read(self._read.fileno(), 1 << 16)
            assert part, "the browser ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        event, values = message.get("method"), message.get("params", {})
        if event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.errors.append(str(values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.errors.append(values["entry"]["text"])
        elif event == "Page.frameNavigated":
            self._address = values["frame"]["url"]
        elif event == "Page.loadEventFired":
            self._loaded = self._address
        return message

    def open(self, path: Path) -> None:
        address = path.resolve().as_uri()
        self._loaded = None
        self.send("Page.navigate", url=address)
        while self._loaded != address:  # and not the empty page of before
            self._next()

    def resize(self, width: int, height: int) -> None:
        """As a screen of so many pixels; narrow ones are a phone's."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def run(self, script: str):
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and let go of a key, such as Enter, as a keyboard would."""
        codes = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}
        code, text = codes[key]
        both = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.send("Input.dispatchKeyEvent", **both, **down)
        self.send("Input.dispatchKeyEvent", **both, type="keyUp")

    def picture(self, path: Path) -> None:
        """A PNG of what the screen shows."""
        import base64

        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._read.close()
        self._write.close()
