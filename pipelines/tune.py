"""Find batch sizes for this model, hardware and job: python -m pipelines.tune +job=NAME [key=value …]

Takes what `pipelines.run` takes. Each candidate answers further rows of the corpus, as a run of its own with a higher
source.limit: its answers are in the output like any other's, and are not asked again. One that dies is a result, too.
The sizes that were best are kept for later runs of this job on this hardware with batching=continuous.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.table import Table

from pipelines import storage, tuned
from pipelines.accounts.limits import kv_capacity
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray
from pipelines.accounts.shape import numbers_of
from pipelines.ahead import look_ahead
from pipelines.cli import command_with_keys
from pipelines.cluster import detect_on_cluster, started_ray
from pipelines.config import STRICT, Exit, RunConfig, RunFailed, UserError
from pipelines.draw import draw
from pipelines.engine_choice import detect, device_name
from pipelines.job.model import cache_dir
from pipelines.machine import machine
from pipelines.preparation import Prepared, survey
from pipelines.specs import carry_spec, cluster_address, prepare_spec, read_spec
from pipelines.tuning import Sizes, Trial, best, first_sizes, noise, search

KEYS = {
    "tune.batches": "rows that each candidate answers, times its max_num_seqs (8)",
    "tune.most_seqs": "max_num_seqs at most (1024)",
    "tune.most_tokens": "max_num_batched_tokens at most (32768)",
    "tune.compare": "also try batching=static and dynamic with the best size (true)",
}
EXITS = {
    Exit.DONE: "tuned; the sizes are kept for later runs",
    Exit.FAILED: "no candidate lived, or the corpus has too few rows left",
    Exit.USAGE: "bad usage or config; nothing was started",
    Exit.STOPPED: "stopped; what was answered is committed",
}
CLUSTER_S = 60.0  # for a GPU of a busy cluster to tell what it is
DRAWN = 200  # rows, for the lengths that the first candidate goes by
FEWEST_ROWS = 32  # of a candidate, however small its batches: fewer differ too much in length


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Tuned:
    # The same for all: the last rows of a candidate decode in a batch that is not full any more, which takes the same
    # share of its time then, and favours none.
    batches: Annotated[int, Field(ge=1)] = 8
    most_seqs: Annotated[int, Field(ge=1)] = 1024
    most_tokens: Annotated[int, Field(ge=64)] = 32768
    compare: bool = True


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TuneKeys:
    """What tune is told besides what a run is told."""

    tune: Tuned = field(default_factory=Tuned)


def tune(config: RunConfig, asked: TuneKeys) -> Exit:
    """Try sizes, keep the best, and show what each reached."""
    if config.batching.mode != "continuous" or config.batching.max_num_seqs or config.batching.max_num_batched_tokens:
        raise UserError("tune finds the sizes of batching=continuous itself: leave batching=… out")
    with quiet_ray(Path("out") / "logs" / "tune.log") as ray_options, Progress() as progress, ExitStack() as ended:
        local = not cluster_address(config)
        if not local:  # the hardware that counts is the cluster's
            ended.enter_context(started_ray(config, ray_options))
        hardware = detect if local else partial(detect_on_cluster, CLUSTER_S)
        prepared = survey(config, hardware=hardware, doing=progress.doing)
    most = Sizes(max_num_seqs=asked.tune.most_seqs, max_num_batched_tokens=asked.tune.most_tokens)
    first = _first(config, prepared, most)
    rows = _Rows(config, prepared)
    words = [word for word in sys.argv[1:] if not _own(word)]

    def measure(sizes: Sizes, batching: Batching = CONTINUOUS) -> Trial:
        limit = rows.next(max(FEWEST_ROWS, asked.tune.batches * sizes.max_num_seqs))
        return _tried(words, sizes, batching, limit, prepared)

    trials = search(measure, first, most)
    found = best(trials)
    shown = [(CONTINUOUS, trial) for trial in trials]
    if found is None or found.tokens_per_s is None:
        _show(shown, None)
        raise RunFailed(f"no candidate lived; the last one: {trials[-1].why if trials else 'none was tried'}")
    if asked.tune.compare:
        shown += [(each, measure(found.sizes, each)) for each in _others(found.sizes)]
    _show(shown, found.sizes)
    says = tuned.holds_for(config, prepared.engine, device=device_name(prepared.hardware))
    at = datetime.now(UTC).isoformat(timespec="seconds")
    file = tuned.keep(cache_dir(), says, found.sizes, tokens_per_s=found.tokens_per_s, at=at)
    print(f"two runs of one size differed by {100 * (noise(trials) - 1):.1f} %")  # noqa: T201
    print(f"kept for later runs of {config.job.name} here: {file}")  # noqa: T201
    print(f"elsewhere: {' '.join(_overrides(found.sizes))}")  # noqa: T201
    return Exit.DONE


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How a candidate batches."""

    mode: str
    batch_rows: int | None = None  # None: one by one


CONTINUOUS = Batching(mode="continuous")


