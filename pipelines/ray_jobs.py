"""Runs on a Ray that is up already, by its job API: submitted with this checkout's code, followed, stopped in order.

RAY_ADDRESS is the address of its dashboard, https://HOST or http://HOST:8265, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH
its token. The code travels as the job's working directory; packages, and what the environment says of stores, are
those of the nodes. Each job is marked with its output, by which it is found again.
"""

import asyncio
import logging
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import yaml

from pipelines import storage
from pipelines.config import Exit, RunFailed, UserError
from pipelines.config_folder import CONF
from pipelines.engine_choice import Hardware, detect
from pipelines.redact import redacted
from pipelines.submission import LogReader, Say, Submission, changed, exit_of

ROOT = CONF.parent
CODE = ("pipelines", "actors", "conf", "k8s/bin")
OWN = "mine"  # the user's own folder beside them
SINK = "batch_pipelines_sink"  # the mark of our jobs
LOOK_EVERY_S = 1.0
TIMEOUT_S = 30.0  # of one request
LOST_S = 120.0  # for which a job server may be away
SPARE_S = 30  # after the run's grace, for its last commit, before Ray kills it
LOCAL = ("127.0.0.1", "localhost", "::1")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Of Ray's client, which would tell of packages and sockets between our lines; each sets its own level.
_TALKERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
T = TypeVar("T")


class RayJobs:
    """One run, and the jobs of its output, on one Ray."""

    def __init__(self, asked: Submission) -> None:
        self._asked = asked
        self._sink = storage.shown(storage.absolute(asked.config.sink.uri))
        self._address = _address()
        self._client = self._opened()
        self._job: str | None = asked.name

    @property
    def where(self) -> str:
        return f"Ray at {self._address}"

    def hardware(self) -> Hardware:
        """Of a node with GPUs, if there is one; CPUs are taken to be like this machine's."""
        nodes = self._told(self._nodes)
        gpus = [node.get("gpus") or [] for node in nodes]
        most = max(gpus, key=len, default=[])
        if not most:
            return detect_cpu()
        return Hardware(device="gpu", gpu_name=most[0]["name"], gpus=len(most))

    def concerns(self) -> list[str]:
        found = []
        uri = self._asked.config.tracking.uri
        if uri is not None and ("://" not in uri or uri.startswith("sqlite:///")):
            found.append(f"tracking.uri={uri} lies on the head and goes with the job: say a server, or tracking=none")
        if self._address.startswith("http://") and _headers() and urlsplit(self._address).hostname not in LOCAL:
            found.append(f"the token travels to {self._address} in clear: use https, or a tunnel to 127.0.0.1")
        return found

    def rendered(self) -> str:
        document = {
            "address": self._address,
            "entrypoint": self._entrypoint(),
            "metadata": self._metadata(),
            "runtime_env": {"working_dir": self._contents(), "env_vars": self._env_vars()},
        }
        return str(yaml.safe_dump(document, sort_keys=False, width=120))

    def difference(self) -> list[str]:
        """Of the command line from that of this output's last job."""
        last = self._last()
        before = [] if last is None else shlex.split(last.entrypoint)
        return changed("\n".join(before), "\n".join(shlex.split(self._entrypoint())))

    def submit(self, say: Say) -> None:
        last = self._last()
        if last is not None and last.status not in ENDED:
            raise UserError(
                f"job {last.submission_id} is at work on {self._sink} ({last.status}): follow it by action=logs, or "
                "stop it by action=stop"
            )
        name = self._asked.name or f"{self._asked.config.job.name}-{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}"
        name = name if self._asked.name else f"{name}-{secrets.token_hex(2)}"
        with tempfile.TemporaryDirectory() as folder:
            self._copy_code(Path(folder))
            self._job = self._told(
                lambda: self._client.submit_job(
                    entrypoint=self._entrypoint(),
                    submission_id=name,
                    runtime_env={"working_dir": folder, "env_vars": self._env_vars()},
                    metadata=self._metadata(),
                )
            )
        say(f"submitted as job {self._job}")

    def follow(self, say: Say) -> Exit:
        from aiohttp import ClientError  # Ray's client has it; a run has no need of it

        job, log = self._known(), LogReader(say)
        lost_since: float | None = None
        while True:
            log.anew()
            try:
                asyncio.run(self._tail(job, log))
                info = self._client.get_job_info(job)
            except (OSError, RuntimeError, ClientError) as error:  # OSError: requests' and sockets'
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_S:
                    raise RunFailed(
                        f"{self.where} has not answered for {LOST_S:.0f} s ({type(error).__name__}); the run may be at "
                        "work: ask again with action=status"
                    ) from error
            else:
                lost_since = None
                if info.status in ENDED:
                    break
            time.sleep(LOOK_EVERY_S)
        log.close()
        return _exit(info, log.exit_code, say)

    def status(self) -> list[tuple[str, str]]:
        info = self._told(lambda: self._client.get_job_info(self._known()))
        found = [("job", str(info.submission_id)), ("status", str(info.status.value))]
        for label, at in (("began", info.start_time), ("ended", info.end_time)):
            if at:
                found.append((label, time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at / 1000))))
        if info.driver_exit_code is not None:
            found.append(("exit code", str(info.driver_exit_code)))
        return [*found, ("command", info.entrypoint)]

    def logs(self, say: Say) -> None:
        log = LogReader(say)
        log.feed(self._told(lambda: self._client.get_job_logs(self._known())))
        log.close()

    def stop(self, say: Say) -> Exit:
        job = self._known()
        if not self._told(lambda: self._client.stop_job(job)):
            say(f"job {job} has ended already")
        return self.follow(say)

    # ------------------------------------------------------------------------------------------------- what is sent

    def _entrypoint(self) -> str:
        return shlex.join(self._asked.command("k8s/bin/entrypoint.py", OWN))

    def _metadata(self) -> dict[str, str]:
        return {SINK: self._sink, "batch_pipelines_job": self._asked.config.job.name}

    def _env_vars(self) -> dict[str, str]:
        """Of the job: what Ray itself must know of it, and nothing of this machine."""
        return {
            "RAY_JOB_STOP_WAIT_TIME_S": str(round(self._asked.config.grace_s) + SPARE_S),  # it would be 3 s
            "RUN_PID_FILE": "run.pid",  # jobs of one node have one /tmp
        }

    def _contents(self) -> list[str]:
        return [*CODE, *(f"{OWN}/{path}" for path in self._asked.files)]

    def _copy_code(self, folder: Path) -> None:
        for name in CODE:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path, text in self._asked.files.items():
            file = folder / OWN / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")

    # ------------------------------------------------------------------------------------------------- what is there

    def _opened(self) -> Any:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise UserError(f"cluster=ray needs aiohttp and requests ({error}): install the extra cluster") from None
        for name in _TALKERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        return self._told(lambda: JobSubmissionClient(self._address, headers=_headers()))

    def _told(self, ask: Callable[[], T]) -> T:
        """What the job server says; its refusals in words."""
        from ray.exceptions import AuthenticationError

        try:
            return ask()
        except AuthenticationError as error:
            said = "wants a token" if "401" in str(error) or "required" in str(error) else "refuses the token"
            raise UserError(f"{self.where} {said}: export RAY_AUTH_TOKEN=…, or RAY_AUTH_TOKEN_PATH=FILE") from None
        except (ConnectionError, requests.RequestException) as error:
            raise UserError(f"{self.where} does not answer ({type(error).__name__}): check RAY_ADDRESS") from None
        except RuntimeError as error:  # no such job, a name that is taken
            first = str(error).strip().splitlines()[0]
            raise UserError(f"{self.where}: {first}") from None

    def _nodes(self) -> list[dict[str, Any]]:
        """As the dashboard lists them."""
        url = f"{self._address}/nodes"
        answer = requests.get(url, params={"view": "summary"}, headers=_headers(), timeout=TIMEOUT_S)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["summary"]
        return found

    def _last(self) -> Any:
        """The newest job on this output; None: there is none."""
        jobs = self._told(self._client.list_jobs)
        ours = [job for job in jobs if job.submission_id and (job.metadata or {}).get(SINK) == self._sink]
        return max(ours, key=lambda job: job.start_time or 0, default=None)

    def _known(self) -> str:
        """The job that is meant: by its name, or else the newest on this output."""
        if self._job is None:
            last = self._last()
            if last is None:
                raise UserError(f"{self.where} knows no job on {self._sink}: say name=JOB, as `ray job list` has it")
            self._job = str(last.submission_id)
        return self._job

    async def _tail(self, job: str, log: LogReader) -> None:
        async for piece in self._client.tail_job_logs(job):
            log.feed(piece)


