"""A proxy before an S3 server that passes bytes on as they are, and notes each request with the bytes of its answer."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")
_ANSWER = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) ")  # 100 Continue is none
_CHUNK_BYTES = 2**18


@dataclass(slots=True)
class Request:
    """One request, and what came back."""

    words: str  # METHOD /bucket/key?query
    answered_at: float | None = None  # monotonic; None: not yet
    status: int | None = None
    bytes_back: int = 0  # headers included


@dataclass(slots=True)
class CountingProxy:
    """Where it listens, and what went through it so far."""

    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)

    def bytes_read(self, matching: str = "") -> int:
        """Bytes from the store to its clients, of requests whose words match."""
        return sum(request.bytes_back for request in self.requests if re.match(matching, request.words))

    def first_answer(self, matching: str, *, after: float = 0.0) -> float | None:
        """When the first such request succeeded (monotonic); None: none did."""
        times = (
            request.answered_at
            for request in self.requests
            if request.answered_at is not None
            and request.answered_at > after
            and request.status is not None
            and request.status < 300
            and re.match(matching, request.words)
        )
        return min(times, default=None)


@contextmanager
def counting_proxy(endpoint: str) -> Iterator[CountingProxy]:
    """A proxy before `endpoint`, in a thread of this process."""
    proxy, loop = CountingProxy(), asyncio.new_event_loop()
    upstream = urlsplit(endpoint)
    assert upstream.hostname and upstream.port

    open_ends: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection(upstream.hostname, upstream.port, limit=_CHUNK_BYTES)
        except OSError:
            writer.close()
            return
        connection = _Connection(proxy.requests)
        open_ends.update((writer, forth))
        with suppress(asyncio.CancelledError):  # the end; asyncio would tell of it for each connection
            await asyncio.gather(_pass(reader, forth, connection.asked), _pass(back, writer, connection.answered))
        open_ends.difference_update((writer, forth))

    async def listen() -> asyncio.Server:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=_CHUNK_BYTES)
        proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def end(server: asyncio.Server) -> None:
        server.close()
        closing = list(open_ends)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in closing:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in closing), return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, name="counting-proxy", daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Connection:
    """What one client asks, one request after the other: HTTP/1.1 as S3 clients speak it, without pipelining."""

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests
        self._now: Request | None = None
        self._asking = False  # the last bytes were the client's

    def asked(self, chunk: bytes) -> None:
        # Where bytes follow an answer, a request begins, unless they are the body after 100 Continue.
        if not self._asking and (head := _REQUEST.match(chunk)):
            self._now = Request(f"{head[1].decode()} {head[2].decode()}")
            self._requests.append(self._now)
        self._asking = True

    def answered(self, chunk: bytes) -> None:
        if self._now is None:
            return
        self._now.bytes_back += len(chunk)
        if self._asking and (head := _ANSWER.search(chunk)):
            self._now.status, self._now.answered_at = int(head[1]), time.monotonic()
        self._asking = False


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Callable[[bytes], None]) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            see(chunk)
            writer.write(chunk)
            await writer.drain()
    writer.close()
