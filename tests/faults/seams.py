"""Seams: the steps at which a run can be made to fail, wrapped from outside. Product code knows nothing of it.

A process with FAULTS in its environment (a folder) looks there for `plan.json` at each step that it takes or has taken.
Steps are counted over all processes of the folder, so that a fault strikes once, whoever comes to it.
"""

import errno
import functools
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

VARIABLE = "FAULTS"
WHO = "FAULTS_WHO"  # which of two drivers this is
PLAN, FIRED, ASKED, TWEAKS = "plan.json", "fired", "asked", "tweaks.json"

LINGER_S = 3.0  # long enough for the campaign to see that a step is taken, and to strike elsewhere

When = Literal["before", "amid", "after"]
Deed = Literal["kill", "stop", "term", "interrupt", "enospc", "eio", "bug", "clock ahead", "clock back", "linger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens at a step."""

    step: str
    when: When = "before"
    nth: int = 1  # time that the step is taken
    do: Deed = "kill"
    who: str = ""  # only in the driver of this name; empty: in any process


def arm(folder: Path, *faults: Fault) -> None:
    """From now on these faults are to happen, and no others. Counts begin anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("step *"):
        old.unlink()
    (folder / FIRED).unlink(missing_ok=True)
    aside = folder / f"{PLAN}.new"
    aside.write_text(json.dumps([asdict(fault) for fault in faults]))
    aside.replace(folder / PLAN)


def fired(folder: Path) -> list[str]:
    """The faults that have happened, in words."""
    path = folder / FIRED
    return path.read_text().splitlines() if path.exists() else []


def asked(folder: Path) -> list[str]:
    """The key of every prompt that a simulated engine was asked, as often as it was."""
    path = folder / ASKED
    return path.read_text().splitlines() if path.exists() else []


_sign_of_life = threading.Lock()  # held while one is stored


def point(step: str, when: When) -> None:
    """The process is at this step."""
    folder = Path(os.environ[VARIABLE])
    try:
        plan = json.loads((folder / PLAN).read_text())
    except FileNotFoundError:
        return
    for fault in (Fault(**each) for each in plan):
        if (fault.step, fault.when) != (step, when) or fault.who not in ("", os.environ.get(WHO, "")):
            continue
        if _appended(folder / f"step {step} {when}", "x") == fault.nth:
            # One that is on its way would be stored after the campaign had made all forget a process that sleeps.
            with _sign_of_life if fault.do == "stop" else nullcontext():
                _appended(folder / FIRED, f"{fault.do} {when} {step} number {fault.nth}\n")
                _strike(fault)


def _appended(path: Path, text: str) -> int:
    """The size of the file after `text` was appended to it: a count that all processes share."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, text.encode())
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    finally:
        os.close(descriptor)


def _strike(fault: Fault) -> None:
    signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
    if fault.do in signals:
        os.kill(os.getpid(), signals[fault.do])
    elif fault.do == "linger":
        time.sleep(LINGER_S)
    elif fault.do in ("clock ahead", "clock back"):
        _jump(3600.0 if fault.do == "clock ahead" else -3600.0)
    elif fault.do == "bug":
        raise RuntimeError("a bug, made by the campaign")
    else:
        number = {"enospc": errno.ENOSPC, "eio": errno.EIO}[fault.do]
        raise OSError(number, os.strerror(number))


def tweak(changes: Mapping[str, Any]) -> None:
    """Give constants of the code other values: "module:NAME", or "module:Class.method.argument" for its default."""
    for name, value in changes.items():
        module, _, path = name.partition(":")
        owner = importlib.import_module(module)
        *way, last = path.split(".")
        for step in way:
            owner = getattr(owner, step)
        if way:
            defaults = getattr(owner, "__kwdefaults__")  # noqa: B009
            assert last in defaults, name
            defaults[last] = value
        else:
            assert hasattr(owner, last), name
            setattr(owner, last, value)


def tweak_as_told() -> None:
    """The tweaks that lie with the plan: for Ray's workers, which are told nothing else."""
    path = Path(os.environ[VARIABLE]) / TWEAKS
    if path.exists():
        tweak(json.loads(path.read_text()))


def _jump(seconds: float) -> None:
    """Python's clock of this process. delta-rs has the system's, which only root may turn, for everybody."""
    now = time.time
    time.time = lambda: now() + seconds


# ------------------------------------------------------------------------------------------------ where the steps are


def install() -> None:
    """Wrap the seams of this process."""
    from pipelines import flow_stages, storage
    from pipelines.sink import aside, fenced, ledger, output, tables
    from pipelines.stages import write

    _wrap(storage, "put", lambda uri, *_, **__: f"put {_kind(uri)}")
    _wrap(storage, "copy", lambda _, target, **__: f"copy {_kind(target)}")
    _wrap(storage, "delete", lambda uri, *_, **__: f"delete {_kind(uri)}")
    _wrap(os, "fsync", lambda *_: "fsync")
    _wrap(flow_stages, "prepare", lambda *_, **__: "prepare")
    _wrap(write, "encode", lambda *words, **more: "encode")
    storage.delete_all = _in_two(storage.delete_all)  # type: ignore[assignment]
    _wrap(fenced.FencedTable, "_write", lambda table, *_, **__: _commit(table))
    fenced.FencedTable.create = classmethod(  # type: ignore[assignment,method-assign]
        _around(fenced.FencedTable.create.__func__, lambda cls, uri, *_, **__: f"create {uri.rpartition('/')[2]}")  # type: ignore[attr-defined]
    )
    _during(fenced.FencedTable, "begin", "begin")
    _during(ledger.Ledger, "compact", "compact")
    for module, name in (
        (output, "follow"),
        (output, "take_over"),
        (output, "clean"),
        (output, "set_aside"),
        (tables, "bring_back"),
        (ledger.Ledger, "compact"),
        (output.Output, "remove"),
        (output.Output, "close"),
    ):
        _wrap(module, name, lambda *words, _name=name, **more: _name)
    _wrap(aside, "_move", lambda *_: "move")
    install_in_engine()


def install_in_engine() -> None:
    """Wrap the seam of this process's engine, once."""
    from actors import simulated

    if not getattr(simulated.SimulatedEngine.answer, "counted", False):
        _count_asked(simulated.SimulatedEngine)


_doing = ["commit"]  # what the commits of this process's main thread are for


def doing() -> str:
    """What the commits of this moment are for: begin, commit or compact."""
    return _doing[-1]


def _commit(table: Any) -> str:
    return f"{_doing[-1]} {table.uri.rpartition('/')[2]}"


def _during(owner: Any, name: str, words: str) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        _doing.append(words)
        try:
            return function(*args, **kwargs)
        finally:
            _doing.pop()

    setattr(owner, name, inside)


def _kind(uri: str) -> str:
    for part, kind in (
        ("/_waiting/", "waiting"),
        ("/alive.json", "alive"),
        ("/live.json", "alive"),
        ("/.probe", "probe"),
        ("/runs/", "manifest"),
        ("/data/", "data"),
        ("/errors/", "errors"),
    ):
        if part in uri:
            return kind
    return "other"


def _wrap(owner: Any, name: str, step: Callable[..., str]) -> None:
    setattr(owner, name, _around(getattr(owner, name), step))


def _around(function: Callable[..., Any], step: Callable[..., str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        name = step(*args, **kwargs)
        point(name, "before")
        with _sign_of_life if name == "put alive" else nullcontext():
            result = function(*args, **kwargs)
        point(name, "after")
        return result

    return around


def _in_two(delete_all: Callable[[Any], None]) -> Callable[[Any], None]:
    def in_two(uris: Any) -> None:
        if not uris:
            return
        point("delete all", "before")
        half = (len(uris) + 1) // 2
        delete_all(uris[:half])
        point("delete all", "amid")
        delete_all(uris[half:])
        point("delete all", "after")

    return in_two


def _count_asked(engine: Any) -> None:
    answer = engine.answer

    async def counted(self: Any, prompt: Any) -> Any:
        point("answer", "before")
        _appended(Path(os.environ[VARIABLE]) / ASKED, f"{prompt.key}\n")
        return await answer(self, prompt)

    counted.counted = True  # type: ignore[attr-defined]
    engine.answer = counted
