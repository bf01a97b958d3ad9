"""Find rules for the order of fields in each row, and try them: python -m pipelines.agree +job=NAME [key=value …]

Takes what `pipelines.run` takes, of a job with `fields`. Some rows of the corpus are answered in the order that the job
lists and in the one that the rules give each of them, and the answers are compared. What came of it is kept beside the
output; a run with prompt.field_order=rows goes by it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import row_rules, storage
from pipelines.accounts.agreement import wilson
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray
from pipelines.cli import command
from pipelines.cluster import detect_on_cluster, started_ray
from pipelines.config import Exit, RunConfig, UserError
from pipelines.engine_choice import Hardware, detect
from pipelines.field_rows import find_rules, sampled
from pipelines.job.chat import open_chat
from pipelines.job.row_order import Rule, Rules
from pipelines.job.template import compile_messages
from pipelines.preparation import Prepared, prepare, survey
from pipelines.row_rules import Tried
from pipelines.sample import answered, over_sample, put_sample, scratch
from pipelines.specs import cluster_address

ASKED = 200  # rows, in each order: a share of them is known to some 3 %
EXITS = {
    Exit.DONE: "tried, and prompt.field_order=rows takes what was found; or there is nothing to gain by rules",
    Exit.FAILED: "tried, and too few answers are the same (prompt.min_agreement); or it could not be tried",
    Exit.USAGE: "bad usage or config; nothing was started",
    Exit.STOPPED: "stopped; nothing was kept",
}
Answers = Mapping[int, dict[str, Any]]  # rows that got one, by their number in the sample


def agree(config: RunConfig) -> Exit:
    """Find rules, or take those kept, ask in both orders, keep and tell what came of it."""
    if len(config.job.fields) < 2:
        raise UserError(
            f"job {config.job.name} lists {len(config.job.fields)} fields in job.fields; with fewer than 2 there is no "
            "order to find"
        )
    given = replace(config, prompt=replace(config.prompt, field_order="given"))
    with quiet_ray(Path("out") / "logs" / "agree.log") as ray_options, Progress() as progress, ExitStack() as ended:
        if cluster_address(config):  # the hardware that counts is the cluster's
            ended.enter_context(started_ray(config, ray_options))
        prepared = survey(given, hardware=_hardware(config), doing=progress.doing)
        progress.doing("finding rules for the order of fields")
        rules, words = _rules(given, prepared)
        if isinstance(rules, Rule):
            folder = ended.enter_context(scratch(prepared.sink_uri, config))
            put_sample(_rows(given, prepared), folder)
            asked = over_sample(given, prepared.sink_uri, folder)
            progress.doing("starting Ray and the engine")
            ended.enter_context(started_ray(asked, ray_options))
            parts, before, after = _asked(asked, rules, folder, progress.doing)
    if not isinstance(rules, Rule):
        print(f"rules    none: {words}; prompt.field_order=auto does as much")  # noqa: T201
        return Exit.DONE
    tried = Tried(
        rules=rules,
        fields=config.job.fields,
        asked=len(before.keys() | after.keys()),  # the others cannot be answered, in whatever order
        same=_same(before, after, prepared.contract.schema),
        parts=parts,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _show(config, tried, words, row_rules.keep(prepared.sink_uri, tried), (before, after))
    return Exit.DONE if tried.share >= config.prompt.min_agreement else Exit.FAILED


def _hardware(config: RunConfig) -> Callable[[], Hardware]:
    return detect_on_cluster if cluster_address(config) else detect


def _asked(
    config: RunConfig, rules: Rules, folder: str, doing: Callable[[str], None]
) -> tuple[dict[str, str], Answers, Answers]:
    """The answers of the sample in the order that the job lists and by the rules, and under which fingerprint."""
    doing("asking in the order that the job lists")
    listed = prepare(config, hardware=_hardware(config), doing=doing)
    before = answered(config, listed)
    parts = row_rules.apart(listed.fingerprint.parts)
    by_rules = replace(
        config,
        sink=replace(config.sink, uri=storage.join(folder, "by-rules")),
        prompt=replace(config.prompt, field_order="rows", min_agreement=0.0),  # nothing is refused before it is tried
    )
    untried = Tried(rules=rules, fields=config.job.fields, asked=0, same=0, parts=parts, at="")
    row_rules.keep(by_rules.sink.uri, untried)
    doing("asking by the rules")
    return parts, before, answered(by_rules, prepare(by_rules, hardware=_hardware(config), doing=doing))


def _rules(config: RunConfig, prepared: Prepared) -> tuple[Rules, str]:
    """Those kept with the output, whose answers may have been asked by them; else those that its rows tell."""
    if tried := row_rules.kept(prepared.sink_uri, config.job.fields):
        return tried.rules, f"as tried before, {tried.at}"
    model = prepared.model
    chat = open_chat(model.tokenizer_folder, model.vocab_size, model.chat_arguments)
    return find_rules(config, prepared.shards, prepared.schema, chat)


def _rows(config: RunConfig, prepared: Prepared) -> pa.Table:
    """Some rows of the corpus, with the columns that the job needs; the same each time."""
    template = compile_messages(config.job.messages, job=config.job.name, fields=config.job.fields)
    names = sorted({*template.columns, *([config.job.gold] if config.job.gold else [])})
    schema = pa.schema([prepared.schema.field(name) for name in names])
    _, lines = sampled(prepared.shards, schema, config.source.max_row_bytes)
    chosen = sorted(random.Random(config.seed).sample(range(len(lines)), min(ASKED, len(lines))))  # noqa: S311
    return pa.Table.from_pylist([{name: lines[place][name] for name in names} for place in chosen], schema)


def _same(before: Answers, after: Answers, schema: pa.Schema) -> int:
    """Rows with the same answer, numbers with a fraction apart: a confidence is never the same to its last digit."""
    columns = [field.name for field in schema if not pa.types.is_floating(field.type)] or schema.names
    return sum(
        row in after and all(answer[name] == after[row][name] for name in columns) for row, answer in before.items()
    )


def _show(config: RunConfig, tried: Tried, words: str, uri: str, sides: Sequence[Answers]) -> None:
    low, high = wilson(tried.same, tried.asked) if tried.asked else (0.0, 1.0)
    least = config.prompt.min_agreement
    verdict = "enough" if tried.share >= least else "too few"
    print(f"rules    {tried.count}: {words}")  # noqa: T201
    print(  # noqa: T201
        f"answers  {tried.same:,} of {tried.asked:,} rows the same in both orders: {tried.share:.1%} "
        f"({low:.1%} to {high:.1%} at 95 %); {verdict} for prompt.min_agreement={least:g}"
    )
    if gold := config.job.gold:
        right = [sum(row["label"] == row[gold] for row in side.values()) / max(1, len(side)) for side in sides]
        print(f"gold     {right[0]:.1%} right as the job lists its fields, {right[1]:.1%} by the rules")  # noqa: T201
    print(f"kept     {uri}")  # noqa: T201


if __name__ == "__main__":
    command(agree, doc=__doc__ or "", exits=EXITS, stopped="stopped")
