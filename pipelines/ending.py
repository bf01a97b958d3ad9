"""The end of a run, in order or cut short: what it did in one value, told to all who keep it.

A run that fails has answered and paid for rows as well: who looks at it in the morning finds figures, a report and the
reason beside the output, as of any other run.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from actors.gpu_monitor import GpuUsage
from pipelines import storage
from pipelines.accounts import manifest, quality_files, tracking
from pipelines.accounts.account import Account
from pipelines.accounts.alerts import Alerts
from pipelines.accounts.budget import Stop
from pipelines.accounts.progress import Progress
from pipelines.accounts.quality import Measures
from pipelines.accounts.reuse import Reuse
from pipelines.accounts.starvation import Starvation
from pipelines.accounts.summary import Gated, Speculated, Summary, Totals
from pipelines.accounts.texts import Look
from pipelines.cli import to_yaml
from pipelines.config import Exit, RunConfig, exit_of
from pipelines.job.template import compile_messages
from pipelines.machine import ceiling_of
from pipelines.preparation import Prepared
from pipelines.sink.output import Output
from pipelines.sink.receipt import Receipt
from pipelines.stages.measures import free_text

log = logging.getLogger(__name__)

_ERROR_CHARS = 2000  # of what an exception says: a library's may hold a whole document


@dataclass(slots=True)
class Course:
    """How a run went, as far as it went. None: not measured."""

    totals: Totals = field(default_factory=Totals)  # of this run
    measures: Measures = field(default_factory=Measures)  # of its answers
    serving_since: float | None = None  # monotonic; the first engine answers
    engine_start_s: float | None = None  # what that engine took
    first_commit: float | None = None  # monotonic
    last_receipt: float | None = None  # monotonic
    gpus: tuple[GpuUsage, ...] = ()
    worker_logs: str | None = None  # None: no Ray was needed
    book_full: bool = False  # of answers
    starvation: Starvation | None = None
    speculation: Speculated | None = None


@dataclass(slots=True, kw_only=True)
class Ending:
    """What the end of a run is made of, and who is told of it."""

    config: RunConfig
    prepared: Prepared
    run_id: str
    began: float  # monotonic
    log_file: Path
    output: Output
    account: Account
    course: Course
    progress: Progress
    tracker: tracking.Tracker
    alerts: Alerts
    evidence: manifest.Evidence
    report: str | None = None  # where it lies; None: not made
    _told: bool = False

    def look(self) -> Look:
        """The columns of answers in free text, and those that their prompts quote."""
        job = self.config.job
        template = compile_messages(job.messages, job=job.name, fields=job.fields)
        return Look(answers=free_text(self.prepared.contract), inputs=tuple(sorted(template.columns)))

    def in_order(self, exit_code: Exit, *, stopped_by: str | None, gate: Gated | None, shards_removed: int) -> Summary:
        """The run has come to its end, or was asked to stop and has."""
        receipts = self.output.view.current()
        summary = self._summary(
            exit_code,
            stopped_by=stopped_by,
            gate=gate,
            shards_removed=shards_removed,
            quality=quality_files.at_the_end(
                self.prepared.sink_uri,
                self.run_id,
                job=self.config.job.name,
                model=self.config.model.name,
                fingerprint=self.prepared.fingerprint.digest,
                measures=self.course.measures,
                current=receipts,
                columns=self.prepared.contract.schema.names,
                own=_committed_by(self.run_id, self.output),
                look=self.look(),
            ),
        )
        self._tell(summary)
        return summary

    @contextmanager
    def told_anyway(self, stop: Stop) -> Iterator[None]:
        """Inside is the work: whatever ends it before its end is told as well, and goes on its way."""
        try:
            yield
        except BaseException as error:
            if not self._told:
                self._cut_short(error, stop)
            raise

    def _cut_short(self, error: BaseException, stop: Stop) -> None:
        code = exit_of(error)
        words = f"{type(error).__name__}: {error}"[:_ERROR_CHARS]
        try:
            summary = self._summary(
                code,
                stopped_by=_cut_off(stop) if code is Exit.STOPPED else None,
                error=None if code is Exit.STOPPED else words,
            )
            self._tell(summary, keep=not isinstance(error, storage.StoreFailed))  # waited for once more, and in vain
        except Exception:
            # The first error is the one to tell: it goes on its way, and the exit code with it.
            log.warning("the end of run %s is not told in full", self.run_id, exc_info=True)
        if self.report is not None:
            self.progress.note(f"report: {storage.shown(self.report)}")

    def _summary(
        self,
        exit_code: Exit,
        *,
        stopped_by: str | None = None,
        error: str | None = None,
        gate: Gated | None = None,
        shards_removed: int = 0,
        quality: quality_files.Quality | None = None,
    ) -> Summary:
        course = self.course
        bill = self.account.bill(course.totals) if self.account.usd() else None
        steady_s = _between(course.serving_since, course.last_receipt)
        return Summary(
            run_id=self.run_id,
            job=self.config.job.name,
            model=self.config.model.name,
            exit_code=exit_code,
            stopped_by=stopped_by,
            error=error,
            gate=gate,
            totals=course.totals,
            output=Totals.of(self.output.view.current()),
            shards_removed=shards_removed,
            startup_s=_between(self.began, course.serving_since),
            engine_start_s=course.engine_start_s,
            first_commit_s=_between(self.began, course.first_commit),
            steady_s=steady_s,
            bill=bill,
            ceiling=ceiling_of(self.prepared, course.totals, steady_s, bill, course.starvation),
            reuse=_reuse(course),
            engines=self.account.engines_at_work(steady_s),
            speculation=course.speculation,
            quality=quality,
            gpus=course.gpus,
            sink_uri=self.config.sink.uri,
            log_file=str(self.log_file),
            worker_logs=course.worker_logs,
        )

    def _tell(self, summary: Summary, *, keep: bool = True) -> None:
        """Live view, MLflow, alerts; and, with `keep`, manifest and report beside the output."""
        self._told = True
        self.progress.live.finish(summary.exit_code)
        self.tracker.finish(summary)
        self.alerts.finish(summary)
        if not keep:
            return
        committed = _committed_by(self.run_id, self.output)
        self.evidence.finish(summary, finished_at=time.time(), current=self.output.view.current(), committed=committed)
        self.report = self._reported(committed)

    def _reported(self, committed: list[Receipt]) -> str | None:
        """The report beside the output, and in MLflow. None: it could not be made, and that was said."""
        # Not before: plots and price list take a second to import, for which no engine should wait.
        from pipelines.accounts import report

        self.progress.doing("making the report")
        sink_uri = self.prepared.sink_uri
        page = report.at_the_end(sink_uri, self.run_id, committed, tell=self.progress.note)
        if page is None:
            return None
        self.tracker.artifact(report.FILE, page)
        return storage.join(sink_uri, "runs", self.run_id, report.FILE)


def begun(
    config: RunConfig, prepared: Prepared, run_id: str, began_at: float
) -> "AbstractContextManager[manifest.Evidence]":
    """The run's folder with its manifest, for as long as the run lasts. `began_at`: seconds since the epoch."""
    return manifest.evidence(
        prepared.sink_uri,
        to_yaml(config),
        run_id=run_id,
        started_at=began_at,
        fingerprint=prepared.fingerprint,
        seed=config.seed,
        model=prepared.model,
        engine=prepared.engine,
        hardware=asdict(prepared.hardware) | {"cpu_flags": " ".join(sorted(prepared.hardware.cpu_flags))},
        inputs={shard.path: shard.identity for shard, _ in prepared.shards},
    )


def _committed_by(run_id: str, output: Output) -> list[Receipt]:
    """The run's own units that count, and those that it took over from a run that was killed."""
    taken_over = {receipt.attempt for receipt in output.taken_over}
    return [one for one in output.view.receipts() if one.run == run_id or one.attempt in taken_over]


def _cut_off(stop: Stop) -> str:
    left = stop.seconds_left()
    if stop.reason is None or left is None:
        return "Ctrl-C"
    return f"{stop.reason}, cut off {'at once' if left else 'when its grace was over'}"


def _reuse(course: Course) -> Reuse | None:
    share = course.totals.cache_hit_share
    seen = course.starvation.begun() if course.starvation else ()
    return Reuse.of(seen, delivered=None if share is None else float(share))


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
