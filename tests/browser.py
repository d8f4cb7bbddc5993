"""A headless Chromium, spoken to in its own protocol (DevTools) through a pair of pipes: no driver, no port."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_LIMIT_SECONDS = 60


def program():
    """The path of a Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """A context with one page. `errors` are what its console and its scripts complained of, `requests` the URLs it asked for."""

    def __init__(self, folder, dark=False, size=(1400, 1000)):
        self.folder, self.dark, self.size = folder, dark, size
        self.errors, self.requests, self.events, self.number, self.buffer = [], [], [], 0, b""

    def __enter__(self):
        # The browser reads commands from its file descriptor 3 and writes to 4.
        theirs, self.out = os.pipe()
        self.into, answers = os.pipe()
        words = [program(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        words += [
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            f"--user-data-dir={self.folder}/profile",
        ]
        shell = 'exec 5<&"$1" 6>&"$2"; exec 3<&5 4>&6 5<&- 6>&-; shift 2; exec "$@"'
        self.log = (self.folder / "browser.log").open("w+")
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", str(theirs), str(answers), *words],
            pass_fds=(theirs, answers),
            stdout=self.log,
            stderr=self.log,
        )
        os.close(theirs)
        os.close(answers)
        self.session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        width, height = self.size
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._send("Browser.close", {}, None)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in (self.into, self.out):
            os.close(end)
        self.log.close()

    def ask(self, method, **parameters):
        """The answer to a command."""
        number = self._send(method, parameters, self.session)
        limit = time.monotonic() + _LIMIT_SECONDS
        while True:
            message = self._receive(limit, method)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _send(self, method, parameters, session):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.number

    def _receive(self, limit, waits_for):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], max(0, limit - time.monotonic()))
            data = os.read(self.into, 2**20) if ready else b""
            if not data:
                self.log.seek(0)
                raise AssertionError(f"the browser does not answer {waits_for}: {self.log.read()[-2000:]}")
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, told):
        if method:
            self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(told["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def open(self, path):
        """Opens a file; returns the seconds until it was loaded and drawn."""
        start = time.monotonic()
        self.events.clear()
        self.ask("Page.navigate", url=path.absolute().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._receive(start + _LIMIT_SECONDS, "the page's load")
        self.script("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - start

    def script(self, expression):
        """The value of an expression of JavaScript, or of its promise."""
        told = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key):
        """Presses a key."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes.get(key, 0))

    def point(self, x, y, kind="mouseMoved", buttons=0):
        """Moves the pointer."""
        more = {} if kind == "mouseMoved" and not buttons else {"button": "left", "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, buttons=buttons, **more)

    def click(self, selector):
        """Clicks the middle of an element."""
        x, y = self.place(selector)
        self.point(x, y, "mousePressed", 1)
        self.point(x, y, "mouseReleased")

    def place(self, selector):
        """The middle of an element that is scrolled to."""
        found = self.script(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return tuple(found)

    def picture(self, path, whole=False):
        """Writes what is seen as PNG."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
