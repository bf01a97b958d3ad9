"""The output contract: what constrains an answer, how it is read back, and the typed columns that come of it."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema
import pyarrow as pa

from actors.engine import Constraint
from pipelines.config import OutputConfig, UserError
from pipelines.job.json_types import Unfit, arrow_type, closed, fitted

# As many as vLLM reports unless it is told otherwise (max_logprobs). As many as there are labels would be too few:
# a label may begin with several tokens ("n", "ne", "negative").
ALTERNATIVES = 20
MAX_JSON_DEPTH = 64  # of an answer
SAME_LOGPROB = 1e-6  # two numbers that went through the same float are the same

Position = Sequence[tuple[str, float]]  # what could have stood there: text and log probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One answer, read: the values of its columns, or why it breaks the contract."""

    values: tuple[Any, ...] | None = None  # in the order of OutputContract.schema; None: there is an error
    error_type: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class OutputContract:
    """What the model must answer. Plain data: it crosses processes."""

    output: OutputConfig
    schema: pa.Schema  # the columns that an answer becomes, in order; all nullable
    constraint: Constraint
    alternatives: int  # tokens, with their log probabilities, to report for each output position

    @classmethod
    def of(cls, output: OutputConfig, *, job: str) -> "OutputContract":
        """The contract that a job's `output` states.

        Raises:
            UserError: the JSON schema is none, or has a part that no column can hold.
        """
        if output.kind == "labels":
            schema = pa.schema([("label", pa.string()), ("confidence", pa.float64())])
            return cls(output, schema, Constraint(choices=output.labels), ALTERNATIVES)
        if output.kind == "text":
            if not output.column:
                raise UserError(f"job {job}: output.column is empty; name the column that holds the answer")
            return cls(output, pa.schema([(output.column, pa.string())]), Constraint(), 0)
        where = f"job {job}: output.json_schema"
        document = closed(output.json_schema, where)
        fields = [
            pa.field(name, arrow_type(part, document, f"{where}.properties.{name}"))
            for name, part in document["properties"].items()
        ]
        return cls(output, pa.schema(fields), Constraint(json_schema=json.dumps(document, ensure_ascii=False)), 0)

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest answer there can be, its end token included; None: the contract does not bound it.

        A token is a byte of it at least, so a label is never cut off, however the model spells it.
        """
        return max(len(label.encode()) for label in self.output.labels) + 1 if self.output.kind == "labels" else None

    def read(
        self,
        text: str,
        finish_reason: str | None,
        token_logprobs: Sequence[float] = (),
        alternatives: Sequence[Position] = (),
    ) -> Verdict:
        """One answer as the values of its columns, or as a breach of the contract."""
        if self.output.kind == "text":
            return Verdict(values=(text,))
        if self.output.kind == "json":
            return self._read_json(text, finish_reason)
        if text not in self.output.labels:
            return _breach(_cut_or(finish_reason, f"the answer is none of the {len(self.output.labels)} labels"))
        return Verdict(values=(text, confidence(text, self.output.labels, token_logprobs, alternatives)))

    def _read_json(self, text: str, finish_reason: str | None) -> Verdict:
        try:
            document = json.loads(text, parse_constant=_no_constant)
            if _depth(document) > MAX_JSON_DEPTH:
                raise Unfit(f"it is nested deeper than {MAX_JSON_DEPTH}")
            problem = next(_validator(self.constraint.json_schema or "{}").iter_errors(document), None)
            if problem is not None:
                at = ".".join(map(str, problem.absolute_path)) or "its root"
                return _breach(f"the answer breaks the rule {problem.validator!r} of the JSON schema at {at[:400]}")
            return Verdict(values=tuple(fitted(document.get(field.name), field.type) for field in self.schema))
        except Unfit as error:
            return _breach(f"the answer does not fit its columns: {error}")
        except (ValueError, RecursionError):
            return _breach(_cut_or(finish_reason, "the answer is no JSON document"))


def _breach(error: str) -> Verdict:
    return Verdict(error_type="contract", error=error)


def _cut_or(finish_reason: str | None, otherwise: str) -> str:
    return f"{otherwise}: cut off at max_tokens" if finish_reason == "length" else otherwise


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _depth(document: Any) -> int:
    """Levels of nesting, without recursion: the answer may be as deep as a parser can take."""
    deepest = 0
    level = [document]
    while level:
        deepest += 1
        level = [
            child
            for part in level
            if isinstance(part, dict | list)
            for child in (part.values() if isinstance(part, dict) else part)
        ]
    return deepest


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema))


# ------------------------------------------------------------------------------------------------- confidence


def confidence(
    label: str, labels: tuple[str, ...], token_logprobs: Sequence[float], alternatives: Sequence[Position]
) -> float | None:
    """How probable `label` was among the labels alone, 0..1; None where the engine's report does not tell.

    Walk along the tokens of the answer. Where the text so far is s, a token t keeps the labels that start with
    s + t (the end token keeps s itself). With K(L) the tokens reported there that keep a label of the set L,

        confidence = product over positions of  sum over t in K({label}) of p(t)  /  sum over t in K(labels) of p(t)

    where p(t) = exp(log probability). Text that keeps no label is left out, so the figure is normalized over the
    labels whether or not the engine reports log probabilities after its constraint. It is exact where the labels
    part at their first token and all tokens that start a label are reported; else it is conditional on the way
    in which the answer was cut into tokens. Once s leaves one label only, every further factor is 1, so the report may
    end there.
    """
    if not alternatives or len(alternatives) != len(token_logprobs):
        return None
    kept = _kept(labels)
    so_far = ""
    product = 1.0
    for chosen, position in zip(token_logprobs, alternatives, strict=True):
        own = 0.0  # probability of all that keeps the label
        every = 0.0  # of all that keeps any
        step: str | None = None
        for text, logprob in position:
            key = (so_far, text)
            after = kept.get(key)
            if after is None:
                after = kept[key] = _keeps(labels, so_far, text)
            if after[0]:
                probability = math.exp(logprob)
                every += probability
                if label in after[0]:
                    own += probability
                    if abs(logprob - chosen) < SAME_LOGPROB:
                        step = after[1]
        if step is None and so_far == label:  # the end token, under whatever name
            own += math.exp(chosen)
            every += math.exp(chosen)
            step = so_far
        if step is None or every <= 0.0:
            return None
        so_far = step
        product *= own / every
    decided = so_far == label or [each for each in labels if each.startswith(so_far)] == [label]
    return min(product, 1.0) if decided else None


@functools.lru_cache(maxsize=16)
def _kept(labels: tuple[str, ...]) -> dict[tuple[str, str], tuple[frozenset[str], str]]:
    """A memory of `_keeps` for these labels: a job meets few different tokens at the places where labels stand."""
    return {}


def _keeps(labels: tuple[str, ...], so_far: str, text: str) -> tuple[frozenset[str], str]:
    """The labels still possible after `text`, and the text so far then."""
    if not text and so_far in labels:
        return frozenset({so_far}), so_far  # the end token
    stem = so_far + text.rstrip("\ufffd")
    if text and not text.endswith("\ufffd"):
        return frozenset(label for label in labels if label.startswith(stem)), stem
    # A token that ends within a character's bytes: shown as nothing or as U+FFFD until the character is whole.
    torn = (
        label for label in labels if label.startswith(stem) and len(label) > len(stem) and label[len(stem)] > "\x7f"
    )
    return frozenset(torn), stem