def detect_cpu() -> Hardware:
    """Nodes without GPUs do not say what their CPUs can: taken to be like this machine's."""
    here = detect()
    return Hardware(device="cpu", cpu_flags=here.cpu_flags, cores=here.cores)


def _address() -> str:
    said = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not said:
        raise UserError(
            "cluster=ray: export RAY_ADDRESS, the address of its dashboard, such as https://ray.example.org"
        )
    parts = urlsplit(said)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"RAY_ADDRESS={redacted(said)} is no address of a job API: say that of the dashboard, http://HOST:8265 or https://HOST"
        )
    if parts.username is not None:
        raise UserError("RAY_ADDRESS holds a user or password: export RAY_AUTH_TOKEN instead")
    return said.rstrip("/")


def _headers() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = Path(path).read_text("utf-8").strip()
        except OSError as error:
            raise UserError(f"RAY_AUTH_TOKEN_PATH={path} cannot be read: {error.strerror}") from None
    return {"Authorization": f"Bearer {token}"} if token else {}


def _exit(info: Any, told: int | None, say: Say) -> Exit:
    """How the run ended: by its own last line, else by what Ray knows."""
    if told is not None:
        return exit_of(told)
    if info.driver_exit_code is not None:
        return exit_of(info.driver_exit_code)
    if info.status == "STOPPED":
        say("the job was killed before its run had ended: what is committed is safe, and the same command goes on")
        return Exit.STOPPED
    first = (info.message or "").strip().splitlines()
    raise RunFailed(f"job {info.submission_id} failed before its run began: {first[0] if first else info.status}")
