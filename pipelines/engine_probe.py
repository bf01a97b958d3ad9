"""A probe: one engine is started as a run would start it, answers rows of the plan's sample for some seconds, and goes.

The rows go the way of any run, from read to write, into a scratch that is removed: what readers and writers take from
the engine is in what is measured. To import this takes Ray.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from actors.control import Switch
from pipelines import dataflow
from pipelines.accounts.probed import Answered, Host, Probed, Reading, steady
from pipelines.accounts.summary import Totals
from pipelines.cluster import flow, started_ray
from pipelines.config import RunConfig, RunFailed
from pipelines.flow_sizes import WAITING_TOO
from pipelines.preparation import Prepared, open_output, survey
from pipelines.sample import over_sample, put_sample, scratch
from pipelines.sink.receipt import Receipt


def probe(
    config: RunConfig,
    prepared: Prepared,
    rows: pa.Table,
    seconds: float,
    ray_options: Callable[[], Mapping[str, Any]],
    doing: Callable[[str], None],
) -> Probed:
    """Have one engine answer `rows` for `seconds`, or until it has, and then what of them it has begun.

    `ray_options`: from `quiet_ray`.

    Raises:
        UserError: the config cannot be run here.
        RunFailed: Ray or the engine did not start, a stage could not go on, or nothing was answered.
    """
    with scratch(prepared.sink_uri, config, name="probe") as folder:
        put_sample(rows, folder)
        asked = _config(config, prepared, over_sample(config, prepared.sink_uri, folder), seconds)
        began = time.monotonic()
        doing("probe: starting Ray and the engine")
        with started_ray(asked, ray_options):
            ready = survey(asked, hardware=lambda: prepared.hardware, doing=lambda _: None)
            course = _answered(asked, ready, seconds, doing)
    devices = ready.engine.devices if ready.engine.device == "gpu" else 1
    return course.probed(seconds, began=began, devices=devices, grace_s=asked.grace_s)


def _config(config: RunConfig, prepared: Prepared, over: RunConfig, seconds: float) -> RunConfig:
    """What the probe runs: units so small that few rows are begun when its time is over, for they are finished."""
    job = config.job
    if prepared.fields and config.prompt.field_order != "rows":
        job = replace(job, fields=prepared.fields.fields)
    window = prepared.engine.max_num_seqs * (1 + config.batching.lookahead)
    begun = math.ceil(window * WAITING_TOO / config.engine.units_in_flight)
    return replace(
        over,
        job=job,
        unit=replace(config.unit, rows=min(config.unit.rows, max(1, begun))),
        ordering="window" if config.ordering == "corpus" else config.ordering,
        grace_s=min(config.grace_s, seconds),
    )


@dataclass(slots=True)
class _Course:
    """How a probe goes. Moments are monotonic; None: not yet."""

    held_since: float
    serving_since: float | None = None
    ended: float | None = None
    asked_since: float | None = None  # the first row is in the engine
    drained: float | None = None
    readings: list[Reading] = field(default_factory=list)  # while rows are admitted
    last: Reading | None = None
    receipts: list[Receipt] = field(default_factory=list)

    def see(self, hosts: Collection[Host], now: float) -> None:
        """What hosts report at this moment."""
        reading = Reading.of(hosts)
        if reading is None:
            return
        self.serving_since = self.serving_since or now
        self.last = reading
        if reading.in_flight or reading.ended.rows:
            self.asked_since = self.asked_since or now
        admitting = self.drained is None
        if admitting and (not self.readings or reading.ended.seconds > self.readings[-1].ended.seconds):
            self.readings.append(reading)

    def probed(self, seconds: float, *, began: float, devices: int, grace_s: float) -> Probed:
        """What it found.

        Raises:
            RunFailed: nothing was answered.
        """
        unanswered = RunFailed(f"plan.probe_s={seconds:g}: the engine answered no row in that time; give it more")
        last = self.last
        if last is None or self.serving_since is None or self.ended is None:
            raise unanswered
        cut = self.drained is not None and self.ended - self.drained >= grace_s
        # The last report is up to a second older than the last answer; where all begun rows ended, receipts tell all.
        told = _told(self.receipts) if not cut and self.receipts else replace(last.ended, seconds=last.busy_s)
        if not told.rows:
            raise unanswered
        return Probed(
            asked_s=seconds,
            startup_s=self.serving_since - began,
            held_s=(self.ended - self.held_since) * devices,
            devices=devices,
            whole=replace(told, seconds=told.seconds / devices / last.engines),
            cut=cut,
            steady=steady(self.readings),
            tokens_by_unit=tuple(_tokens(self.receipts)),
        )


def _answered(config: RunConfig, ready: Prepared, seconds: float, doing: Callable[[str], None]) -> _Course:
    """Hold an engine as a run does, and note what it reports."""
    output, switch = open_output(config, ready), Switch.create()
    course = _Course(held_since=time.monotonic())
    with closing(dataflow.finished(ready.left(output.view), flow(config, ready, "probe"), switch)) as flowing:
        for receipts in flowing:
            now = time.monotonic()
            course.receipts += receipts
            course.see(switch.stats().values(), now)
            if course.asked_since is None or course.drained is not None:
                continue
            if now - course.asked_since >= seconds:
                doing("probe: finishing what is in the engine")
                switch.drain()
                course.drained = now
            else:
                rows = course.last.ended.rows if course.last else 0
                doing(f"probe: {rows:,} rows answered in {now - course.asked_since:,.0f} of {seconds:,.0f} s")
    course.ended = time.monotonic()
    return course


def _told(receipts: Sequence[Receipt]) -> Answered:
    """What engines answered, in device-seconds of work."""
    totals = Totals.of(receipts)
    return Answered(
        seconds=float(totals.device_seconds),
        rows=totals.rows_ok - totals.rows_carried - totals.rows_shared,
        prompt_tokens=totals.prompt_tokens,
        cached_tokens=totals.cached_tokens,
        output_tokens=totals.output_tokens,
    )


def _tokens(receipts: Sequence[Receipt]) -> list[tuple[float, int]]:
    """Of each unit, output tokens of a row that an engine was asked, and how many of these there were."""
    asked = [(one, one.rows_ok - one.rows_carried - one.rows_shared) for one in receipts]
    return [(one.output_tokens / rows, rows) for one, rows in asked if rows > 0]
