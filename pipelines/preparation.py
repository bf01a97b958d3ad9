"""All that is decided before anything starts: corpus, schema, model, engine, fingerprint, and what is to do.

What the user can mend is found here, as a UserError; no engine is started and no row is answered. `survey` only looks,
so that a plan may call it beside a run at work; `prepare` finds out besides whether a run may start.
"""

import contextvars
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from actors.engine import EngineConfig, Sampling
from pipelines import changes, refused, row_rules, storage
from pipelines.changes import Changes, ShardWork
from pipelines.config import JobConfig, RunConfig, UserError
from pipelines.engine_choice import Hardware, choose
from pipelines.field_rows import FieldOrder, settle
from pipelines.job import ladder
from pipelines.job.chat import open_chat
from pipelines.job.contract import OutputContract
from pipelines.job.fingerprint import Fingerprint, fingerprint
from pipelines.job.model import ModelFiles, cache_dir, resolve
from pipelines.job.template import Template, check_columns, compile_messages, unshared
from pipelines.memory import give_back
from pipelines.probe import check_store
from pipelines.sink.alive import refuse_if_alive
from pipelines.sink.committed import Committed
from pipelines.sink.found import Found
from pipelines.sink.ledger import Ledger
from pipelines.sink.output import Output
from pipelines.source.schema import corpus_schema
from pipelines.source.shards import Listing, Shard, list_source
from pipelines.stages.parse import check_output_columns, data_schema, errors_schema
from pipelines.stages.read import apply_limit
from pipelines.storage import StoreFailed

