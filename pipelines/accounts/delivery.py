"""The way to MLflow: one background thread that makes all calls, so that a run never waits for them or fails by them.

The thread also pays the seconds that importing mlflow and creating a database take: not before `begin`, for they would
be the driver's own while it starts Ray. What it cannot deliver is kept, tried again, and named at the end. `close`
waits no longer than `LOCAL_CLOSE_S` or, for a server, `REMOTE_CLOSE_S`.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.redact import redacted

logger = logging.getLogger(__name__)

LOCAL_CLOSE_S = 60.0  # a first SQLite database takes 7 s on 2 cores, 12 s with the import
REMOTE_CLOSE_S = 10.0  # after mlflow is imported
_REQUEST_S = "3"  # of one HTTP request
_RETRY_S = 15.0  # between two attempts while the server is down
_BACKLOG = 2000  # entries that wait; a metric point each few seconds makes some hours

PARENT = "mlflow.parentRunId"  # MLflow's own tag

Send = Callable[[Any, str], None]  # MlflowClient, MLflow's run id


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """Where MLflow has the run, told after the end."""

    uri: str  # without credentials
    experiment_id: str | None  # None: MLflow has not even the run
    run_id: str | None
    not_logged: tuple[str, ...]  # in words; empty: all is there
    reason: str | None  # why not


class Delivery:
    """The background thread, and what waits for it. Each entry is sent until it has arrived, or the run has ended."""

    def __init__(
        self, uri: str, *, experiment: str, name: str, tags: Mapping[str, str], multirun: str | None = None
    ) -> None:
        """`multirun`: the run is nested below one of this name, which the first of its runs makes."""
        self._uri, self._experiment, self._name, self._tags = uri, experiment, name, dict(tags)
        self._multirun = multirun
        self._started_ms = int(time.time() * 1000)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, Send]] = deque()
        self._dropped = 0
        self._closing = False
        self._error: str | None = None
        self._imported = threading.Event()
        self._client: Any = None
        self._experiment_id: str | None = None
        self._run_id: str | None = None
        _prepare(uri)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def begin(self) -> None:
        """Send what waits and what comes. Called once or more; `close` does it too."""
        if self._thread.ident is None:
            self._thread.start()

    def add(self, what: str, send: Send) -> None:
        """Have this sent. With the backlog full, metrics give way first, the oldest before all."""
        with self._changed:
            if len(self._waiting) >= _BACKLOG:
                oldest = next((entry for entry in self._waiting if entry[0] == "metrics"), self._waiting[0])
                self._waiting.remove(oldest)
                self._dropped += 1
            self._waiting.append((what, send))
            self._changed.notify()

    def close(self) -> Tracked:
        """Send what is left, within the bound, and say what was not sent."""
        self.begin()
        with self._changed:
            self._closing = True
            self._changed.notify()
        local = self._uri.startswith(("sqlite:", "file:"))
        self._imported.wait(LOCAL_CLOSE_S)
        self._thread.join(LOCAL_CLOSE_S if local else REMOTE_CLOSE_S)
        with self._changed:
            names = [what for what, _ in self._waiting]
            points = names.count("metrics") + self._dropped
            missing = [f"{points} metric point{'s' * (points > 1)}"] if points else []
            missing += [what for what in names if what != "metrics"]
            reason = self._error or ("no answer in time" if missing else None)
        if missing:
            logger.warning("MLflow at %s: not logged: %s (%s)", redacted(self._uri), ", ".join(missing), reason)
        return Tracked(
            uri=redacted(self._uri),
            experiment_id=self._experiment_id,
            run_id=self._run_id,
            not_logged=tuple(missing),
            reason=reason if missing else None,
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                closing = self._closing
            arrived = self._deliver()
            if closing and (arrived or not self._deliver()):
                return  # all is there, or a second attempt failed as well
            if not arrived:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, _RETRY_S)

    def _deliver(self) -> bool:
        """Send what waits, in order; True once nothing does. An entry that is refused does not hold up the others."""
        refused = 0
        with self._changed:
            left = len(self._waiting)
        for _ in range(left):
            with self._changed:
                entry = self._waiting[0]
            if self._sent(entry[1]):
                refused = 0
            else:
                refused += 1
            with self._changed:
                if entry in self._waiting:  # not dropped meanwhile
                    self._waiting.remove(entry)
                    if refused:
                        self._waiting.append(entry)
            if refused == 2 or self._run_id is None:
                return False  # it is the server, not the entry
        with self._changed:
            return not self._waiting

    def _sent(self, send: Send) -> bool:
        try:
            send(*self._connected())
        except Exception as error:  # noqa: BLE001 - whatever MLflow, its store or its server does, the run goes on
            told, self._error = self._error, _first_line(error)
            if told is None:
                logger.warning(
                    "MLflow at %s does not take the run, which goes on: %s", redacted(self._uri), self._error
                )
            return False
        finally:
            self._imported.set()
        return True

    def _connected(self) -> tuple[Any, str]:
        from mlflow.tracking import MlflowClient

        self._imported.set()
        if self._run_id is None:
            self._client = self._client or MlflowClient(tracking_uri=self._uri)
            found = self._client.get_experiment_by_name(self._experiment)
            self._experiment_id = (
                found.experiment_id
                if found
                else self._client.create_experiment(self._experiment, artifact_location=_artifacts(self._uri))
            )
            if self._multirun is not None:
                self._tags[PARENT] = self._parent(self._multirun)
            run = self._client.create_run(
                self._experiment_id, start_time=self._started_ms, run_name=self._name, tags=self._tags
            )
            self._run_id = run.info.run_id
        return self._client, self._run_id

    def _parent(self, multirun: str) -> str:
        tags = {"pipelines.multirun": multirun, "pipelines.kind": "multirun"}
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([self._experiment_id], wanted, max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = self._client.create_run(
            self._experiment_id, start_time=self._started_ms, run_name=f"multirun {multirun}", tags=tags
        )
        return str(run.info.run_id)


def end(client: Any, run: str, status: str) -> None:
    """The run has ended; with it, for now, the one that it is nested below, which has failed if any of its has."""
    client.set_terminated(run, status)
    told = client.get_run(run)
    parent = told.data.tags.get(PARENT)
    if parent is not None:
        nested = client.search_runs([told.info.experiment_id], f"tags.`{PARENT}` = '{parent}'")
        states = {one.info.status for one in nested}
        client.set_terminated(parent, next((one for one in ("FAILED", "KILLED") if one in states), "FINISHED"))


def _prepare(uri: str) -> None:
    """The environment that mlflow reads, and the folder of a SQLite file."""
    os.environ |= {
        "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_CONFIGURE_LOGGING": "false",  # its messages go where ours go
    }
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _REQUEST_S)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # who names a folder wants it
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite:/// URI."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def _artifacts(uri: str) -> str | None:
    # Left to itself, mlflow puts the artifacts of a SQLite store into ./mlruns.
    path = sqlite_path(uri)
    return None if path is None else (path.parent / "mlartifacts").resolve().as_uri()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return redacted(f"{type(error).__name__}: {lines[0]}")[:300]
