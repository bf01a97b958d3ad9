"""What delta-rs says of a store that fails, and the waiting for one that is away."""

import itertools
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from deltalake.exceptions import DeltaError

from pipelines import patience, places, storage

log = logging.getLogger(__name__)

T = TypeVar("T")


def patiently(uri: str, do: Callable[[], T]) -> T:
    """`do`, which may be done again at any time, until it does not fail for want of the store."""
    with patience.waiting(storage.shown(uri)) as wait:
        for attempt in itertools.count(1):
            try:
                return do()
            except (DeltaError, OSError) as error:
                rest(uri, wait, attempt, error)
    raise AssertionError("unreachable")


def rest(uri: str, wait: patience.Wait, attempt: int, error: Exception, *, tries: int = 1) -> None:
    """Wait before the next attempt; StoreFailed if there should be none: the store answers, or patience is over."""
    wait.reason = _away(uri, error)
    pause = wait.pause(attempt)
    if not wait.reason:
        final = attempt >= tries or _os_error(error) is not None  # a full disk is full the next time, too
        pause = None if final else min(0.05 * 4**attempt, patience.PAUSE_MAX_S)
    if pause is None:
        raise storage.StoreFailed(reason(uri, error, wait)) from error
    log.warning("%s: attempt %d failed (%s)", uri, attempt, wait.reason or type(error).__name__)
    time.sleep(pause)


def _away(uri: str, error: Exception) -> str:
    """Why the store may do later what has failed; empty: it answers, or nobody knows.

    delta-rs tells it in words alone. Should these change, such errors have the few attempts of any other.
    """
    words = _words(error)
    if not storage.is_s3(uri) or "Generic S3 error" not in words:
        return ""
    status = re.search(r"status(?: code)?:? (\d{3})", words)
    if status is None:
        return "no connection" if "error sending request" in words else "no answer"
    return "" if status[1].startswith("4") and status[1] not in ("408", "429") else status[1]


def reason(uri: str, error: Exception, wait: patience.Wait | None = None) -> str:
    """One line: what is wrong, for how long it was waited, what to do."""
    where, words = storage.shown(uri), _words(error)
    away = _away(uri, error)
    if away:
        waited = "" if wait is None or wait.seconds() < 1 else f" for {wait.seconds():.0f} s"
        endpoint = re.search(r"https?://[^/\s]+", words)
        store = f"the store at {endpoint[0]}" if endpoint else "the store"
        return f"{where}: {store} does not answer{waited} ({away}); what is committed is safe, run it again later"
    return places.os_reason(where, _os_error(error), words[:400])


def _os_error(error: Exception) -> int | None:
    """The number of the file system's error behind one of delta-rs's."""
    found = re.search(r"\(os error (\d+)\)", _words(error))
    return None if found is None else int(found[1])


def _words(error: Exception) -> str:
    """delta-rs's report, which comes in colours and several lines."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).replace("↳", " ").split())
