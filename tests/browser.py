"""A real browser without a screen: Debian's headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from shoal.cluster.local import packages
from shoal.model import programs
from shoal.model.report import Report

PROGRAM = "chromium-headless-shell"
_START_S = 60.0
_UNTIL = """new Promise((done, failed) => {
  const end = Date.now() + LIMIT;
  const look = () => {
    const now = (EXPRESSION);
    if (now) done(now);
    else if (Date.now() > end) failed(new Error("never: " + document.title));
    else setTimeout(look, 20);
  };
  look();
})"""
_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server", "--no-first-run"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--remote-debugging-port=0",
    ),
)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection, port: int) -> None:
        self._socket = socket
        self._port = port
        self._last = 0
        self._events: list[dict[str, Any]] = []
        self.ask("Page.enable")
        self.ask("Page.setLifecycleEventsEnabled", enabled=True)

    def another(self) -> AbstractContextManager[Page]:
        """Another tab of the same browser."""
        return _tab(self._port)

    def load(self, url: str, timeout_s: float = 30) -> None:
        """Goes there; returns once the page and what it refers to have been loaded."""
        self._events.clear()
        answer = self.ask("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        if "loaderId" not in answer:
            return  # only the fragment is another one
        deadline = time.monotonic() + timeout_s
        while not any(self._tells(event, answer["loaderId"]) for event in self._events):
            self._events.append(self._next(deadline))

    @staticmethod
    def _tells(event: dict[str, Any], loader: str) -> bool:
        """Whether it says that this page has been loaded, and not the one before it."""
        told = event["params"]
        return event["method"] == "Page.lifecycleEvent" and (told["name"], told["loaderId"]) == ("load", loader)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives; promises are waited for."""
        result = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, timeout_s: float = 30) -> Any:
        """The value of an expression once it is true."""
        return self.value(_UNTIL.replace("LIMIT", str(int(timeout_s * 1000))).replace("EXPRESSION", expression))

    # As a user

    def click(self, selector: str) -> None:
        """Clicks where an element is, once it is shown."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.until(f"{element} && !{element}.disabled && {element}.getClientRects().length")
        spot = self.value(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Types a text into what has the focus."""
        self.ask("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Presses a key, such as `Enter` (13)."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def choose_file(self, selector: str, path: Path) -> None:
        """Gives an input for files a file of this machine."""
        found = self.ask("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.ask("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def show_as(self, width: int, height: int, *, dark: bool = False) -> None:
        """Gives the tab a size, and the system a dark or light look."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        look = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[look])

    def screenshot(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def cut_off(self, offline: bool) -> None:
        """Takes the network away from the tab, or gives it back."""
        self.ask("Network.enable")
        wide_open = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.ask("Network.emulateNetworkConditions", offline=offline, **wide_open)

    def before_each(self, script: str) -> None:
        """Has each page begin with a script of the test's."""
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=script)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        deadline = time.monotonic() + 60
        while True:
            message = self._next(deadline)
            if message.get("id") == self._last:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._events.append(message)

    def _next(self, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
        return message


@contextmanager
def browser(report: Report) -> Iterator[Page]:
    """An empty tab of a new browser, which is removed afterwards. Installs the browser if it is missing."""
    packages.ensure({PROGRAM: PROGRAM}, report)
    profile = Path(tempfile.mkdtemp(prefix="shoal-browser-"))
    program = programs.find(PROGRAM)
    assert program is not None
    process = subprocess.Popen(
        [program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with _tab(_port_of(process, profile / "DevToolsActivePort")) as page:
            yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        process.wait(10)
        _remove(profile)


@contextmanager
def _tab(port: int) -> Iterator[Page]:
    """An empty tab of the browser that listens there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with opener.open(request, timeout=30) as answer:
        url = json.load(answer)["webSocketDebuggerUrl"]
    with connect(url, proxy=None, max_size=None) as socket:
        yield Page(socket, port)


def _remove(directory: Path) -> None:
    """Its last processes may still write as they die."""
    for _ in range(200):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{directory} cannot be removed")


def _port_of(process: subprocess.Popen[bytes], file: Path) -> int:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        if file.exists() and (text := file.read_text()).count("\n"):
            return int(text.split("\n")[0])
        time.sleep(0.02)
    raise AssertionError("the browser did not start")
