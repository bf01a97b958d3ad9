"""Say what a run would do and cost: python -m pipelines.plan +job=NAME [key=value …]

Takes what `pipelines.run` takes, reads corpus, ledger and the model's small files, answers no row and writes nothing
to the output. A sample of the rows is rendered and tokenized, as the run would. With `plan.probe_s` one engine is
started besides, and answers rows of the sample, which are thrown away.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipelines import patience, planned
from pipelines.accounts.probed import Probed
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray, warnings_told
from pipelines.cli import command_with_keys
from pipelines.config import Exit, RunConfig
from pipelines.engine_choice import detect
from pipelines.planner import PlanKeys, plan_of
from pipelines.preparation import survey
from pipelines.specs import cluster_address

CLUSTER_S = 60.0  # for a GPU of a busy cluster to tell what it is
KEYS = {
    "plan.sample": "rows to render and tokenize, drawn by the seed (2000)",
    "plan.probe_s": "seconds for which one engine answers rows of the sample; 0 (the default): none is started",
    "preflight": "true: try the store by writing to it as well; the other looks are always taken (false)",
    "format": "table (the default), or json: one document on stdout",
}
EXITS = {
    Exit.DONE: "planned; the table says what the run would do",
    Exit.FAILED: "failed; with a probe: its engine did not start, or answered nothing",
    Exit.USAGE: "bad usage or config, or an input that cannot be read",
}


def plan(config: RunConfig, asked: PlanKeys) -> Exit:
    """Find out what the run would do, and print it."""
    with quiet_ray(Path("out") / "logs" / "plan.log") as ray_options, Progress() as progress, ExitStack() as ended:
        ended.enter_context(warnings_told(progress.note))
        ended.enter_context(patience.telling(progress.note))
        hardware = detect
        if cluster_address(config):  # the hardware that counts is the cluster's
            from pipelines import cluster  # not before: without one, a plan needs no Ray

            ended.enter_context(cluster.started_ray(config, ray_options))
            hardware = partial(cluster.detect_on_cluster, CLUSTER_S)
        prepared = survey(config, hardware=hardware, doing=progress.doing)

        def probe(rows: pa.Table) -> Probed:
            from pipelines import engine_probe  # not before: without one, a plan needs no Ray

            return engine_probe.probe(config, prepared, rows, asked.plan.probe_s, ray_options, progress.doing)

        found = plan_of(config, prepared, asked, doing=progress.doing, probe=probe if asked.plan.probe_s else None)
    if asked.format == "json":
        print(planned.document(found))  # noqa: T201
    else:
        planned.show(found)
    return Exit.DONE


if __name__ == "__main__":
    command_with_keys(plan, PlanKeys, doc=__doc__ or "", keys=KEYS, exits=EXITS)
