"""Run a job over a corpus: python -m pipelines.run +job=NAME [key=value …]

Answers every row of the corpus that has no answer yet, and ends with a summary of what it did and what it cost.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipelines import patience, storage
from pipelines.accounts import closing, live_file, metrics, tracking
from pipelines.accounts.account import Account, book_left
from pipelines.accounts.alerts import watching
from pipelines.accounts.allowance import Allowance
from pipelines.accounts.budget import Stop
from pipelines.accounts.cost import price_of
from pipelines.accounts.gate import decide
from pipelines.accounts.live import Live
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import keep, quiet_ray, warnings_told
from pipelines.accounts.summary import Summary, Totals
from pipelines.changes import Changes, ShardWork
from pipelines.cli import command, to_yaml
from pipelines.config import Exit, RunConfig, RunFailed
from pipelines.ending import Course, Ending, begun
from pipelines.engine_choice import detect
from pipelines.preparation import Prepared, open_output, prepare
from pipelines.sink import alive
from pipelines.sink.costs import Costs
from pipelines.sink.output import Output
from pipelines.specs import cluster_address
from pipelines.stages import ordered


def run(config: RunConfig) -> Exit:
    """Do what is not done; the exit code says how it ended."""
    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    log_file = Path("out") / "logs" / f"{run_id}.log"
    began, began_at = time.monotonic(), time.time()
    allowance = Allowance.of(config.budget, grace_s=config.grace_s, started_at=began_at)
    stop = Stop(grace_s=config.grace_s, max_error_rate=config.max_error_rate)
    live = Live(run=run_id, job=config.job.name, model=config.model.name)
    with quiet_ray(log_file) as ray_options, Progress(live) as progress, stop.install(), ExitStack() as ended:
        ended.enter_context(warnings_told(progress.note))
        ended.enter_context(patience.telling(progress.note))
        alerts = ended.enter_context(watching(config, run_id=run_id, say=progress.note, config_yaml=to_yaml(config)))
        ended.enter_context(metrics.served(live, config.metrics))

        def start_ray() -> None:
            # Not before it is needed: a start with nothing to do would wait for Ray's import, and hold 120 MB.
            from pipelines import cluster

            with stop.heard():
                ended.enter_context(cluster.started_ray(config, ray_options, then=stop.arm))

        look = detect
        if cluster_address(config):  # the hardware that counts is the cluster's
            start_ray()
            from pipelines import cluster

            seconds = allowance.seconds_left(began_at)
            look = partial(cluster.detect_on_cluster, seconds, gpu=config.engine.device == "gpu")
        prepared = prepare(config, hardware=look, doing=progress.doing)
        if prepared.fields:  # what is written down of this run asks the same wherever it is read
            config = replace(config, job=replace(config.job, fields=prepared.fields.fields))
        ended.enter_context(alive.beating(prepared.sink_uri, run_id))
        ended.callback(keep, log_file, storage.join(prepared.sink_uri, "runs", run_id, "run.log"))
        ended.enter_context(live_file.kept(live, prepared.sink_uri, run_id))
        device = prepared.hardware.gpu_name if prepared.engine.device == "gpu" else None
        devices_each = 1 if device is None else prepared.engine.devices
        price = price_of(device, config.pricing)
        output = open_output(config, prepared, run_id)
        if output.lost:
            prepared = replace(prepared, retry=prepared.retry | output.lost)
            progress.note(f"{len(output.lost):,} committed units have lost a file: what it held is asked again")
        costs = Costs(prepared.sink_uri, epoch=output.ledger.epoch, run=run_id)
        book_left(costs, output.ledger, prepared.sink_uri, at=began_at)
        if config.budget.usd is not None and config.budget.scope == "output":
            allowance = replace(allowance, spent_before_usd=costs.usd())
        account = Account(
            config,
            allowance,
            price,
            run_id=run_id,
            sink_uri=prepared.sink_uri,
            device=device,
            devices_each=devices_each,
        )
        alerts.begin(prepared.sink_uri, allowance, devices_each=devices_each)
        tracker = ended.enter_context(_tracked(config, prepared, run_id, output))
        ending = Ending(
            config=config,
            prepared=prepared,
            run_id=run_id,
            began=began,
            log_file=log_file,
            output=output,
            account=account,
            course=Course(),
            progress=progress,
            tracker=tracker,
            alerts=alerts,
            evidence=ended.enter_context(begun(config, prepared, run_id, began_at)),
        )
        with ending.told_anyway(stop):
            left = prepared.changes(output.view)
            if left.todo:
                progress.doing("starting Ray")
                _answer(ending, left.todo, stop, allowance, costs, start_ray)
                left = prepared.changes(output.view)
            summary = _finish(ending, left, stop)
    closing.show(summary, tracker.tracked, report=ending.report)
    return summary.exit_code


def _answer(
    ending: Ending,
    todo: Sequence[ShardWork],
    stop: Stop,
    allowance: Allowance,
    costs: Costs,
    start_ray: Callable[[], None],
) -> None:
    """Have engines answer what is `todo`, as far as the run may go."""
    from pipelines import cluster, work

    config, account, progress = ending.config, ending.account, ending.progress
    work.say_beforehand(config, ending.prepared, allowance, account, ending.output, progress)
    if reason := account.reason_to_stop():
        stop.request(reason)
    if stop.requested():
        return
    progress.live.pays(account, allowance, ending.prepared.engine)
    start_ray()  # of a cluster it was started before
    worker_logs = ending.course.worker_logs = cluster.session_logs()
    # Now and not at the end alone: an engine that does not start has its last words there.
    progress.note(f"log: {ending.log_file}; of engines and workers: {worker_logs}")
    progress.doing("starting the engine")
    with account.booked(costs):
        work.work(ending, todo, stop)


def _finish(ending: Ending, left: Changes, stop: Stop) -> Summary:
    """Bring the output to what the corpus is now, if all of that is answered, and tell how the run ended."""
    config, prepared, output = ending.config, ending.prepared, ending.output
    finished = not left.todo
    # Not before all is done: a shard that is gone may be there under another name, and its answers go with it.
    removed = left.removed if finished and config.on_deleted == "remove" else ()
    told = {"fingerprint": prepared.fingerprint.digest, "run": ending.run_id}
    output.remove(removed, **told)
    if finished:
        for shard, limit in prepared.shards:
            if limit is not None:
                output.limit_reached(shard.path, shard.identity, limit, **told)
        ordered.remove(prepared.sink_uri)
    gate = None
    if finished and config.publish == "gate":
        gate = decide(output, config.gate, look=ending.look(), doing=ending.progress.doing)
    output.close(retain_hours=config.sink.retain_hours)
    if not finished and not stop.requested():
        raise RunFailed(f"shards of {config.source.uri} are left undone, though nothing failed; run it again")
    code = stop.exit_code(Totals.of(output.view.current()), finished=finished)
    return ending.in_order(
        code if gate is None or gate.passed else Exit.TOO_MANY_ERRORS,
        stopped_by=None if finished else stop.reason,
        gate=gate,
        shards_removed=len(removed),
    )


def _tracked(
    config: RunConfig, prepared: Prepared, run_id: str, output: Output
) -> "AbstractContextManager[tracking.Tracker]":
    digest = prepared.fingerprint.digest
    return tracking.track(
        config,
        run_id=run_id,
        fingerprint=digest,
        parts=prepared.fingerprint.parts,
        config_yaml=to_yaml(config),
        inputs={shard.path: shard.identity for shard, _ in prepared.shards},
        resumed_from=max((one.run for one in output.view.receipts() if one.fingerprint == digest), default=None),
    )


if __name__ == "__main__":
    command(run, doc=__doc__ or "")