# Switches that let Ray unpickle what stands in a Parquet file's metadata: CVE-2026-41486 and its like.
UNSAFE = (
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_ARROW_EXTENSION_SERIALIZATION_CLOUDPICKLE",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run that may start."""

    sink_uri: str  # absolute: workers have other working directories
    found: Found  # the output as it was
    shards: tuple[tuple[Shard, int | None], ...]  # each with the row before which `source.limit` stops, if it does
    elsewhere: frozenset[str]  # other shards of the corpus, by path: beyond `source.limit`, or left out by globs
    retry: frozenset[str]  # attempts whose dead letters are to be asked again
    schema: pa.Schema  # of the input's columns in the output
    contract: OutputContract
    marks: tuple[pa.Field, ...]  # columns that tell how far up its ladder a row went
    sampling: Sampling
    model: ModelFiles
    hardware: Hardware
    engine: EngineConfig
    fingerprint: Fingerprint
    fields: FieldOrder | None  # of the job, as its prompts print them
    advice: tuple[str, ...]  # a line each, on what costs more than it need

    @property
    def ledger(self) -> Ledger:
        """As it was read."""
        return self.found.ledger

    @property
    def data_schema(self) -> pa.Schema:
        return data_schema(self.schema, self.contract, self.marks)

    @property
    def errors_schema(self) -> pa.Schema:
        return errors_schema(self.schema)

    def changes(self, committed: Committed) -> Changes:
        """What is to do after what is committed."""
        return changes.since(
            committed.receipts(),
            self.shards,
            fingerprint=self.fingerprint.digest,
            retry=self.retry,
            elsewhere=self.elsewhere,
        )

    def left(self, committed: Committed) -> tuple[ShardWork, ...]:
        """The shards that have rows to do after what is committed."""
        return self.changes(committed).todo


def prepare(config: RunConfig, *, hardware: Callable[[], Hardware], doing: Callable[[str], None]) -> Prepared:
    """Find everything out, and refuse what may not start; `doing` is told in words what is going on.

    Raises:
        UserError: with what to mend. Nothing was started, and nothing was written.
    """
    prepared = survey(config, hardware=hardware, doing=doing, claiming=True)
    for refusal in refusals(config, prepared, prepared.changes(prepared.ledger.committed())):
        raise UserError(refusal)
    return prepared


def survey(
    config: RunConfig, *, hardware: Callable[[], Hardware], doing: Callable[[str], None], claiming: bool = False
) -> Prepared:
    """Find everything out. Without `claiming` nothing is written, not even for a moment, and nobody at work is minded.

    `claiming`: for a run that is to start. Another one at work on the output is refused, what a dead one left of
    itself is taken away, and the store is tried by writing.

    Raises:
        UserError: with what to mend.
    """
    _refuse_unsafe_switches()
    try:
        return _surveyed(config, hardware, doing, claiming)
    except StoreFailed as error:  # it may list a shard or a model and not read it; nothing was started either way
        raise UserError(str(error)) from error


def _refuse_unsafe_switches() -> None:
    unsafe = [name for name in UNSAFE if os.environ.get(name, "0").strip().lower() not in ("", "0", "false")]
    if unsafe:
        raise UserError(f"{', '.join(unsafe)} lets files of the corpus run code in Ray's processes: unset it")


def _surveyed(
    config: RunConfig, hardware: Callable[[], Hardware], doing: Callable[[str], None], claiming: bool
) -> Prepared:
    job = config.job
    template = compile_messages(job.messages, job=job.name, fields=job.fields)
    contract = OutputContract.of(job.output, job=job.name)
    sink_uri = storage.absolute(config.sink.uri)
    if claiming:
        doing("looking for a run at work on the output")
        refuse_if_alive(sink_uri, doing=doing)
    doing("listing shards")
    listing = list_source(config.source)
    if not claiming:
        return _compared(config, listing, template, contract, sink_uri, hardware, doing)
    with ThreadPoolExecutor(1) as pool:  # beside all that is read: SeaweedFS takes 3 s for it
        trial = pool.submit(contextvars.copy_context().run, check_store, sink_uri)

        def after_the_trial() -> Hardware:
            trial.result()  # a cluster brings up a node to be looked at
            return hardware()

        try:
            return _compared(config, listing, template, contract, sink_uri, after_the_trial, doing)
        finally:
            trial.result()  # what it says goes first


def _compared(
    config: RunConfig,
    listing: Listing,
    template: Template,
    contract: OutputContract,
    sink_uri: str,
    hardware: Callable[[], Hardware],
    doing: Callable[[str], None],
) -> Prepared:
    """What is asked of which rows, and how much of it the output has."""
    job, shards = config.job, listing.shards
    doing("reading the ledger")
    there = Found.at(sink_uri)
    # What readers see alone: the columns of what waits to be published are not those of the output yet.
    seen = {(receipt.shard, receipt.identity) for receipt in there.ledger.committed().receipts()}
    unseen = [shard for shard in shards if (shard.path, shard.identity) not in seen]
    doing(f"reading the schema of {len(unseen):,} shards")
    needed = sorted({*template.columns, *([job.gold] if job.gold else [])})
    # What is answered is not opened again: its columns are those of the output.
    schema = corpus_schema(unseen, config.source, needed, before=there.input_schema() if seen else None)
    check_columns(template, schema, shards[0].path, job.name)
    _check_gold(job, schema)
    check_output_columns(schema, contract, job=job.name)
    limited = apply_limit(shards, config.source.limit, max_row_bytes=config.source.max_row_bytes)

    doing("reading the model's files")
    files = resolve(config.model, cache=cache_dir())
    if arguments := {**config.model.chat_template_args, **job.chat_template_args}:
        files = replace(files, chat_arguments=json.dumps(arguments, sort_keys=True))
    chat = open_chat(files.tokenizer_folder, files.vocab_size, files.chat_arguments)
    chat.check([message.role for message in job.messages], job=job.name)
    ladder.check(job.ladder, chat, job=job.name)
    found = hardware()
    engine = choose(config, files, found, path=files.folder_or_id)
    if job.fields and config.prompt.field_order == "auto":
        doing("finding an order for the job's fields")
    order = settle(config, sink_uri, limited, schema, chat)
    if order:
        job = replace(job, fields=order.fields)
    asked = fingerprint(
        job,
        engine=engine,
        model_identity=files.identity,
        chat_template=chat.identity,
        adapter=files.adapter.identity if files.adapter else None,
        long_above=files.long_above,
        rules=order.rules if order else None,
    )
    if order and order.tried:
        row_rules.check(order.tried, asked.parts, least=config.prompt.min_agreement)

    del chat  # a tokenizer takes 30 MB
    give_back()

    doing("comparing corpus and ledger")
    committed = there.candidate(asked.digest, gate=config.publish == "gate")
    prepared = Prepared(
        sink_uri=sink_uri,
        found=there,
        shards=tuple(limited),
        elsewhere=listing.left_out | {shard.path for shard in shards},
        retry=_to_retry(config, committed, asked.digest),
        schema=schema,
        contract=contract,
        marks=tuple(ladder.marks(job.ladder)),
        sampling=_sampling(config, contract),
        model=files,
        hardware=found,
        engine=engine,
        fingerprint=asked,
        fields=order,
        advice=tuple(
            filter(None, [unshared(template, job=job.name), _found_order(config, order), _tuned(config, engine)])
        ),
    )
    there.check(prepared.data_schema, prepared.errors_schema)
    return prepared


def refusals(config: RunConfig, prepared: Prepared, todo: Changes) -> Iterator[str]:
    """Why a run would not do what is `todo`: each in a line, with what to do."""
    if todo.other_rows and config.on_change == "refuse":
        yield refused.asked_otherwise(todo, prepared.fingerprint, prepared.sink_uri)
    if config.publish == "auto" and (waits := prepared.found.waiting().get(prepared.fingerprint.digest)):
        yield refused.not_published(waits, prepared.found.publications, prepared.sink_uri)
    if config.on_deleted == "remove" and todo.removed and not todo.known:
        yield refused.all_gone(todo, config.source.uri, prepared.sink_uri)


def _to_retry(config: RunConfig, committed: Committed, digest: str) -> frozenset[str]:
    types = config.retry_errors
    if types is False:
        return frozenset()
    return changes.failed(committed.receipts(), fingerprint=digest, types=None if types is True else types)


def open_output(config: RunConfig, prepared: Prepared, run: str = "") -> Output:
    """Become the writer of the run's output; see `Output.open`."""
    return Output.open(
        prepared.sink_uri,
        data_schema=prepared.data_schema,
        errors_schema=prepared.errors_schema,
        fingerprint=prepared.fingerprint.digest,
        identities={shard.path: shard.identity for shard, _ in prepared.shards},
        retain_hours=config.sink.retain_hours,
        run=run,
        found=prepared.found,
        gate=config.publish == "gate",
    )


def _found_order(config: RunConfig, order: FieldOrder | None) -> str | None:
    return f"fields: {order.line()}" if order and config.prompt.field_order != "given" else None


def _tuned(config: RunConfig, engine: EngineConfig) -> str | None:
    """A line where the sizes of batches are neither the config's nor the model's own."""
    own = (
        config.batching.max_num_seqs or config.model.max_num_seqs,
        config.batching.max_num_batched_tokens or config.model.max_num_batched_tokens,
    )
    if own == (engine.max_num_seqs, engine.max_num_batched_tokens):
        return None
    sizes = f"max_num_seqs={engine.max_num_seqs} and max_num_batched_tokens={engine.max_num_batched_tokens:,}"
    return f"batches as pipelines.tune found them here: {sizes}; batching.max_num_seqs=… sets another"


def _sampling(config: RunConfig, contract: OutputContract) -> Sampling:
    asked = config.job.sampling
    return Sampling(
        max_tokens=contract.most_tokens or asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop=asked.stop,
        seed=config.seed if asked.temperature > 0 else None,
    )


def _check_gold(job: JobConfig, schema: pa.Schema) -> None:
    if job.gold is None:
        return
    if job.output.kind != "labels":
        raise UserError(f"job {job.name}: gold={job.gold} needs output.kind=labels, this job's is {job.output.kind}")
    if job.gold not in schema.names:
        raise UserError(
            f"job {job.name}: gold={job.gold} is no column of the corpus. Its columns: {', '.join(schema.names)}. "
            "Name one of them, or set job.gold=null."
        )
