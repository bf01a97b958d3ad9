"""A proxy before an S3 server that delays, refuses, cuts off or loses answers, at the request that it is told to."""

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Effect = Literal["503", "slow", "cut", "lost", "kill before", "kill after"]
WRITES = r"(PUT|POST|DELETE) "
_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")


@dataclass
class Rule:
    """What happens to some requests."""

    effect: Effect
    match: str = WRITES  # a regular expression over `METHOD /bucket/key?query`
    nth: int = 1  # of those that match, from this one on
    times: int = 1  # so many of them
    lasts: float = float("inf")  # seconds from the first of them
    seconds: float = 0.0  # slow: by so much
    seen: int = 0
    struck: int = 0
    since: float = 0.0

    def strikes(self, request: str) -> bool:
        if not re.match(self.match, request):
            return False
        self.seen += 1
        strikes = self.seen >= self.nth and self.struck < self.times
        self.since = self.since or (time.monotonic() if strikes else 0.0)
        strikes = strikes and time.monotonic() - self.since < self.lasts
        self.struck += strikes
        return strikes


@dataclass
class Proxy:
    """The address, and what happens there."""

    endpoint: str
    rules: list[Rule] = field(default_factory=list)
    kill: Callable[[], None] = lambda: None  # the driver
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rule(self, request: str) -> Rule | None:
        with self.lock:
            return next((rule for rule in self.rules if rule.strikes(request)), None)

    def struck(self) -> int:
        return sum(rule.struck > 0 for rule in self.rules)


@contextmanager
def proxy_before(endpoint: str) -> Iterator[Proxy]:
    """A proxy that lets everything through until it has rules."""
    upstream = endpoint.removeprefix("http://")
    proxy = Proxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.upstream = http.client.HTTPConnection(upstream, timeout=60)

        def finish(self) -> None:
            self.upstream.close()
            super().finish()

        def log_message(self, *_: Any) -> None:
            pass

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            rule = proxy.rule(f"{self.command} {self.path}")
            effect = rule.effect if rule else ""
            if rule and effect == "slow":
                time.sleep(rule.seconds)
            if effect == "503":
                return self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            if effect == "kill before":
                proxy.kill()
            if effect in ("cut", "kill before"):
                return self._cut()
            self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    self.upstream.putheader(name, value)
            self.upstream.endheaders(body or None)
            answer = self.upstream.getresponse()
            data = answer.read()
            if effect == "kill after":
                proxy.kill()
            if effect in ("lost", "kill after"):
                return self._cut()
            return self._answer(answer.status, answer.getheaders(), data)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response_only(status)
            length = len(data)
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = int(value)
                elif name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)

        def _cut(self) -> None:
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815 – as http.server looks for them

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
