"""Start a run on a cluster, follow it, stop it: python -m pipelines.submit +job=NAME cluster=ray|kuberay [key=value …]

Takes what `pipelines.run` takes. Shows what the run would do and cost, and what would be submitted; asks; submits;
shows the run's log; ends with the run's exit code. Ctrl-C ends the showing, not the run: action=stop does that.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import patience, planned
from pipelines.accounts.closing import money
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray
from pipelines.accounts.summary import printable
from pipelines.cli import command_with_keys, refuse
from pipelines.config import STRICT, Exit, RunConfig, UserError
from pipelines.planned import Plan
from pipelines.planner import PlanKeys, plan_of
from pipelines.preparation import survey
from pipelines.redact import redacted
from pipelines.submission import Remote, Submission, submission

KEYS = {
    "action": "run (the default), status, logs, stop: it finishes what is in the engines",
    "yes": "true: submit without asking (false)",
    "dry_run": "true: print what would be submitted, and nothing else (false)",
    "plan": "false: do not look at corpus, ledger and model from here first (true)",
    "name": "of the job there, if not the overlay's, or one made of job and time",
    "context": "of the kubeconfig, for cluster=kuberay; its current one, if none is said",
}
EXITS = {
    Exit.DONE: "the run is done; or there was nothing to do, or to submit",
    Exit.FAILED: "the run failed, or the cluster did",
    Exit.USAGE: "bad usage or config, or a cluster that refuses; nothing was submitted",
    Exit.TOO_MANY_ERRORS: "the run is done, but too many rows failed, or a shard was unreadable",
    Exit.STOPPED: "the run was stopped before the end; or it is no longer shown, and goes on",
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SubmitKeys:
    """What submit is told besides what a run is told."""

    action: Literal["run", "status", "logs", "stop"] = "run"
    yes: bool = False
    dry_run: bool = False
    plan: bool = True
    name: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$")] | None = None
    context: str | None = None


def submit(config: RunConfig, asked: SubmitKeys, words: list[str]) -> Exit:
    """Do what is asked of the run there."""
    there = _opened(submission(config, words, name=asked.name), asked)
    match asked.action:
        case "status":
            _table(there.status())
        case "logs":
            there.logs(_say)
        case "stop":
            return there.stop(_say)
        case "run" if asked.dry_run:
            print(there.rendered(), end="")  # noqa: T201
        case "run":
            return _run(config, there, asked)
    return Exit.DONE


def _run(config: RunConfig, there: Remote, asked: SubmitKeys) -> Exit:
    if asked.plan:
        found = _planned(config, there)
        _say(_dollars(found))
        planned.show(found)
        if found.refusals:
            raise UserError(f"the run would be refused, so nothing is submitted: {found.refusals[0]}")
        if planned.nothing_to_do(found):
            _say("nothing to do: nothing is submitted")
            return _as_it_is(config, found)
    for line in there.concerns():
        _say(f"warning: {line}")
    for line in there.difference():
        _say(f"  {line}")
    if not asked.yes and not _agreed(there.where):
        _say("nothing was submitted")
        return Exit.DONE
    there.submit(_say)
    try:
        return there.follow(_say)
    except KeyboardInterrupt:
        _say("no longer shown; the run goes on. The same command with action=logs shows it, action=stop ends it")
        return Exit.STOPPED


def _opened(asked: Submission, keys: SubmitKeys) -> Remote:
    cluster = asked.config.cluster
    if cluster.overlay is not None:
        from pipelines.kube import KubeRay

        return KubeRay(asked, context=keys.context)
    if cluster.address is None:
        raise UserError(
            "cluster=local is this machine: python -m pipelines.run; submit wants cluster=ray or cluster=kuberay"
        )
    from pipelines.ray_jobs import RayJobs

    return RayJobs(asked)


def _planned(config: RunConfig, there: Remote) -> Plan:
    with quiet_ray(Path("out") / "logs" / "submit.log"), Progress() as progress, ExitStack() as ended:
        ended.enter_context(patience.telling(progress.note))
        try:
            prepared = survey(config, hardware=there.hardware, doing=progress.doing)
        except UserError as error:
            raise UserError(f"{error} (plan=false submits without looking from here)") from None
        return plan_of(config, prepared, PlanKeys(), doing=progress.doing)


def _dollars(plan: Plan) -> str:
    outlook = plan.outlook
    if planned.nothing_to_do(plan):
        return "$0"
    if outlook.forecast is None:
        return f"dollars not known: {outlook.why}"
    found = outlook.forecast
    return f"about {money(found.usd)} ({money(found.usd_low)} to {money(found.usd_high)}), estimated; {found.words}"


def _as_it_is(config: RunConfig, plan: Plan) -> Exit:
    """What a run that has nothing to do would end with."""
    dead = plan.ahead.dead_letters
    too_many = sum(dead.values()) > config.max_error_rate * plan.ahead.unchanged_rows
    return Exit.TOO_MANY_ERRORS if too_many or dead.get("unreadable_shard") else Exit.DONE


def _agreed(where: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("nobody is there to be asked: say yes=true to submit, or dry_run=true to look")
    return input(f"submit to {where}? [y/N] ").strip().lower() in ("y", "yes")


def _table(lines: list[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in lines:
        table.add_row(label, Text(printable(redacted(value))))
    Console(highlight=False).print(table)


def _say(text: str) -> None:
    print(printable(redacted(text)), flush=True)  # noqa: T201


def main(argv: Sequence[str]) -> NoReturn:
    """The command; the words that are not its own are the run's."""
    words = [word for word in argv if word.lstrip("+").split("=")[0] not in KEYS]
    if {"--multirun", "-m"} & set(words):
        sys.exit(refuse(UserError("--multirun starts several runs, one after the other: submit each by itself")))
    command_with_keys(partial(submit, words=words), SubmitKeys, doc=__doc__ or "", keys=KEYS, exits=EXITS, argv=argv)


if __name__ == "__main__":
    main(sys.argv[1:])
