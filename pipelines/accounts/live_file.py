"""The live file: <sink>/runs/<run id>/live.json, what a run at work knows of itself, for those who watch it elsewhere.

It is renewed by a thread of its own, each RENEW_S seconds and once when the run is over. A store that is away, or
refuses, costs the sign and nothing else.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines import patience, storage
from pipelines.accounts.live import Live
from pipelines.accounts.snapshot import Snapshot
from pipelines.config import RunFailed, UserError

logger = logging.getLogger(__name__)

FILE = "live.json"
RENEW_S = 5.0
STORE_S = 5.0  # for which a store that is away is waited for


@contextmanager
def kept(live: Live, sink_uri: str, run: str, *, every_s: float = RENEW_S) -> Iterator[None]:
    """While inside, the file says where the run stands; afterwards, how it ended."""
    over = threading.Event()
    keeper = _Keeper(live, storage.join(sink_uri, "runs", run, FILE))
    thread = threading.Thread(target=keeper.work, args=(over, every_s), name="live-file", daemon=True)
    thread.start()
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        live.over(error)
        over.set()
        thread.join(2 * STORE_S)  # a renewal that is under way, and the last one


class _Keeper:
    def __init__(self, live: Live, uri: str) -> None:
        self._live, self._uri = live, uri
        self._away = False

    def work(self, over: threading.Event, every_s: float) -> None:
        self._renew()
        while not over.wait(every_s):
            self._renew()
        self._renew()

    def _renew(self) -> None:
        try:
            with patience.at_most(STORE_S):
                storage.put(self._uri, self._live.snapshot().to_json())
        except (RunFailed, UserError, OSError) as error:
            if not self._away:  # once, not each time
                logger.warning("%s is not renewed: %s", storage.shown(self._uri), error)
            self._away = True
        else:
            self._away = False


def read(sink_uri: str, run: str) -> Snapshot | None:
    """What the run said last; None: it has left no such file.

    Raises:
        UserError: the file is not understood.
        StoreFailed: the store refused, or stayed away.
    """
    uri = storage.join(sink_uri, "runs", run, FILE)
    try:
        return Snapshot.from_json(storage.get(uri))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(
            f"{storage.shown(uri)} is not understood: it was made by another version, or is damaged"
        ) from None


def runs(sink_uri: str) -> list[str]:
    """The runs that have left such a file, the newest last."""
    listed = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    return sorted(
        each.path.split("/")[0] for each in listed if each.path.endswith(f"/{FILE}") and each.path.count("/") == 1
    )
