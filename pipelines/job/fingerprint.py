"""Fingerprint: all that changes an answer. Row key: the fingerprint and one rendered prompt.

Batch sizes, replicas, prices and tracking are not in it: they change when and where a row is answered, not how.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from actors.engine import EngineConfig
from pipelines.config import JobConfig, LadderConfig, SamplingConfig
from pipelines.job.row_order import Rules, canonical

FIELD_ORDER = "field order"  # the part that names job.fields as prompts print them, a JSON list, or the rules for it
KEY_BYTES = 16  # of a row key: two of 10^9 rows share one by chance with a probability of 10^-21


@dataclass(frozen=True)
class Fingerprint:
    """The parts, by the name that people know them under, and one digest of them all."""

    parts: dict[str, str]

    @property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint(
    job: JobConfig,
    *,
    engine: EngineConfig,
    model_identity: str,
    chat_template: str,
    adapter: str | None = None,
    long_above: int | None = None,
    rules: Rules | None = None,
) -> Fingerprint:
    """What an answer to a prompt of this job depends on. `job.fields` stand as they are printed, or go by `rules`.

    `model_identity` and `long_above` are those of `ModelFiles`, `adapter` that of its adapter; `chat_template` is
    `Chat.identity`, which covers the tokenizer.
    The seed counts only where sampling draws. The engine's kind counts: a simulated answer is no model's answer.
    """
    parts = {
        "prompt template": _canonical([[message.role, message.content] for message in job.messages]),
        "output contract": _canonical(_contract(job)),
        "sampling": _canonical(_sampling(job)),
        "engine": engine.kind,
        "model": model_identity,
        "chat template": chat_template,
        "precision": engine.dtype,
        "quantization": engine.quantization or "none",
        "kv cache": engine.kv_cache_dtype,
    }
    if adapter is not None:
        parts["adapter"] = adapter
    if long_above is not None:
        parts["context"] = "long" if engine.max_model_len > long_above else "short"
    if job.fields:
        parts[FIELD_ORDER] = canonical(job.fields if rules is None else rules)
    if job.ladder != LadderConfig():
        parts["ladder"] = _canonical(asdict(job.ladder))
    if job.sampling.temperature > 0:
        parts["seed"] = str(engine.seed)
    return Fingerprint(parts)


def _sampling(job: JobConfig) -> dict[str, object]:
    """The settings, those without effect as their defaults: to change one of them must not cost a new answer."""
    without_effect = set()
    if job.output.kind == "labels":
        without_effect.add("max_tokens")  # as many as the longest label takes
    if job.sampling.temperature == 0:
        without_effect |= {"top_p", "top_k"}  # the likeliest token is taken, whichever others there are
    defaults = asdict(SamplingConfig())
    return {name: defaults[name] if name in without_effect else set_to for name, set_to in asdict(job.sampling).items()}


def _contract(job: JobConfig) -> dict[str, object]:
    output = job.output
    if output.kind == "labels":
        return {"kind": "labels", "labels": list(output.labels)}
    if output.kind == "json":
        return {"kind": "json", "schema": output.json_schema}
    return {"kind": "text", "column": output.column}


def _canonical(value: object) -> str:
    # The order of keys is kept: that of a JSON schema's properties is the order in which the model writes them.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """A line for each part that differs, for people; empty if none does."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before != after:
            same = sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before or "", after or "", strict=False))
            )
            start = max(0, same - 20)
            lines.append(f"{name}: {_shown(before, start)} is now {_shown(after, start)}")
    return lines


def _shown(part: str | None, start: int, chars: int = 100) -> str:
    if part is None:
        return "absent"
    end = start + chars
    return f"{'…' if start else ''}{part[start:end]}{'…' if end < len(part) else ''}"


def row_key(digest: str, token_ids: Sequence[int] | npt.NDArray[np.int32]) -> str:
    """The key of one prompt under a fingerprint: 32 hex digits."""
    ids = np.ascontiguousarray(token_ids, np.dtype("<i4"))
    return hashlib.blake2b(ids.data, key=bytes.fromhex(digest), digest_size=KEY_BYTES).hexdigest()
