"""Chromium without a window, over the pipe of Chrome's DevTools protocol: no driver and no package are needed.

    python tests/browser.py report.html page.png      a picture of a model's page, and how fast the model is in it
"""

from runtime.script import run_main

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.cli import REQUIRED, option, parse
from runtime.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab. `problems` are errors of the console, exceptions, and requests for anything but the page itself."""

    def __init__(self, profile: Path):
        commands, answers = os.pipe(), os.pipe()
        arguments = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
                     "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--force-device-scale-factor=1"]
        # The browser reads commands from 3 and answers on 4.
        shell = f'exec 3<&{commands[0]} 4>&{answers[1]}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", str(CHROMIUM), *arguments], pass_fds=(commands[0], answers[1]),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands[0])
        os.close(answers[1])
        self.commands, self.answers = commands[1], answers[0]
        self.buffer, self.n, self.session = b"", 0, None
        self.problems: list[str] = []
        self.loaded = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = os.read(self.answers, 1 << 20)
            if not more:
                raise RuntimeError("the browser is gone")
            self.buffer += more
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """What the browser answers; events that come before it are looked at."""
        self.n += 1
        message = {"id": self.n, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.n:
            self._event(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _event(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded += 1
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(about["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.problems.append(about["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.problems.append(json.dumps(about["args"]))
        elif method == "Network.requestWillBeSent" and about["request"]["url"].split(":")[0] not in ("file", "data"):
            self.problems.append(about["request"]["url"])

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False, scale: float = 1) -> None:
        """Load a file, and wait until it is there."""
        self.problems.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                  mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        before = self.loaded
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.loaded == before:
            self._event(self._message())

    def run(self, script: str) -> Any:
        """The value of JavaScript, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 20) -> Any:
        """The value of JavaScript as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"this doesn't become true: {script}; {self.problems}"
            time.sleep(0.02)
        return value

    def point(self, selector: str, click: bool = False) -> None:
        """Move the pointer to the middle of an element, and click."""
        x, y = self.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{ block: "center" }}); const b = e.getBoundingClientRect();
            return [b.x + b.width / 2, b.y + b.height / 2]; }})()""")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        codes = {"Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes.get(key, 0), **text)

    def picture(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page, or of what is on the screen."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)


SPEED = """(() => {
  const T = model.block_size, ids = text.ids.slice(0, T);
  const next = (n) => { model.logits(model.read(ids, n)); model.c.next(0.8, 200, 1); };
  const tokensPerSecond = (tokens, work) => {
    let best = Infinity;
    for (let i = 0; i < 60; i++) {
      model.forget();
      const from = performance.now();
      work();
      best = Math.min(best, performance.now() - from);
    }
    return (1000 * tokens) / best;
  };
  return [tokensPerSecond(T, () => { for (let n = 1; n <= T; n++) next(n); }), tokensPerSecond(1, () => next(T))];
})()"""


def show(page: Path, picture: Path) -> None:
    """Write the picture, one token held and one head shown alone, and print what was measured."""
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            for _ in range(2):  # the first time the browser itself has just been started
                browser.open(page, 1180, 900)
                browser.run("ready")
                browser.until("find('#write').textContent === 'Write'", 60)
            first = browser.run("performance.getEntriesByName('first token')[0].startTime")
            within, beyond = browser.run(SPEED)
            browser.run("model.forget(), pick(1, 1), shown.pinned = true, select(136)")
            height = browser.run("Math.ceil(find('.bench').getBoundingClientRect().bottom) + 22")
            browser.call("Emulation.setScrollbarsHidden", hidden=True)
            browser.call("Emulation.setDeviceMetricsOverride", width=1180, height=height, deviceScaleFactor=1.5,
                         mobile=False)
            browser.picture(picture, whole=False)
        finally:
            browser.close()
    print(f"{page.stat().st_size:,} bytes; the first token after {first:.0f} ms; {within:,.0f} tokens/s until the "
          f"context is full, {beyond:,.0f} after that; problems: {browser.problems or 'none'}")


@dataclass
class Options:
    files: list[str] = option(REQUIRED, "the page of a model, and the picture to write")


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "tests/browser.py", str(__doc__), positional=("files", "PAGE PICTURE"))
    if len(o.files) != 2 or not CHROMIUM:
        raise UserError("it takes a page, a picture to write, and an installed chromium")
    show(*map(Path, o.files))


if __name__ == "__main__":
    run_main(main)
