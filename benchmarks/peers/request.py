"""What every side is asked: the same rows, model, engine settings and sampling. A process gets it as JSON."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.vllm_settings import engine_args, environment
from benchmarks.bare_engine import settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Rows to be answered. Plain values alone: it travels as JSON."""

    corpus: str  # a folder of Parquet with the columns `system` and `user`
    answers: str  # a folder that is not there yet
    rows: int
    model: str  # a folder
    engine: Mapping[str, Any]  # arguments of vLLM's EngineArgs
    env: Mapping[str, str]  # of the process, so that its engine computes as the pipeline's does
    at_once: int  # rows that the engine takes at once
    max_tokens: int
    choices: tuple[str, ...]  # the only answers there are; empty: any text

    @classmethod
    def of(cls, words: list[str], rows: int, answers: Path) -> "Request":
        """The request that these words of the pipeline's command line make."""
        config, engine = settings([*words, f"sink.uri={answers}-unused"])
        args = {key: value for key, value in engine_args(engine).items() if value is not None}
        env = environment(engine)
        # Each side runs the engine as it does: in a process of its own, with or without its counters.
        for own in ("model", "distributed_executor_backend", "disable_log_stats"):
            args.pop(own, None)
        env.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        output = config.job.output
        return cls(
            corpus=config.source.uri,
            answers=str(answers),
            rows=rows,
            model=engine.model,
            engine=args,
            env=env,
            at_once=engine.max_num_seqs,
            max_tokens=config.job.sampling.max_tokens,
            choices=tuple(output.labels) if output.kind == "labels" else (),
        )

    @classmethod
    def from_command_line(cls) -> "Request":
        """The request whose JSON is the process's only argument."""
        plain = json.loads(sys.argv[1])
        return cls(**plain | {"choices": tuple(plain["choices"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def structured(self) -> dict[str, Any]:
        """What constrains an answer, as vLLM's clients say it; empty: nothing does."""
        return {"structured_outputs": {"choice": list(self.choices)}} if self.choices else {}

    def flags(self) -> list[str]:
        """The engine's settings as vLLM's own commands take them."""
        words = ["--model", self.model]
        for key, value in self.engine.items():
            name = f"--{key.replace('_', '-')}"
            if isinstance(value, bool):
                words += [name if value else name.replace("--", "--no-", 1)]
            else:
                words += [name, json.dumps(value) if isinstance(value, dict) else str(value)]
        return words
