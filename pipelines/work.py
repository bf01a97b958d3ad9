"""The work of a run: a flow over what is to do, each receipt committed as it comes. To import it takes Ray."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from actors.control import Switch
from actors.gpu_monitor import gpu_usage, of_the_run, watch_gpus
from pipelines import corpus_order, dataflow
from pipelines.accounts.account import Account
from pipelines.accounts.allowance import Allowance
from pipelines.accounts.budget import Stop
from pipelines.accounts.cost import dollars, old_price
from pipelines.accounts.overdue import OverdueRows
from pipelines.accounts.progress import Progress
from pipelines.accounts.quality import Measures
from pipelines.accounts.starvation import Starvation
from pipelines.accounts.summary import Speculated, Totals
from pipelines.changes import ShardWork
from pipelines.cluster import flow
from pipelines.config import RunConfig
from pipelines.ending import Course, Ending
from pipelines.flow_sizes import AT_ONCE, units_in_flight, with_tail
from pipelines.preparation import Prepared
from pipelines.rows_ahead import rows_ahead
from pipelines.sink.output import Output
from pipelines.sink.receipt import Receipt

log = logging.getLogger(__name__)

COMMIT_EVERY_S = 2.0  # receipts of so long go into one commit


def work(ending: Ending, todo: Sequence[ShardWork], stop: Stop) -> None:
    """Answer what is `todo`, and commit it as it is finished."""
    config, prepared, output, account = ending.config, ending.prepared, ending.output, ending.account
    progress, tracker, alerts, course = ending.progress, ending.tracker, ending.alerts, ending.course
    switch, monitors = Switch.create(), watch_gpus()
    done = False
    todo = with_tail(todo, config, max_num_seqs=prepared.engine.max_num_seqs)
    progress.expecting(lambda: rows_ahead(todo, seed=config.seed))
    pending: list[Receipt] = []
    held: set[str] = set()  # GPUs
    committed_at, drained = time.monotonic(), False

    def most() -> int:
        total = progress.live.snapshot().rows_total
        return account.most_engines(None if total is None else max(0, total - course.totals.rows_in))

    def left() -> Sequence[ShardWork]:
        if pending:
            _commit(output, pending, course, account)
        return with_tail(prepared.left(output.view), config, max_num_seqs=prepared.engine.max_num_seqs)

    way = flow(config, prepared, ending.run_id, output.view)
    if config.ordering == "corpus":
        progress.doing("sorting all prompts by how they begin")
        way = replace(way, ordered=corpus_order.sort(todo, way, switch, stop.requested))
        if stop.requested():
            return
        progress.doing("starting the engine")
    starvation = course.starvation = Starvation(
        read_tasks=way.read_tasks or way.write_tasks,
        # Answered pieces of sorted prompts leave no receipt: they do not wait to be written.
        write_tasks=sys.maxsize if way.ordered else way.write_tasks,
    )
    overdue = OverdueRows()
    account.hold()
    flowing = dataflow.finished(todo, way, switch, left=left, most=most)
    try:
        for receipts in flowing:
            now = time.monotonic()
            pending += receipts
            if receipts:
                course.last_receipt = now
                account.received()
            if pending and now - committed_at >= COMMIT_EVERY_S:
                _commit(output, pending, course, account)
                committed_at = now
            hosts = list(switch.stats().values())
            account.see(hosts)
            starvation.see(hosts, received=len(receipts))
            for line in overdue.see(hosts):
                log.warning("%s", line)
            course.speculation = Speculated.of(hosts) or course.speculation
            if not course.book_full and any(host.book_full for host in hosts):
                course.book_full = True
                progress.note("the book of answers is full: from here on two engines may both ask a prompt (dedup=run)")
            if not stop.requested() and (reason := account.reason_to_stop()):
                stop.request(reason, within_s=account.grace_left_s())
            if stop.requested() and not drained:
                switch.drain()
                progress.doing(f"{stop.reason}: finishing what is in the engines")
                drained = True
            if course.serving_since is None and any(host.phase != "starting" for host in hosts):
                course.serving_since = now
                course.engine_start_s = max(host.start_seconds for host in hosts if host.phase != "starting")
                progress.started(course.engine_start_s)
            if prepared.engine.device == "gpu":
                held |= {gpu for host in hosts for gpu in host.gpus}
                course.gpus = of_the_run(gpu_usage(monitors), held)
            in_flight = sum(host.rows_in_flight for host in hosts)
            progress.live.see(course.totals, hosts, starvation.waits())
            alerts.see(course.totals, hosts, usd=account.usd(), usd_per_s=account.usd_per_s(), gpus=course.gpus)
            if hosts:  # what MLflow takes to start is paid while an engine loads, which leaves a core idle
                tracker.see(course.totals, rows_in_flight=in_flight, usd=account.usd(), gpus=course.gpus)
        done = True
    finally:
        flowing.close()
        account.give_back(done=done)
        alerts.rest()
        if pending:  # whatever ended the flow: what is finished is paid for, and is kept
            _commit(output, pending, course, account)
        progress.live.see(course.totals)


def _commit(output: Output, pending: list[Receipt], course: Course, account: Account) -> None:
    """Commit these units, once, whatever comes of it: tried again after a commit that was cut off, receipts that are in
    the ledger would go there a second time. Those that are not, the next start finds in their footers."""
    began, batch = time.monotonic(), tuple(pending)
    pending.clear()
    output.commit(batch)
    course.first_commit = course.first_commit or time.monotonic()
    course.totals += Totals.of(batch)
    course.measures += Measures.of(batch)
    account.committed(batch, took_s=time.monotonic() - began)


def say_beforehand(
    config: RunConfig, prepared: Prepared, allowance: Allowance, account: Account, output: Output, progress: Progress
) -> None:
    """What costs more than it need, what the run may spend, by how much it may pass that, whether its price is old."""
    before = Totals.of(output.view.current())
    lines = allowance.promise(
        scope=config.budget.scope,
        usd_per_s=account.most_usd_per_s(),
        units=AT_ONCE
        * units_in_flight(
            config.engine.units_in_flight,
            prepared.engine.max_num_seqs * (1 + config.batching.lookahead),
            config.unit.rows,
        ),
        unit_rows=config.unit.rows,
        engines=config.engine.pool[1],
        usd_per_row=dollars(before.device_seconds, account.price) / before.rows_in if before.rows_in else None,
    )
    old = old_price(account.price, today=datetime.now(UTC).date())
    for line in [*prepared.advice, *lines, *([old] if old else [])]:
        progress.note(line)
