"""Messages of libraries and of our own go to a file that is named, so that nothing tears the progress apart.

Our own warnings are told on the terminal besides, as lines of the progress: printable, and without secrets.
"""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pipelines import storage
from pipelines.redact import redacted

_OURS = ("pipelines", "actors")
_RAYS = ("ray", "ray.data")
_LOGGERS = (*_RAYS, "mlflow", "alembic", "urllib3", "py.warnings", *_OURS)

KEPT_BYTES = 8 * 2**20  # of a log, from its end
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


_AsWas = tuple[logging.Logger, list[logging.Handler], bool, int]  # handlers, propagate, level


class _Redacted(logging.StreamHandler[TextIO]):
    # Here and not in a formatter, for ray.init puts its own formatter in every handler of its logger.
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _Told(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(redacted(record.getMessage()))


@contextmanager
def warnings_told(say: Callable[[str], None]) -> Iterator[None]:
    """While inside, what our own modules warn of goes to `say` as well, which has to make it printable.

    Left alone, Python would write it to the terminal as it is: a file's name may hold what a terminal obeys.
    """
    handler = _Told(say)
    loggers = [logging.getLogger(name) for name in _OURS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def keep(log_file: Path, uri: str) -> None:
    """Store the end of the log, without secrets: the machine that it lies on may be gone soon.

    A run does not fail for its log, whether that was taken away or the store takes none.
    """
    try:
        text = log_file.read_bytes()[-KEPT_BYTES:].decode(errors="replace")
    except OSError as error:
        logging.getLogger(__name__).warning("the log %s is gone: %s", log_file, error.strerror)
        return
    try:
        storage.put(uri, redacted(text).encode())
    except storage.StoreFailed as error:
        logging.getLogger(__name__).warning("the log stays in %s alone: %s", log_file, error)


def _log_of_nodes(data: Mapping[str, Any], **_: Any) -> None:
    for line in data["lines"]:
        logging.getLogger("ray").warning("%s: %s", data.get("pid"), line)


@contextmanager
def quiet_ray(log_file: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """While inside, what libraries say goes to `log_file`; gives what gives the keywords with which to call `ray.init`.

    Asked for them, it imports Ray and turns its messages as well. Not before: who finds nothing to do needs no Ray.

    Four ways lead to the terminal, and each is turned: Python's loggers and warnings, Ray Data's progress bars, what
    Ray's nodes tell every driver, which it prints (a warning in the midst of `format=json`), and file descriptor 2
    itself, to which Ray's C++ core writes without asking. `sys.stderr` still is the terminal.
    Workers' output, vLLM's included, stays in the files of Ray's session folder.
    """
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log = log_file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    handler = _Redacted(log)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.setLevel(logging.INFO)
    turned: list[_AsWas] = []
    undone: list[Callable[[], None]] = []

    def ray_options() -> dict[str, Any]:
        data = importlib.import_module("ray.data")  # which sets up its loggers
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        worker: Any = importlib.import_module("ray._private.worker")
        undone.append(partial(setattr, worker, "print_to_stdstream", worker.print_to_stdstream))
        worker.print_to_stdstream = _log_of_nodes
        turned.extend(_turned(_RAYS, handler))
        # Told not to configure its logging, Ray takes the handlers of its logger away.
        return {"log_to_driver": False, "logging_level": logging.INFO, "logging_format": _FORMAT}

    logging.captureWarnings(True)
    terminal, standard_error = os.dup(2), sys.stderr
    try:
        turned.extend(_turned(_LOGGERS, handler))
        with os.fdopen(os.dup(terminal), "w", encoding="utf-8", errors="backslashreplace", buffering=1) as console:
            if standard_error is sys.__stderr__:  # else somebody has turned it elsewhere already
                sys.stderr = console
            standard_error.flush()
            os.dup2(log.fileno(), 2)
            yield ray_options
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        sys.stderr = standard_error
        logging.captureWarnings(False)
        for undo in reversed(undone):
            undo()
        for logger, handlers, propagate, level in reversed(turned):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()
        log.close()


def _turned(names: Sequence[str], handler: logging.Handler) -> list[_AsWas]:
    """Let these loggers write to `handler` alone; how they were."""
    found = []
    for logger in map(logging.getLogger, names):
        found.append((logger, logger.handlers, logger.propagate, logger.level))
        # A StreamHandler proper is a console; Ray Data's file in the session folder is another kind and stays.
        logger.handlers = [each for each in logger.handlers if not isinstance(each, logging.StreamHandler)] + [handler]
        logger.propagate = False
        if logger.name in _OURS:  # else only warnings would come so far
            logger.setLevel(logging.INFO)
    return found
