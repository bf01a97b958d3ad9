"""The seam between the data plane and whatever answers prompts: Prompt, Answer, two errors, one method.

An engine promises no speed: a hosted batch API that answers after hours fits behind it as well.
Standard library only, so that CPU stages can import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


class BadPrompt(Exception):
    """Never answerable by this engine, whoever asks and however often: the row becomes a dead letter."""


class EngineLost(Exception):
    """The engine's process or device is gone, or it answers no more; what was in flight goes to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What an answer may look like. At most one of the two is set; with neither, any text goes."""

    choices: tuple[str, ...] = ()  # the answer is one of these, to the letter
    json_schema: str | None = None  # the answer is a JSON document valid under this schema (itself as JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question to an engine, already tokens: the chat template is applied, the length is checked."""

    key: str  # the row key: two prompts with one key have one answer
    token_ids: tuple[int, ...]
    sampling: Sampling
    constraint: Constraint = field(default_factory=Constraint)
    alternatives: int = 0  # how many tokens, with their log probabilities, to report for each output position


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A token that could have stood at a position of the answer, under the prompt's constraint."""

    text: str
    logprob: float  # natural logarithm, <= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine said, and what it counted. Token counts are the engine's own."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int  # all of them, cached ones included
    cached_tokens: int  # those whose prefill the engine's prefix cache saved
    output_tokens: int
    token_logprobs: tuple[float, ...] = ()  # of the chosen tokens; empty unless alternatives were asked for
    alternatives: tuple[tuple[Alternative, ...], ...] = ()  # for each output position, most probable first


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What an engine is doing right now. None: this engine cannot tell."""

    running: int
    waiting: int
    kv_usage: float | None = None  # 0..1
    kv_tokens: int | None = None  # that fit the KV memory
    preemptions: int | None = None  # since the start
    tokens: int | None = None  # prompt and output tokens since the start: stands still when the engine hangs
    drafted: int | None = None  # tokens that speculation has guessed since the start
    rejected: int | None = None  # of these, those that the model would not have written


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFaults:
    """How the simulated engine behaves: for tests of scale and of faults."""

    latency_s: float = 0.0  # mean time to answer a row
    latency_spread: float = 0.0  # 0..1, relative, drawn by the prompt's key
    start_s: float = 0.0  # time to load
    output_tokens: int = 4
    bad_token_id: int | None = None  # a prompt that holds it is a BadPrompt
    poison_token_id: int | None = None  # a prompt that holds it kills the engine
    hang_token_id: int | None = None  # a prompt that holds it is never answered
    die_every_rows: int | None = None  # the engine dies at each such row that it is asked, whichever it is
    kill_token_id: int | None = None  # a prompt that holds it kills the engine's process, by `kill_signal`
    kill_every_rows: int | None = None  # the process dies at each such row that it is asked, whichever it is
    kill_signal: Literal["SIGKILL", "SIGSEGV", "SIGABRT"] = "SIGKILL"
    stop_token_id: int | None = None  # a prompt that holds it stops the process: it hangs, and says nothing
    starts_file: str | None = None  # each start adds a line to this file, so that they can be counted
    crash_starts: int = 0  # so many starts, by the lines of `starts_file`, kill the process


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHere:
    """Where a model and its adapter lie on one node."""

    model: str  # a local folder, or a Hub id
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Guessing the next tokens from what was read and written, several of which one step of the model then checks.

    It gains where steps wait for memory, in small batches, and where answers repeat their prompts.
    """

    method: Literal["ngram", "suffix"]  # suffix needs arctic-inference beside vLLM
    tokens: int = 4  # guessed at a time
    lookup_min: int = 2  # ngram: tokens that must have occurred before, at least
    lookup_max: int = 4  # and at most


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All that an engine actor needs to open its engine. Plain values: it crosses processes."""

    kind: Literal["vllm", "simulated"]
    model: str  # a local folder, or a Hub id
    model_name: str  # as people call it
    revision: str | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    quantization: str | None = None  # as vLLM names it; None: what the checkpoint says
    kv_cache_dtype: str = "auto"
    max_model_len: int = 2048  # prompt and output tokens together
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    gpu_memory_utilization: float = 0.9  # 0..1
    kv_cache_gib: float = 1.0  # on CPU, where there is no device memory to take a share of
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    chunked_prefill: bool | None = None  # a long prompt over several steps; None: as the engine does
    speculation: Speculation | None = None
    adapter: str | None = None  # a local folder with a LoRA adapter
    adapter_rank: int = 0
    own_process: bool | None = None  # vLLM's engine in a process of its own; None: on GPU, and with speculation
    enforce_eager: bool = False
    stop_when_decided: bool = True  # choices: an answer ends with the token after which only one is left
    block_size: int | None = None  # tokens of one KV block; None: the engine's default
    threads: int = 1  # CPU threads of an engine on CPU
    cores: tuple[int, ...] = ()  # that an engine on CPU keeps to; empty: any
    seed: int = 0
    start_timeout_s: float = 600.0
    env: Mapping[str, str] = field(default_factory=dict)  # set before the engine's libraries are imported
    simulated: SimulatedFaults = field(default_factory=SimulatedFaults)

    @property
    def devices(self) -> int:
        """GPUs that one engine is spread over."""
        return self.tensor_parallel * self.pipeline_parallel


class Engine(Protocol):
    """What answers prompts. It knows tokens; files, units and tables it does not."""

    async def answer(self, prompt: Prompt) -> Answer:
        """Answer one prompt. Calls overlap, and the engine batches what is in flight.

        Raises:
            BadPrompt: never answerable; its row becomes a dead letter, the engine goes on.
            EngineLost: process or device is gone; rows in flight go to another replica.
        """
        ...

    def load(self) -> EngineLoad:
        """What the engine is doing now; cheap, callable from any thread."""
        ...

    def close(self) -> None:
        """Free device and processes. Calls in flight end with EngineLost."""
        ...
