"""The line between workers, and strangers at its port: they cost little, are told of once, and end nothing."""

import contextlib
import json
import os
import resource
import socket
import struct
import threading
import time

import pytest

from distgan.errors import Broken, Ended, Halted, Stopped, UserError
from distgan.runtime import control, hub
from distgan.runtime.control import Line
from distgan.runtime.hub import Limits

JOB, SECRET, LIMITS = "job", "a secret of the job", Limits(20, 20)


def framed(message):
    content = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">I", len(content)) + content


def hello(rank, **more):
    return {"job": JOB, "rank": rank, "world_size": 2, "host": "stranger", "nonce": "0"} | more


class Pair:
    """A primary and a second worker of one job, in this process."""

    def __init__(self):
        self.server = control.listen(0, "127.0.0.1")
        self.address = self.server.getsockname()
        self.primary = Line(JOB, SECRET, 0, 2, LIMITS, [self.address], self.server)
        self.second = None

    def join(self):
        self.second = Line(JOB, SECRET, 1, 2, LIMITS, [self.address]).join()
        self.primary.join()

    def gather(self):
        """What both gather, by rank."""
        found = {}
        lines = {0: self.primary, 1: self.second}
        threads = [threading.Thread(target=lambda r=r: found.update({r: lines[r].gather([r])})) for r in lines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return found

    def ask(self, content):
        """What the primary answers to some bytes until it closes the connection."""
        with socket.create_connection(self.address, timeout=10) as stranger:
            with contextlib.suppress(OSError):
                stranger.sendall(content)
                stranger.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while part := stranger.recv(2**16):
                    answer += part
            return answer


@pytest.fixture
def pair():
    made = Pair()
    yield made
    for line in (made.second, made.primary):
        if line:
            line._closing = True
            line.leave()


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no message": b"\0" * 4 + b"{}",
    "nothing": b"",
    "a list": framed([1, 2]),
    "a number": framed(b"1"),
    "no UTF-8": framed(b"\xff\xfe\xfd"),
    "deeply nested": framed(b"[" * 4000),
    "a long number": framed(b'{"job": ' + b"9" * 4000 + b"}"),
    "another job": framed(hello(1, job="other")),
    "a word as rank": framed(hello("1")),
    "no rank": framed({"job": JOB}),
    "no proof": framed(hello(1)),
    "an empty proof": framed(hello(1)) + framed({"proof": ""}),
    "a proof of no text": framed(hello(1)) + framed({"proof": ["x"]}),
    "no ASCII": framed(hello(1)) + framed({"proof": "é"}),
    "rank 0 with the job's secret": framed(hello(0)) + framed({"proof": hub.proof(SECRET, "rank 0", "0", "0")}),
    "a fake end": framed(hello(1)) + framed({"fail": {"urgency": -9, "code": 0, "text": "\x1b[2Jdone"}}),
    "an earlier line's hello": json.dumps({"hello": JOB, "rank": 1, "world_size": 2, "host": "x"}).encode() + b"\n",
}


def test_strangers_end_nothing_and_are_told_of_once(pair, said, caplog):
    for name, content in STRANGERS.items():
        answer = pair.ask(content)
        assert len(answer) < 500, name
        assert SECRET.encode() not in answer, name
    pair.join()
    for content in STRANGERS.values():
        pair.ask(content)
    assert pair.gather() == {0: [[0], [1]], 1: [[0], [1]]}
    [line] = [line for line in said if "connection from" in line]
    assert line.startswith("a connection from 127.0.0.1 to the workers' line was closed: it ")
    assert "Traceback" not in caplog.text