def _others(sizes: Sizes) -> list[Batching]:
    """What continuous batching is compared with: batches that fill the engine, and such of which four are in it."""
    rows = sizes.max_num_seqs
    return [Batching(mode="static", batch_rows=rows), Batching(mode="dynamic", batch_rows=max(1, rows // 4))]


class _Rows:
    """The rows that candidates answer, one after the other, in the corpus's own order."""

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        committed = prepared.ledger.committed()
        if not prepared.changes(committed).todo:
            raise UserError(
                f"every row of {config.source.uri} has its answer in {config.sink.uri} already, and tune answers rows: "
                "give another sink.uri"
            )
        self._upto = sum(receipt.rows_in for receipt in committed.current())
        self._most = config.source.limit or sys.maxsize

    def next(self, rows: int) -> int:
        """The source.limit with which a run answers so many more."""
        if self._upto >= self._most:
            raise RunFailed(f"source.limit={self._most} leaves no rows for another candidate: raise it")
        self._upto = min(self._most, self._upto + rows)
        return self._upto


def _first(config: RunConfig, prepared: Prepared, most: Sizes) -> Sizes:
    """Where to start: by the model's KV memory where its sizes are known, else by the model's own setting."""
    engine, on = prepared.engine, machine(prepared, measure=False)
    if on.shape is None or on.device is None:
        own = Sizes(max_num_seqs=engine.max_num_seqs, max_num_batched_tokens=engine.max_num_batched_tokens)
        return own if own.within(most) else most
    weight = on.shape.weight_bytes(numbers_of(engine.dtype, prepared.model.quantization), engine.dtype)
    tokens = _tokens_per_row(config, prepared)
    return first_sizes(kv_capacity(on.shape, on.device, engine, weight), tokens, most)


def _tokens_per_row(config: RunConfig, prepared: Prepared) -> float:
    """Mean prompt tokens of some rows, and those of the longest answer."""
    committed = prepared.ledger.committed()
    read = read_spec(config, prepared)
    ahead = look_ahead(
        prepared.changes(committed),
        (),
        shards=len(prepared.shards),
        size=read.size,
        max_row_bytes=config.source.max_row_bytes,
        seed=config.seed,
        retry=(),
    )
    drawn = draw(
        ahead.counted,
        DRAWN,
        config.seed,
        read=read,
        spec=prepare_spec(config, prepared),
        carry=carry_spec(config, prepared),
    )
    mean = float(drawn.prompt_tokens.mean()) if len(drawn.prompt_tokens) else prepared.engine.max_model_len / 2
    return mean + prepared.sampling.max_tokens


def _overrides(sizes: Sizes) -> list[str]:
    return [
        f"batching.max_num_seqs={sizes.max_num_seqs}",
        f"batching.max_num_batched_tokens={sizes.max_num_batched_tokens}",
    ]


def _tried(words: Sequence[str], sizes: Sizes, batching: Batching, limit: int, prepared: Prepared) -> Trial:
    """What one candidate reached, in a process of its own: what kills it is its result."""
    overrides = [f"source.limit={limit}", f"batching={batching.mode}", *_overrides(sizes)]
    if batching.batch_rows:
        overrides.append(f"batching.batch_rows={batching.batch_rows}")
    before = set(_manifests(prepared.sink_uri))
    tokens = f"{sizes.max_num_batched_tokens:,} tokens"
    print(f"trying {batching.mode}, {sizes.max_num_seqs} rows, {tokens}", file=sys.stderr)  # noqa: T201
    ended = subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-m", "pipelines.run", *words, *overrides], capture_output=True, text=True, check=False
    )
    if ended.returncode == Exit.STOPPED:
        raise KeyboardInterrupt
    lines = ended.stderr.strip().splitlines()
    if ended.returncode not in (Exit.DONE, Exit.TOO_MANY_ERRORS):
        return Trial(sizes=sizes, tokens_per_s=None, why=lines[-1] if lines else f"exit {ended.returncode}")
    rates = (_tokens_per_s(uri) for uri in set(_manifests(prepared.sink_uri)) - before)
    rate = next(filter(None, rates), None)
    if rate is None:
        raise RunFailed("the corpus has no rows left for another candidate: tune on more rows, or lower tune.batches")
    return Trial(sizes=sizes, tokens_per_s=rate)


def _manifests(sink_uri: str) -> list[str]:
    runs = storage.listing(storage.join(sink_uri, "runs"), missing_ok=True)
    return [stored.uri for stored in runs if stored.path.endswith("/manifest.json")]


def _tokens_per_s(manifest_uri: str) -> float | None:
    """Prompt and output tokens in a second in which an engine had rows in it; None: the run asked none.

    Not of the run's steady time, which begins and ends with a look of the driver's and holds the last unit's commit.
    """
    summary: dict[str, Any] | None = json.loads(storage.get(manifest_uri))["summary"]
    done = summary["this_run"] if summary else {"device_seconds": 0}
    seconds = float(done["device_seconds"])
    return (done["prompt_tokens"] + done["output_tokens"]) / seconds if seconds else None


def _show(trials: Sequence[tuple[Batching, Trial]], chosen: Sizes | None) -> None:
    table = Table("batching", "batch_rows", "max_num_seqs", "max_num_batched_tokens", "tokens/s", "", box=None)
    for batching, trial in trials:
        said = f"{trial.tokens_per_s:,.0f}" if trial.tokens_per_s else "-"
        mark = "best" if batching == CONTINUOUS and trial.sizes == chosen else "died" if trial.why else ""
        sizes, batch = trial.sizes, f"{batching.batch_rows:,}" if batching.batch_rows else ""
        table.add_row(batching.mode, batch, f"{sizes.max_num_seqs:,}", f"{sizes.max_num_batched_tokens:,}", said, mark)
    Console().print(table)
    for why in dict.fromkeys(trial.why for _, trial in trials if trial.why):
        print(f"died of: {why}")  # noqa: T201


def _own(word: str) -> bool:
    """Whether tune sets this part of the command line itself, or it is for tune alone."""
    key = word.lstrip("+~").split("=")[0]
    return key in KEYS or key == "source.limit" or key.split(".")[0] == "batching"


if __name__ == "__main__":
    command_with_keys(tune, TuneKeys, doc=__doc__ or "", keys=KEYS, exits=EXITS)
