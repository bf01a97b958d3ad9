"""Let a second model judge a sample of an output's answers: python -m pipelines.judge +job=judge sink.uri=… model=…

Takes what `pipelines.run` takes, of the judge; its job answers with labels. What a row offers its messages: `question`,
the messages that the answer was asked by; `answer`; and the columns of the output. The verdicts are kept with the
newest run of the output, whose answers are drawn, and its report shows them (pipelines.report).
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipelines import storage
from pipelines.accounts import judged
from pipelines.accounts.judged import Judged
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray
from pipelines.accounts.summary import printable
from pipelines.cli import command_with_keys
from pipelines.cluster import detect_on_cluster, started_ray
from pipelines.config import STRICT, Exit, JobConfig, RunConfig, UserError
from pipelines.engine_choice import detect
from pipelines.job.contract import OutputContract
from pipelines.job.template import compile_messages
from pipelines.newest import newest
from pipelines.preparation import prepare
from pipelines.sample import answered, drawn, over_sample, put_sample, read_places, scratch
from pipelines.sink.ledger import Ledger
from pipelines.specs import cluster_address

KEYS = {
    "sample": "answers to draw (200)",
    "good": "the verdict that passes; the first label of the judge's job, if none is said",
    "at_least": "the share of answers that must pass, 0..1; null (the default): any",
}
EXITS = {
    Exit.DONE: "judged, and enough answers passed",
    Exit.FAILED: "fewer passed than at_least says, or none could be judged",
    Exit.USAGE: "bad usage or config, or there is no output; nothing was started",
    Exit.STOPPED: "stopped; nothing was kept",
}
QUESTION, ANSWER = "question", "answer"
DRAWN = "source.uri=drawn"  # of the command line, on which nobody has to name a corpus: it is drawn from the output


@dataclass(frozen=True, config=STRICT, kw_only=True)
class JudgeKeys:
    """What judge is told besides what a run is told."""

    sample: Annotated[int, Field(ge=1)] = 200
    good: str | None = None
    at_least: Annotated[float, Field(ge=0, le=1)] | None = None


def judge(config: RunConfig, asked: JudgeKeys) -> Exit:
    """Draw, ask, keep and tell."""
    good = _good(config.job, asked)
    sink_uri = storage.absolute(config.sink.uri)
    left = newest(sink_uri)
    if left is None:
        raise UserError(f"sink.uri={config.sink.uri}: no run left its config there, so there is nothing to judge")
    run_id, theirs = left
    with quiet_ray(Path("out") / "logs" / "judge.log") as ray_options, Progress() as progress, ExitStack() as ended:
        progress.doing("drawing answers")
        table = _drawn(sink_uri, theirs.job, asked.sample, config.seed)
        folder = ended.enter_context(scratch(sink_uri, config, "judge"))
        put_sample(_as_questions(table, theirs.job, config.job), folder)
        asking = over_sample(config, sink_uri, folder)
        local = not cluster_address(config)
        if not local:  # the hardware that counts is the cluster's
            ended.enter_context(started_ray(asking, ray_options))
        prepared = prepare(asking, hardware=detect if local else detect_on_cluster, doing=progress.doing)
        progress.doing("starting Ray and the engine")
        ended.enter_context(started_ray(asking, ray_options))
        verdicts = answered(asking, prepared)
    rows = table.to_pylist()
    found = Judged.of(
        [
            (rows[number]["_shard"], rows[number]["_row"], said["label"], _right(rows[number], theirs.job.gold))
            for number, said in sorted(verdicts.items())
        ],
        run_id=run_id,
        job=config.job.name,
        model=config.model.name,
        fingerprint=prepared.fingerprint.digest,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        drawn=table.num_rows,
        good=good,
    )
    _show(found, judged.keep(sink_uri, found), asked.at_least)
    enough = found.share is not None and found.share >= (asked.at_least or 0)
    return Exit.DONE if enough else Exit.FAILED


def _good(job: JobConfig, asked: JudgeKeys) -> str:
    labels = job.output.labels
    if job.output.kind != "labels":
        raise UserError(f"job {job.name} answers with {job.output.kind}: a judge's job has output.kind=labels")
    if asked.good is not None and asked.good not in labels:
        raise UserError(f"good={asked.good} is none of the labels of job {job.name}: {', '.join(labels)}")
    return asked.good or labels[0]


def _drawn(sink_uri: str, job: JobConfig, rows: int, seed: int) -> pa.Table:
    """Answered rows of the newest prompt and model, as the output has them."""
    current = list(Ledger.open(sink_uri, create=False).committed().current())
    if not current:
        raise UserError(f"{storage.shown(sink_uri)} holds no answers")
    fingerprint = max(current, key=lambda one: one.finished_at).fingerprint
    places = drawn([one for one in current if one.fingerprint == fingerprint], rows, seed)
    if not places:
        raise UserError(f"{storage.shown(sink_uri)} holds no answers: all rows of job {job.name} are dead letters")
    return read_places(sink_uri, places)


def _as_questions(table: pa.Table, theirs: JobConfig, judge: JobConfig) -> pa.Table:
    """The rows as the judge's corpus: question, answer, and their columns but those named like the judge's own."""
    template = compile_messages(theirs.messages, job=theirs.name, fields=theirs.fields)
    names = ["label"] if theirs.output.kind == "labels" else _columns(theirs)
    rows = table.to_pylist()
    questions = ["\n\n".join(f"[{role}]\n{content}" for role, content in template.render(row)) for row in rows]
    taken = {*_columns(judge), QUESTION, ANSWER}
    kept = table.select([name for name in table.schema.names if name[0] != "_" and name not in taken])
    answers = [_text({name: row[name] for name in names}) for row in rows]
    return kept.append_column(QUESTION, pa.array(questions)).append_column(ANSWER, pa.array(answers))


def _columns(job: JobConfig) -> list[str]:
    """The columns of its answers."""
    return list(OutputContract.of(job.output, job=job.name).schema.names)


def _text(said: Mapping[str, Any]) -> str:
    """An answer of one column as it is, of several as JSON."""
    values = list(said.values())
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return json.dumps(said, ensure_ascii=False, default=str)


def _right(row: Mapping[str, Any], gold: str | None) -> bool | None:
    """Whether the answer is the gold label; None: there is none."""
    return None if gold is None or row.get(gold) is None else row.get("label") == row[gold]


def _show(found: Judged, uri: str, at_least: float | None) -> None:
    verdict = ""
    if at_least is not None and found.share is not None:
        verdict = f"; {'enough' if found.share >= at_least else 'too few'} for at_least={at_least:g}"
    lines = [("judge", f"{found.job}, {found.model}"), ("of", f"run {found.run_id}"), ("said", found.words() + verdict)]
    if told := found.of_gold():
        lines.append(("", told))
    lines += [(said, f"{shard} row {row}") for shard, row, said in found.examples[:5]]
    lines.append(("kept", storage.shown(uri)))
    for label, text in lines:
        print(printable(f"{label:<8} {text}"))  # noqa: T201


def main(argv: Sequence[str]) -> None:
    """The command."""
    words = list(argv) if any(word.startswith("source.uri=") for word in argv) else [*argv, DRAWN]
    command_with_keys(judge, JudgeKeys, doc=__doc__ or "", keys=KEYS, exits=EXITS, argv=words)


if __name__ == "__main__":
    main(sys.argv[1:])
