"""Alive: a run at work renews <sink>/runs/<run id>/alive.json; a start that finds one so renewed is refused.

This spares people two runs that pay for the same rows. The guard of the output is not this but the fence
(fenced.py): two runs that begin at the same instant may both find nobody, and one of them is fenced off.
Whether a run on this machine is alive, its process tells. Of one elsewhere it is seen whether its beats go on, while
this machine's clock runs: no two machines' clocks are ever compared.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipelines import patience, storage
from pipelines.config import UserError

log = logging.getLogger(__name__)

BEAT_S = 5.0  # between two beats
WATCH_S = 4 * BEAT_S  # a run elsewhere that does not beat for so long is dead
LOOK_S = 1.0  # between two looks at a run that is watched
LEAVE_S = 10.0  # for a beat that is under way when a run ends
NAME = "alive.json"

_beating: set[str] = set()  # run ids of this very process


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A run's sign of life, as it lies in its file."""

    run: str
    host: str
    machine: str | None  # boot id and pid namespace: where `pid` means something; None: the system does not tell
    pid: int
    born: int | None  # clock ticks from the boot to the start of the process, for pids are used again
    beat: int  # counts up
    at: str  # of the last beat: UTC, ISO, by the clock of `host`

    @classmethod
    def of_this_process(cls, run: str) -> "Sign":
        """The first sign of a run in this process."""
        host, pid = socket.gethostname(), os.getpid()
        status = _process(pid)
        born = None if status is None else status[1]
        return cls(run=run, host=host, machine=_machine(), pid=pid, born=born, beat=0, at=_now())

    def to_json(self) -> bytes:
        """As bytes for its file."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Sign":
        """What `to_json` made; ValueError, KeyError or TypeError if it is something else."""
        found = cls(**json.loads(text))
        datetime.fromisoformat(found.at)
        return found


@contextmanager
def beating(sink_uri: str, run: str, *, every_s: float = BEAT_S) -> Iterator[None]:
    """While inside, the run is seen to be alive.

    A store that is away for a while ends nothing: the beats go on when it is back.

    Raises:
        StoreFailed: the first sign could not be stored.
    """
    uri, sign = _uri(sink_uri, run), Sign.of_this_process(run)
    storage.put(uri, sign.to_json())
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(uri, sign, every_s, over), name="alive", daemon=True)
    with known_here(run):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(LEAVE_S)
            _leave(uri, away=thread.is_alive())


@contextmanager
def known_here(run: str) -> Iterator[None]:
    """While inside, a sign of this process with this name is of one that is alive."""
    _beating.add(run)
    try:
        yield
    finally:
        _beating.discard(run)


def _leave(uri: str, *, away: bool) -> None:
    try:
        if away:
            raise storage.StoreFailed("the store does not answer")
        with patience.at_most(LEAVE_S):
            storage.delete(uri)
    except storage.StoreFailed as error:
        log.warning("%s stays; the next start sees that its run has ended (%s)", storage.shown(uri), error)


def _beat(uri: str, sign: Sign, every_s: float, over: threading.Event) -> None:
    away = False
    while not over.wait(every_s):
        sign = replace(sign, beat=sign.beat + 1, at=_now())
        try:
            storage.put(uri, sign.to_json())
        except storage.StoreFailed as error:
            if not away:  # once, not with every beat
                log.warning("no sign of life can be stored: %s", error)
            away = True
        else:
            away = False


def refuse_if_alive(
    sink_uri: str,
    *,
    doing: Callable[[str], None] = lambda words: None,
    watch_s: float = WATCH_S,
    look_s: float = LOOK_S,
) -> None:
    """Refuse to start while another run is at work on the output; take over from those that are dead.

    PREDECESSOR_WAIT_S in the environment, as pods have it, waits so long for its end first: a cluster that is replaced
    may still be draining.

    Raises:
        UserError: a run is alive; which, where, since when it was not heard of, and what to do.
    """
    until = time.monotonic() + float(os.environ.get("PREDECESSOR_WAIT_S", "0"))
    while True:
        try:
            return _refuse_if_alive(sink_uri, doing, watch_s=watch_s, look_s=look_s)
        except UserError:
            if time.monotonic() >= until:
                raise
        doing("waiting for the end of a run at work on the output")
        time.sleep(look_s)


def _refuse_if_alive(sink_uri: str, doing: Callable[[str], None], *, watch_s: float, look_s: float) -> None:
    elsewhere: dict[str, Sign] = {}
    for uri, sign in _signs(sink_uri):
        lives = lives_here(sign)
        if lives:
            raise UserError(_refusal(sink_uri, sign, age_s=_age_s(sign)))
        if lives is None:
            elsewhere[uri] = sign
        else:
            _take_over(uri, sign)
    if elsewhere:
        names = ", ".join(f"{sign.run} on {sign.host}" for sign in elsewhere.values())
        doing(f"watching for {watch_s:.0f} s whether {names} is alive")
        _watch(sink_uri, elsewhere, watch_s=watch_s, look_s=look_s)


def _watch(sink_uri: str, signs: dict[str, Sign], *, watch_s: float, look_s: float) -> None:
    """Of runs whose processes cannot be asked: one that beats is refused, one that does not is taken over."""
    until = time.monotonic() + watch_s
    looked = time.monotonic()
    while signs:
        for uri, first in list(signs.items()):
            now = _sign(uri)
            if now is None:  # it has ended while we looked
                del signs[uri]
            elif now.beat != first.beat:
                raise UserError(_refusal(sink_uri, now, age_s=time.monotonic() - looked))
        looked = time.monotonic()
        if looked >= until:
            break
        time.sleep(min(look_s, max(until - looked, 0)))
    for uri, sign in signs.items():
        _take_over(uri, sign)


def _take_over(uri: str, sign: Sign) -> None:
    log.warning("run %s (pid %d on %s) has died; its output is taken over", sign.run, sign.pid, sign.host)
    storage.delete(uri)


def _refusal(sink_uri: str, sign: Sign, *, age_s: float) -> str:
    status = _process(sign.pid) if sign.machine is not None and sign.machine == _machine() else None
    if status is not None and status[0] in "Tt":
        todo = f"it is stopped: kill -CONT {sign.pid} lets it go on, kill -KILL {sign.pid} ends it"
    else:
        todo = "wait for its end, or stop it (Ctrl-C or SIGTERM: it commits what is finished)"
    return (
        f"{storage.shown(sink_uri)}: run {sign.run} is at work on this output, pid {sign.pid} on host {sign.host}, "
        f"last heartbeat {age_s:.0f} s ago; {todo}, or choose another sink.uri"
    )


def dead(sink_uri: str, run: str) -> bool:
    """Whether it is certain that a run is not at work: its process is gone, or its sign was taken away."""
    sign = _sign(_uri(sink_uri, run))
    return sign is None or lives_here(sign) is False


def lives_here(sign: Sign) -> bool | None:
    """Whether the process of the run is alive; None: it cannot be asked from here."""
    if sign.machine is None or sign.machine != _machine():
        return None
    if sign.pid == os.getpid() and sign.born == _born(sign.pid):
        return sign.run in _beating  # else an earlier run of this process, whose sign could not be taken away
    status = _process(sign.pid)
    if status is None:
        return None if _hidden(sign.pid) else False
    # A zombie is dead. A stopped process (T) is alive: it goes on when it is told to.
    return status[1] == sign.born and status[0] not in "ZX"


def _hidden(pid: int) -> bool:
    """Whether the system shows /proc/<pid> to its owner only (hidepid) and there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False  # it began since we looked, so it is another one


def _signs(sink_uri: str) -> Iterator[tuple[str, Sign]]:
    for stored in storage.listing(storage.join(sink_uri, "runs"), missing_ok=True):
        if stored.path.endswith(f"/{NAME}") and stored.path.count("/") == 1:
            sign = _sign(stored.uri)
            if sign is not None:
                yield stored.uri, sign


def _sign(uri: str) -> Sign | None:
    """The sign at `uri`; None: it is gone, or no sign of ours."""
    try:
        return Sign.from_json(storage.get(uri))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is not understood (%s), and left alone", storage.shown(uri), type(error).__name__)
        return None


def _uri(sink_uri: str, run: str) -> str:
    return storage.join(sink_uri, "runs", run, NAME)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _age_s(sign: Sign) -> float:
    """Of a sign that was made on this machine, by its own clock."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(sign.at)).total_seconds())


def _machine() -> str | None:
    """Where a pid means something. Containers of one machine share its boot id, so the namespace belongs to it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _born(pid: int) -> int | None:
    status = _process(pid)
    return None if status is None else status[1]


def _process(pid: int) -> tuple[str, int] | None:
    """State (a letter) and start of a process (clock ticks after the boot); None: there is none, or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[19])
