"""A proxy before an S3 server, for what real stores do at their worst: refuse, ignore, answer late or not at all."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import S3Server


@dataclass(slots=True)
class Request:
    """What came; a rule may change it before it is sent on."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rule answers in the server's place."""

    status: int
    code: str = ""  # of an error

    def body(self) -> bytes:
        """As S3 says it."""
        if not self.code:
            return b""
        return f"<Error><Code>{self.code}</Code><Message>by a proxy</Message></Error>".encode()


Rule = Callable[[Request], Answer | None]


@dataclass(slots=True)
class Proxy:
    """Its `rule` may be exchanged at any time; `down` and `up` are those of a store whose host goes away."""

    server: S3Server
    rule: Rule = field(default=lambda request: None)
    port: int = 0
    _listening: ThreadingHTTPServer | None = None
    _open: set[socket.socket] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """What stands in AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Listen, on the same port as before."""
        listening = _Listener(("127.0.0.1", self.port), _handler(self))
        self.port = listening.server_address[1]
        self._listening = listening
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def down(self) -> None:
        """Refuse connections and cut those that are open."""
        if self._listening is not None:
            self._listening.shutdown()
            self._listening.server_close()
            self._listening = None
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client or the server has gone: what these tests are about."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            proxy._open.add(self.connection)

        def finish(self) -> None:
            proxy._open.discard(self.connection)
            with suppress(OSError):
                super().finish()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", "0")))
            request = Request(self.command, self.path, headers, body)
            answer = proxy.rule(request)
            if answer is not None:
                self._send(answer.status, [("Content-Type", "application/xml")], answer.body())
                return
            status, got, whole = forward(proxy.server, request)
            kept = [(n, v) for n, v in got if n.lower() not in ("transfer-encoding", "connection")]
            self._send(status, kept, whole)

        def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 – http.server's names

    return Handler


def forward(server: S3Server, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
    """Send it on: the server's status, headers and body."""
    upstream = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=60)
    upstream.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name != "expect":
            upstream.putheader(name, value)
    upstream.endheaders(request.body)
    with contextlib.closing(upstream):
        got = upstream.getresponse()
        return got.status, got.getheaders(), got.read()


@contextmanager
def proxy(server: S3Server) -> Iterator[Proxy]:
    """A proxy that lets everything through, until it is told otherwise."""
    made = Proxy(server)
    made.up()
    try:
        yield made
    finally:
        made.down()
