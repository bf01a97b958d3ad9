"""Channels: the way from an alert to people, by `apprise`. A run never waits for it and never fails by it.

Each channel has a thread of its own, so that a dead one holds up no other. What it cannot deliver is kept, tried again,
said once while the run goes on, and named at its end. `close` waits no longer than CLOSE_S for all of them together.
The URL of a channel is a secret: it is read from the environment, given to apprise, and taken out of whatever
apprise says about it.
"""

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from pipelines.accounts.summary import printable
from pipelines.config import UserError
from pipelines.redact import HIDDEN, redacted

CLOSE_S = 10.0  # at the end of a run
RETRY_S = 15.0  # between two attempts
_BACKLOG = 100  # messages that wait for one channel; beyond that the oldest goes
_HEADER = 200  # characters
_SECRET_PIECE = 4  # characters: shorter pieces of a URL are words like `to`, and hiding them would garble the text
_UNUSABLE = "no URL that apprise can use"  # which part of it is wrong is not said, for all of it may be secret

Tone = Literal["info", "warning", "failure", "success"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What people get."""

    title: str
    body: str
    tone: Tone


class Channel:
    """One way to people. Not opened until it is used: importing apprise takes a second."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url
        self._plugin: Any = None

    def send(self, message: Message) -> str | None:
        """Deliver it now, in seconds: apprise bounds each connection. None: delivered; else why not."""
        try:
            with _heard() as said:
                plugin = self._opened()
                if plugin is None:
                    return _UNUSABLE
                done = plugin.notify(
                    title=message.title[:_HEADER], body=message.body, notify_type=message.tone, body_format="text"
                )
        except Exception as error:  # noqa: BLE001 - whatever a plugin or its server does, the run goes on
            return self._clean(f"{type(error).__name__}: {error}")
        return None if done else self._clean(said[-1] if said else "not delivered")

    def usable(self) -> bool:
        """Whether the URL is one that apprise can use, as far as it tells without a connection."""
        with _heard():
            return self._opened() is not None

    def _opened(self) -> Any:
        if self._plugin is None:
            import apprise

            # In memory: nothing of a channel lies on the disk. No redirects: they would carry credentials elsewhere.
            asset = apprise.AppriseAsset(
                storage_mode="memory",
                app_id="pipelines",
                app_desc="batch inference",
                app_url="",
                image_url_logo="",
                http_redirects=False,
                pgp_autogen=False,
                pem_autogen=False,
            )
            self._plugin = apprise.Apprise.instantiate(self._url, asset=asset)
        return self._plugin

    def _clean(self, text: str) -> str:
        """One line without any piece of the URL."""
        return without_url(printable(text), self._url)[:_HEADER]


def without_url(text: str, url: str) -> str:
    """`text` without each piece of `url` that is long enough to be one, but for the scheme; and redacted."""
    rest = url.partition("://")[2]
    pieces = {piece for whole in (rest, unquote(rest)) for piece in re.split(r"[/:@?&=#,;\s]+", whole)}
    pieces |= {unquote(piece) for piece in pieces}
    pieces |= {word for piece in pieces for word in re.split(r"[^A-Za-z0-9]+", piece)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) >= _SECRET_PIECE:
            text = text.replace(piece, HIDDEN)
    return redacted(text)


def opened(channels: Mapping[str, str], env: Mapping[str, str] | None = None) -> dict[str, Channel]:
    """The channels of a config, with the URLs that the environment holds.

    Raises:
        UserError: a variable is not set, or holds what apprise cannot use.
    """
    found = {}
    for name, variable in channels.items():
        url = (os.environ if env is None else env).get(variable, "").strip()
        if not url:
            raise UserError(
                f"alerts.channels.{name} is to be found in {variable}, which is not set: set it to an apprise URL "
                "(docs/alerts.md), or leave the channel out"
            )
        found[name] = Channel(name, url)
        if not found[name].usable():
            raise UserError(f"alerts.channels.{name}: {variable} holds {_UNUSABLE}; docs/alerts.md shows some")
    return found


class Outbox:
    """What is on its way, by channel."""

    def __init__(
        self, channels: Mapping[str, Channel], *, say: Callable[[str], None], retry_s: float = RETRY_S
    ) -> None:
        self._queues = {name: _Queue(channel, say, retry_s) for name, channel in channels.items()}

    def post(self, message: Message, to: tuple[str, ...]) -> None:
        """Have it sent to these channels. Does not wait."""
        for name in to:
            self._queues[name].post(message)

    def close(self, within_s: float = CLOSE_S) -> list[str]:
        """Send what is left, within the bound; one line for each channel that did not take all of it."""
        until = time.monotonic() + within_s
        for queue in self._queues.values():
            queue.last_call()
        return [line for queue in self._queues.values() if (line := queue.close(max(0.0, until - time.monotonic())))]


class _Queue:
    """One channel's messages, and the thread that sends them. The thread starts with the first."""

    def __init__(self, channel: Channel, say: Callable[[str], None], retry_s: float) -> None:
        self._channel, self._say, self._retry_s = channel, say, retry_s
        self._changed = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._dropped = 0
        self._closing = False
        self._reason: str | None = None  # why the last attempt failed
        self._thread: threading.Thread | None = None

    def post(self, message: Message) -> None:
        with self._changed:
            if len(self._waiting) >= _BACKLOG:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(message)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"alerts to {self._channel.name}", daemon=True)
                self._thread.start()

    def last_call(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self, within_s: float) -> str | None:
        if self._thread is not None:
            self._thread.join(within_s)
        with self._changed:
            left = [message.title for message in self._waiting]
        if not left and not self._dropped:
            return None
        count = len(left) + self._dropped
        told = "; ".join(left[:3]) + ("; …" if count > 3 else "")
        reason = self._reason or "no answer in time"
        return f"channel {self._channel.name}: {count} not delivered ({reason}): {told}"

    def _work(self) -> None:
        told = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                message, last = self._waiting[0], self._closing
            reason = self._channel.send(message)
            with self._changed:
                self._reason = reason
                if reason is None:
                    if self._waiting and self._waiting[0] is message:  # not dropped meanwhile
                        self._waiting.popleft()
                    continue
            if not told:
                self._say(f"alerts: channel {self._channel.name} does not deliver ({reason}); the run goes on")
                told = True
            if last:
                return  # an attempt that began after the last call has failed: there is no time for another
            with self._changed:
                self._changed.wait_for(lambda: self._closing, self._retry_s)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """While inside, what apprise says in this thread, warnings and worse; none of it goes anywhere else."""
    apprise_logger = logging.getLogger("apprise")
    apprise_logger.propagate = False  # it may name hosts and paths of a secret URL
    handler = _Heard(threading.get_ident())
    apprise_logger.addHandler(handler)
    try:
        yield handler.said
    finally:
        apprise_logger.removeHandler(handler)
        if not apprise_logger.handlers:
            apprise_logger.addHandler(logging.NullHandler())  # else Python prints what nobody handles


class _Heard(logging.Handler):
    def __init__(self, thread: int) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self._thread = thread

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.said.append(record.getMessage())