def test_what_a_stranger_costs(pair, monkeypatch):
    """Hundreds that say nothing keep nobody out, and megabytes without an end are not kept."""
    monkeypatch.setattr(hub, "HELLO_SECONDS", 1)
    silent = [socket.create_connection(pair.address) for _ in range(400)]
    talking = [socket.create_connection(pair.address) for _ in range(4)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for each in talking:
        with contextlib.suppress(OSError):
            each.sendall(b"\x00\x00\x0f\xff" + b"x" * 20_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB
    pair.join()
    assert pair.gather()[0] == [[0], [1]]
    time.sleep(hub.HELLO_SECONDS + 1)
    sockets = [link for link in map(_link, os.listdir("/proc/self/fd")) if link.startswith("socket:")]
    # Their own ends are open still; the primary's are closed but for the two workers'.
    assert len(sockets) < len(silent) + len(talking) + 20
    for each in silent + talking:
        each.close()


def test_the_line_ends_quietly_while_strangers_are_there(pair, caplog):
    silent = [socket.create_connection(pair.address) for _ in range(20)]
    pair.join()
    for line in (pair.second, pair.primary):
        line._closing = True
        line.leave()
    pair.primary = pair.second = None
    assert "asyncio" not in caplog.text
    for each in silent:
        each.close()


def _link(name):
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{name}")
    return ""


def test_a_fake_primary_learns_nothing_and_ends_nothing():
    heard = []

    def serve(server):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                heard.append(connection.recv(2**16))
                nonce = "0" * 32
                connection.sendall(framed({"welcome": JOB, "nonce": nonce, "proof": "0" * 64}))
                connection.sendall(framed({"end": {"code": 0, "text": "done", "stacks": False}}))
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        with pytest.raises(Ended, match="by another program, or by a job of another secret") as raised:
            Line(JOB, SECRET, 1, 2, LIMITS, [server.getsockname()]).join()
    assert raised.value.code == UserError.code
    assert not any(SECRET.encode() in each for each in heard)


def test_long_texts_are_cut():
    text = hub.text_of("start" + "x" * 10**7 + "end")
    assert len(text) < 20_010
    assert (text[:5], text[-3:]) == ("start", "end")


@pytest.mark.parametrize("code", [0, -1, 256, 512, True, None, "0", 0.5, [], {}])
def test_no_word_of_another_worker_is_a_success(code):
    assert hub.failing(code) == 1


@pytest.mark.parametrize("code", [1, 2, 3, 75, 130, 134, 255])
def test_other_workers_codes(code):
    assert hub.failing(code) == code


@pytest.mark.parametrize(("error", "code"), [(Stopped("stopped"), 75), (Broken("\x1b]0;x\x07broken"), 1)])
def test_a_workers_end_is_that_of_all(pair, error, code):
    pair.join()
    pair.primary._taken = pair.second._taken = True  # Else the process ends.
    found = []
    thread = threading.Thread(target=lambda: found.append(pair.second.fail(error)))
    thread.start()
    verdict = pair.primary._verdict.result(10)
    pair.primary.leave()  # For which the other waits.
    pair.primary = None
    thread.join(10)
    [ended] = found
    assert (ended.code, verdict.code) == (code, code)
    assert "\x1b" not in str(verdict)
    assert str(verdict).replace(r"\x1b]0;x\x07", "\x1b]0;x\x07").endswith(str(error))


def test_all_halt_together(pair):
    """The button at W&B is gathered, so each worker ends by itself; the others' lines close in peace."""
    pair.join()
    found = []
    lines = (pair.second, pair.primary)
    threads = [threading.Thread(target=lambda line=line: found.append(line.fail(Halted("halted")))) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [each.code for each in found] == [0, 0]
    assert not pair.primary._verdict.done()


@pytest.mark.parametrize(
    ("hosts", "address"),
    [
        (["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        (["localhost", "localhost"], "127.0.0.1"),
        (["localhost", "10.0.0.2"], ""),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1"),
        (["no-such-host.invalid", "127.0.0.1"], ""),
    ],
)
def test_where_the_primary_listens(hosts, address):
    assert control.narrowest(hosts) == address


def test_an_address_that_only_leads_here():
    with control.listen(0, "203.0.113.7") as server:
        assert server.getsockname()[0] == "0.0.0.0"  # noqa: S104
