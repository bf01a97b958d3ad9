"""Expected: rows and tokens that engines will be given, from the sample, the contract and what was answered before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.accounts.forecast import Between, EarlierRun, mean_between
from pipelines.accounts.limits import Work
from pipelines.accounts.probed import Probed
from pipelines.ahead import Ahead
from pipelines.config import RunConfig
from pipelines.draw import Drawn
from pipelines.job.chat import open_chat
from pipelines.preparation import Prepared
from pipelines.sink.receipt import Receipt

_FREE_TEXT = (0.1, 0.5, 1.0)  # of max_tokens: low, middle and high of answers that nothing bounds. Assumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Rows and tokens that engines will be given."""

    rows_sent: int  # of the rows to do, those that an engine is asked: not in error, not answered, not doubled
    prompt_tokens: Between
    cached_share: float | None  # of the prompt tokens, 0..1
    cached_words: str
    output_tokens: Between
    output_words: str


def expect(
    config: RunConfig,
    prepared: Prepared,
    ahead: Ahead,
    drawn: Drawn,
    asked: Sequence[Receipt],
    runs: Sequence[EarlierRun],
    probed: Probed | None = None,
) -> Expected:
    """What of the rows `ahead` will be sent. `asked`: receipts of this fingerprint; `runs`: those on this device."""
    once = config.dedup != "none"
    doubled, doubled_tokens = (drawn.duplicates, drawn.duplicate_tokens) if once else (0, 0)
    sent = len(drawn.prompt_tokens) - doubled
    rows = round(ahead.rows * sent / drawn.rows)
    mean = (float(drawn.prompt_tokens.sum()) - doubled_tokens) / sent
    low, high = drawn.interval() or (mean, mean)
    shift = mean / float(drawn.prompt_tokens.mean())
    each = Between(low=low * shift, middle=mean, high=high * shift)
    outputs, words = _output_tokens(config, prepared, asked, probed)
    before = [probed.whole] if probed else runs
    read = sum(run.prompt_tokens for run in before)
    if read:
        share: float | None = sum(run.cached_tokens for run in before) / read
        said = "as in the probe" if probed else "as in earlier runs"
    else:
        share = drawn.reuse.get(prepared.engine.block_size or 16)
        said = "as the sample shares prefixes; estimated"
    return Expected(
        rows_sent=rows,
        prompt_tokens=each.times(rows),
        cached_share=share,
        cached_words=said,
        output_tokens=outputs.times(rows),
        output_words=words,
    )


def _output_tokens(
    config: RunConfig, prepared: Prepared, asked: Sequence[Receipt], probed: Probed | None
) -> tuple[Between, str]:
    """Output tokens of a row, and what tells them."""
    most = prepared.sampling.max_tokens
    told = [(r.output_tokens / n, n) for r in asked if (n := r.rows_ok - r.rows_carried - r.rows_shared) > 0]
    told += probed.tokens_by_unit if probed else ()
    if told:
        found = mean_between([mean for mean, _ in told], [rows for _, rows in told])
        count = f"{sum(rows for _, rows in told):,} rows"
        return found, f"as {count} that were answered before" if asked else f"as {count} of the probe"
    if probed and probed.whole.rows:  # of which no unit came to its end
        mean = probed.whole.output_tokens / probed.whole.rows
        return Between.exactly(mean), f"as {probed.whole.rows:,} rows of the probe"
    if prepared.engine.kind == "simulated":
        labels = bool(prepared.contract.constraint.choices)  # one token each, whatever engine.simulated says
        return Between.exactly(1 if labels else min(most, prepared.engine.simulated.output_tokens)), "as simulated"
    if config.job.output.kind == "labels":
        return _label_tokens(config, prepared, most), "as the labels have; estimated"
    low, middle, high = (most * share for share in _FREE_TEXT)
    return Between(low=low, middle=middle, high=high), f"10 to 100 % of max_tokens={most:,}; assumed"


def _label_tokens(config: RunConfig, prepared: Prepared, most: int) -> Between:
    """A label's tokens and the one that ends an answer; where the engine stops as soon as it knows, as few as one."""
    tokenizer = open_chat(
        prepared.model.tokenizer_folder, prepared.model.vocab_size, prepared.model.chat_arguments
    ).tokenizer
    labels = tokenizer.encode_batch(list(config.job.output.labels), add_special_tokens=False)
    lengths = [min(most, len(label.ids) + 1) for label in labels]
    early = config.engine.stop_when_decided
    middle = float(np.mean(lengths))
    return Between(low=1.0 if early else min(lengths), middle=(1 + middle) / 2 if early else middle, high=max(lengths))


def work_of(expected: Expected, drawn: Drawn) -> Work:
    """The work of the rows that are sent, by the lengths of those drawn."""
    prompt = drawn.prompt_tokens
    cached = (prompt * (expected.cached_share or 0.0)).astype(np.int64)
    output = np.full(len(prompt), expected.output_tokens.middle / expected.rows_sent)
    return Work.of_rows(prompt, cached, output).times(expected.rows_sent / len(prompt))
