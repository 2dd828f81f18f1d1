"""An S3 server on loopback, in its own process, behind a proxy that fails as networks and stores do."""

import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the pipe closes: it does not outlive the tests
"""
SECRET = "raymerge+test/secret+that+must+show+nowhere"
KEY_ID = "RAYMERGETESTKEYID"
STALL_S = 20.0  # longer than a client waits
FAULTS = ("500", "503", "reset", "cut-download", "cut-upload")
Request = tuple[str, str]  # method, path
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@contextmanager
def s3_server() -> Iterator[int]:
    """Port of moto's server, which ends with the block."""
    pipe = subprocess.PIPE
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment
    ) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


@dataclass
class Faults:
    """Faults that the proxy shall cause, and those it has caused."""

    upstream: int = 0
    planned: deque[str] = field(default_factory=deque)
    concerns: Callable[[Request], bool] = lambda request: True
    share: float = 0.0
    draws: random.Random = field(default_factory=random.Random)
    done: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """No more faults; reset the counts."""
        self.planned, self.share, self.concerns = deque(), 0.0, lambda request: True
        self.done = []

    def plan(self, *kinds: str, concerns: Callable[[Request], bool] = lambda request: True) -> None:
        """Let the next matching requests fail in these ways."""
        self.planned, self.concerns = deque(kinds), concerns

    def scatter(self, share: float, seed: int) -> None:
        """Let a share of all further requests fail, each in a random way."""
        self.share, self.draws = share, random.Random(seed)

    def next(self, request: Request) -> str | None:
        with self.lock:
            fault = None
            if self.planned and self.concerns(request):
                fault = self.planned.popleft()
            elif self.share and self.draws.random() < self.share:
                fault = self.draws.choice(FAULTS)
            if fault:
                self.done.append(fault)
            return fault


class Proxy(BaseHTTPRequestHandler):
    """Forwards a request, or fails it."""

    protocol_version = "HTTP/1.1"
    faults: Faults

    def pass_on(self) -> None:
        fault = self.faults.next((self.command, self.path))
        length = int(self.headers.get("Content-Length", 0))
        if fault == "stall":
            time.sleep(STALL_S)
        if fault in ("reset", "stall"):
            return self.hang_up()
        body = self.rfile.read(length // 2 if fault == "cut-upload" else length)
        if fault == "cut-upload":
            return self.hang_up()
        if fault in ("500", "503", "403"):
            return self.answer(int(fault), DENIED if fault == "403" else b"", [])
        link = http.client.HTTPConnection("127.0.0.1", self.faults.upstream, timeout=30)
        link.request(self.command, self.path, body, dict(self.headers))
        with link.getresponse() as reply:
            headers = [(name, value) for name, value in reply.getheaders() if name.lower() not in HOP_BY_HOP]
            self.answer(reply.status, reply.read(), headers, cut=fault == "cut-download")
        link.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

    def answer(self, status: int, body: bytes, headers: list[tuple[str, str]], *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in {name.lower() for name, _ in headers}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""


HOP_BY_HOP = {"connection", "transfer-encoding", "server", "date", "keep-alive"}


@contextmanager
def fault_proxy() -> Iterator[tuple[str, Faults]]:
    """URL of a proxy on loopback that forwards to `faults.upstream`, and its faults: none at first."""
    faults = Faults()
    handler = type("Handler", (Proxy,), {"faults": faults})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", faults
        server.shutdown()
