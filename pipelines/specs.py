"""What the stages before an engine are told of a config, and where its Ray is. Nothing here needs Ray."""

import os

from pipelines.config import RunConfig
from pipelines.preparation import Prepared
from pipelines.sink.committed import Committed
from pipelines.source.units import UnitSize
from pipelines.stages.carry import CarrySpec
from pipelines.stages.prepare import PrepareSpec
from pipelines.stages.read import ReadSpec


def cluster_address(config: RunConfig) -> str | None:
    """Of the Ray cluster that the run uses; None: it starts a Ray of this machine's own."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS") or None


def read_spec(config: RunConfig, prepared: Prepared) -> ReadSpec:
    """How the shards are read."""
    return ReadSpec(
        schema=prepared.schema,
        size=UnitSize(rows=config.unit.rows, bytes=config.unit.bytes),
        max_row_bytes=config.source.max_row_bytes,
        columns=config.source.columns,
    )


def prepare_spec(config: RunConfig, prepared: Prepared) -> PrepareSpec:
    """What turns rows into prompts."""
    return PrepareSpec(
        job=config.job.name,
        messages=config.job.messages,
        fields=prepared.fields.fields if prepared.fields else (),
        rules=prepared.fields.rules if prepared.fields else None,
        ladder=config.job.ladder,
        model=prepared.model,
        max_model_len=prepared.engine.max_model_len,
        sampling=prepared.sampling,
        fingerprint=prepared.fingerprint.digest,
    )


def carry_spec(config: RunConfig, prepared: Prepared, committed: Committed | None = None) -> CarrySpec:
    """Where answers are taken over from; with dedup=output from all that is `committed` under this fingerprint."""
    ours = (
        receipt.data_file
        for receipt in (committed.current() if committed and config.dedup == "output" else ())
        if receipt.data_file and receipt.rows_ok and receipt.fingerprint == prepared.fingerprint.digest
    )
    return CarrySpec(
        sink_uri=prepared.sink_uri,
        outputs=(*prepared.contract.schema.names, *(field.name for field in prepared.marks)),
        retry=None if config.retry_errors is True else config.retry_errors or (),
        earlier=tuple(ours),
    )
