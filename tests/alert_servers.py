"""Where alerts arrive in tests: a real web server and a real mail server on free ports of the loopback address."""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message as Mail
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from tests.conftest import free_ports

WAIT_S = 60.0  # for a message; apprise alone takes seconds to import on a busy machine


class Web:
    """What was posted to the server, in order."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.refuse = 0  # so many posts, with 503
        self.refused = 0
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()

    def url(self, path: str) -> str:
        """In apprise's notation."""
        return f"json://127.0.0.1:{self.port}/{path}"

    def next(self) -> dict[str, Any]:
        """The next message, with its `path`; waits for it."""
        return self._inbox.get(timeout=WAIT_S)

    def rest(self) -> list[dict[str, Any]]:
        """All that is there."""
        return [self._inbox.get() for _ in range(self._inbox.qsize())]

    def take(self, path: str, body: bytes) -> int:
        """The status of a post."""
        if self.refused < self.refuse:
            self.refused += 1
            return 503
        self._inbox.put({"path": path, **json.loads(body)})
        return 200


@contextmanager
def web_server() -> Iterator[Web]:
    """A server that takes what is posted."""
    (port,) = free_ports(1)
    web = Web(port)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(web.take(self.path, body))
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Mailbox:
    """What was mailed to the server; its own handler."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._inbox: queue.Queue[Mail] = queue.Queue()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd calls it so
        self._inbox.put(message_from_bytes(envelope.content, policy=default))
        return "250 taken"

    def next(self) -> Mail:
        """The next mail; waits for it."""
        return self._inbox.get(timeout=WAIT_S)


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    """A server that takes mail."""
    (port,) = free_ports(1)
    mailbox = Mailbox(port)
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()
