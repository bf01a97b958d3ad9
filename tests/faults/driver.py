"""A process that makes drivers: it has imported the pipeline, and forks one for each order that it reads.

`python -m tests.faults.driver` reads orders from stdin, one JSON object a line, and tells on stdout the pid and, when
it has ended, the exit code of each. What a fork runs is what `python -m pipelines.run WORDS…`
runs, or `python -m pipelines.verify WORDS…`.
"""

import ctypes
import json
import os
import select
import signal
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


def log_name(number: int) -> str:
    """Where the driver of this number says what it does, in its working directory."""
    return f"driver-{number}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One driver."""

    number: int
    words: list[str]
    folder: str  # the working directory; stdout and stderr go into its `log_name`
    environment: dict[str, str] = field(default_factory=dict)
    threads: bool = True  # in the place of Ray
    commit_every_s: float = 0.1
    tweaks: dict[str, Any] = field(default_factory=dict)  # "module:NAME" to a value
    without: str = ""  # a safeguard that is taken out; see mutations.py
    verify: bool = False  # the command is pipelines.verify, and not pipelines.run

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    _warm_up()
    _die_with_parent()
    tell = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    running: dict[int, int] = {}
    print(json.dumps({"ready": True}), file=tell)
    text = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if 0 in ready:
            more = os.read(0, 2**16)
            if not more:
                break
            text += more
            *lines, text = text.split(b"\n")
            for line in lines:
                order = Order(**json.loads(line))
                pid = os.fork()
                if not pid:
                    tell.close()
                    _become(order)
                running[pid] = order.number
                print(json.dumps({"number": order.number, "pid": pid}), file=tell)
        if wake_read in ready:
            os.read(wake_read, 2**16)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                print(json.dumps({"number": running.pop(pid), "code": code}), file=tell)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _warm_up() -> None:
    """Import all that a driver will import: its forks have it then."""
    from ray.data import DataContext

    import pipelines.run
    import pipelines.sample
    import pipelines.verify
    import pipelines.work
    from pipelines.compose import compose

    assert pipelines.run
    assert pipelines.verify
    assert pipelines.sample
    assert pipelines.work
    compose(["+job=classify", "engine=simulated", "tracking=none", "source.uri=in", "sink.uri=out"])
    DataContext.get_current()


def _become(order: Order) -> None:
    """Be the driver, to its end."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _die_with_parent()
        os.chdir(order.folder)
        os.environ.update(order.environment)
        log = os.open(log_name(order.number), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from pipelines import run, verify, work
        from pipelines.cli import command, command_of_few_keys
        from tests.faults import mutations, seams, threads

        if order.verify:  # undisturbed, and with every safeguard
            command_of_few_keys(
                verify.verify, verify.VerifyConfig, doc="", keys=verify.KEYS, exits=verify.EXITS, argv=order.words
            )
        seams.install()
        if order.threads:
            threads.install()
        work.COMMIT_EVERY_S = order.commit_every_s
        seams.tweak(order.tweaks)
        if order.without:
            mutations.WITHOUT[order.without].take_out()
        command(run.run, doc="", argv=order.words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    except BaseException:  # noqa: BLE001 – as Python ends with a bug
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
