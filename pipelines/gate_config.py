"""What a candidate must hold before readers see it, with publish=gate, as a config says it (docs/gate.md)."""

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

OfTheAnswers = Literal[
    "accuracy",  # where the job names a gold column, 0..1
    "refusal_rate",  # of free text, 0..1
    "calibration_error",  # of confidences against gold, 0..1
    "main_language_share",  # of free text that is long enough, the share in the language that most of it is in, 0..1
    "same_language_share",  # of those, answered in the language of their input, 0..1
    "sentiment",  # mean polarity of answers in free text, -1..1
    "relevance",  # mean share of such an answer's words that its input has, 0..1
]
AgainstReaders = Literal[
    "labels_psi",  # these as they are, chance included
    "labels_js",  # bits, 0..1
    "lengths_js",
    "error_rate_change",  # against what readers see, -1..1
    "refusal_rate_change",
    "accuracy_change",
]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class GateLimit:
    """Between which values a figure passes, both included. None: no bound on that side."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("gate.limits: a limit says at_least, at_most or both")
        return self

    def breach(self, value: float) -> str | None:
        """The bound that `value` is beyond, as the config has it; None: it passes."""
        if self.at_least is not None and value < self.at_least:
            return f"at_least={self.at_least:g}"
        if self.at_most is not None and value > self.at_most:
            return f"at_most={self.at_most:g}"
        return None


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class GateConfig:
    """All that is looked at. None: that is not."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = 0.01  # dead letters among all rows of the candidate
    max_drift: Annotated[float, Field(ge=0)] | None = 0.25  # PSI of labels, lengths or confidence, where p < 0.01
    verify: bool = True  # every new file is read, and compared with its receipt row by row
    approval: bool = False  # a person has to approve of each candidate: pipelines.approve
    limits: dict[OfTheAnswers | AgainstReaders, GateLimit] = field(default_factory=dict)  # of the rows new to readers
