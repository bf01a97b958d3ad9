"""The other side of benchmarks/resume: the same job as a plain Ray Data pipeline with Ray's own checkpoint.

    python -m benchmarks.ray_checkpoint CORPUS OUTPUT CHECKPOINT      (s3:// URIs; AWS_* as for the pipeline)

Reads, renders and tokenizes with the pipeline's own `prepare`, answers by the simulated engine's hash, reads the
answer by the job's own contract, writes Parquet. Everything that is not said here is Ray's default. Said are:

- batches of 512 rows, our unit;
- one engine actor that reserves no CPU, as ours: with a CPU each, engine and checkpoint filter would take both cores
  of a small machine, and no reader could start;
- blocks of 8 MiB instead of 128: a checkpoint is written for each block written, and a block of short rows at the
  default holds more than 100,000 of them, all of which a kill before its end would lose.
"""

import os
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import ray
from pyarrow.fs import S3FileSystem
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

from actors import simulated
from actors.engine import Prompt, Sampling
from pipelines.compose import compose
from pipelines.engine_choice import choose, detect
from pipelines.job.contract import OutputContract
from pipelines.job.fingerprint import fingerprint
from pipelines.job.model import cache_dir, resolve
from pipelines.stages.prepare import PrepareSpec, prepare

JOB = ("+job=classify", "engine=simulated", "tracking=none", "job.gold=null")
BATCH_ROWS = 512
BLOCK_BYTES = 8 * 2**20  # with their prompts, about 9,000 rows
ID_COLUMN = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of each row. Picklable: it travels to tasks and to the actor."""

    prepare: PrepareSpec
    contract: OutputContract
    output_tokens: int


def asked() -> Asked:
    """The job that the pipeline is given, without its corpus and output."""
    (config,) = compose([*JOB, "source.uri=unused-corpus", "sink.uri=unused-output"])
    files = resolve(config.model, cache=cache_dir())
    engine = choose(config, files, detect(), path=files.folder_or_id)
    sampling = Sampling(max_tokens=config.job.sampling.max_tokens, temperature=config.job.sampling.temperature)
    return Asked(
        prepare=PrepareSpec(
            job=config.job.name,
            messages=config.job.messages,
            ladder=config.job.ladder,
            model=files,
            max_model_len=engine.max_model_len,
            sampling=sampling,
            fingerprint=fingerprint(config.job, engine=engine, model_identity=files.identity, chat_template="").digest,
        ),
        contract=OutputContract.of(config.job.output, job=config.job.name),
        output_tokens=engine.simulated.output_tokens,
    )


def with_prompts(rows: pa.Table, job: Asked) -> pa.Table:
    """The rows, and beside them their keys and prompts."""
    nothing = pa.nulls(rows.num_rows, pa.string())
    prompts = prepare(rows.append_column("_error_type", nothing).append_column("_error", nothing), job.prepare)
    return rows.append_column("_key", prompts["_key"]).append_column("_prompt", prompts["_prompt"])


class Answers:
    """The engine, and the contract that reads it: prompts to labels."""

    def __init__(self, job: Asked) -> None:
        self._job = job

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with their answers in place of their prompts."""
        labels: list[dict[str, Any]] = []
        for key, tokens in zip(rows["_key"].to_pylist(), rows["_prompt"].to_pylist(), strict=True):
            labels.append(self._answered(key, tokens))
        table = rows.drop_columns(["_prompt"])
        for name in labels[0] if labels else ():
            table = table.append_column(name, pa.array([label[name] for label in labels]))
        return table

    def _answered(self, key: str, tokens: list[int]) -> dict[str, Any]:
        contract = self._job.contract
        prompt = Prompt(
            key=key,
            token_ids=tuple(tokens),
            sampling=self._job.prepare.sampling,
            constraint=contract.constraint,
            alternatives=contract.alternatives,
        )
        answer = simulated.answer_by_hash(prompt, self._job.output_tokens)
        positions = [[(each.text, each.logprob) for each in position] for position in answer.alternatives]
        values = contract.read(answer.text, answer.finish_reason, answer.token_logprobs, positions).values
        if values is None:
            raise ValueError("the simulated engine broke the contract")
        label = dict(zip(contract.schema.names, values, strict=True))
        return {**label, "_prompt_tokens": answer.prompt_tokens, "_output_tokens": answer.output_tokens}


def main(corpus: str, output: str, checkpoint: str) -> None:
    job = asked()
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    store = S3FileSystem(endpoint_override=endpoint.netloc, scheme=endpoint.scheme, region=os.environ["AWS_REGION"])
    ray.init(address="local", include_dashboard=False)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.checkpoint_config = CheckpointConfig(
        id_column=ID_COLUMN, checkpoint_path=checkpoint, override_filesystem=store
    )
    (
        ray.data.read_parquet(corpus, filesystem=store)
        .map_batches(with_prompts, fn_args=(job,), batch_size=BATCH_ROWS, batch_format="pyarrow")
        .map_batches(
            Answers,
            fn_constructor_args=(job,),
            batch_size=BATCH_ROWS,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=1),
            num_cpus=0,
        )
        .write_parquet(output, filesystem=store)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
