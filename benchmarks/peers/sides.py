"""Each side: the same rows answered as its users would have them answered, and what is told of it."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, run_pipeline, watch
from benchmarks.peers.request import Request


class NotHere(Exception):
    """A peer that is not installed; with what would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is told of a side. None: it does not tell."""

    wall_s: float  # from the command to its end
    first_s: float | None  # from the command to the first answers that are on disk
    rows_per_s: float | None  # from the first row asked to the last one answered; of the pipeline, committed
    prefilled: int | None  # prompt tokens that the engine computed
    decoded: int | None  # tokens
    peak_mib: int  # of the largest process


def watched(command: list[str], answers: Path, env: Mapping[str, str] | None = None) -> tuple[Told, dict[str, Any]]:
    """How a process went that writes answers to a folder, and the JSON of its last line, if it ends with any.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    began, began_at = time.monotonic(), time.time()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as wrong:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **(env or {})}, stdout=said, stderr=wrong
        )
        peak: dict[str, int] = {}
        watcher = threading.Thread(target=watch, args=(process, peak))
        watcher.start()
        code = process.wait()
        watcher.join()
        wall_s = time.monotonic() - began
        said.seek(0)
        wrong.seek(0)
        if code:
            raise RuntimeError(f"{command[:4]} ended with {code}: {wrong.read()[-2000:].decode(errors='replace')}")
        lines = said.read().splitlines()
    own = json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else {}
    written = [file.stat().st_mtime for file in answers.rglob("*") if file.is_file()]
    told = Told(
        wall_s=wall_s,
        first_s=min(written) - began_at if written else None,
        rows_per_s=own.get("rows_per_s"),
        prefilled=own.get("prefilled"),
        decoded=own.get("decoded"),
        peak_mib=max(peak.values(), default=0) >> 20,
    )
    return told, own


def pipeline(words: list[str], rows: int, folder: Path) -> Told:
    """`python -m pipelines.run`."""
    side = run_pipeline(words, folder / "out")
    totals = side.summary["this_run"]
    if side.exit_code or totals["rows_ok"] != rows:
        raise RuntimeError(f"the pipeline ended with {side.exit_code}: {totals}")
    return Told(
        wall_s=side.wall_s,
        first_s=side.summary["first_commit_s"],
        rows_per_s=side.summary["rows_per_s"],
        prefilled=totals["prompt_tokens"] - totals["cached_tokens"],
        decoded=totals["output_tokens"],
        peak_mib=max(side.peak_rss_bytes.values()) >> 20,
    )


def llm_chat(words: list[str], rows: int, folder: Path) -> Told:
    """`vllm.LLM.chat` in one process, which neither reads nor writes nor survives anything."""
    request = json.dumps({"overrides": [*words, f"sink.uri={folder / 'unused'}"], "rows": rows})
    told, _ = watched([sys.executable, "-m", "benchmarks.bare_engine", request], folder / "none")
    return told


def run_batch(words: list[str], rows: int, folder: Path) -> Told:
    """`vllm run-batch`, which reads and writes JSONL."""
    from benchmarks.bare_engine import conversations, settings

    answers = folder / "answers"
    request = Request.of(words, rows, answers)
    config, _ = settings([*words, f"sink.uri={folder / 'unused'}"])
    with (folder / "batch.jsonl").open("w") as file:
        for number, messages in enumerate(conversations(config, rows)):
            body = {"model": request.model, "messages": messages, "temperature": 0, **request.structured}
            body["max_completion_tokens"] = request.max_tokens
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    answers.mkdir()
    paths = ["-i", str(folder / "batch.jsonl"), "-o", str(answers / "answers.jsonl")]
    entry = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch"]
    told, _ = watched([*entry, *paths, *request.flags(), "--enable-prompt-tokens-details"], answers, request.env)
    bodies = [json.loads(line)["response"]["body"] for line in (answers / "answers.jsonl").open()]
    used = [body["usage"] for body in bodies]
    _all_answered("run-batch", len(used), rows)
    cached = sum((usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0 for usage in used)
    return Told(
        wall_s=told.wall_s,
        first_s=told.first_s,
        rows_per_s=None,
        prefilled=sum(usage["prompt_tokens"] for usage in used) - cached,
        decoded=sum(usage["completion_tokens"] for usage in used),
        peak_mib=told.peak_mib,
    )


def _process(module: str) -> Callable[[list[str], int, Path], Told]:
    def side(words: list[str], rows: int, folder: Path) -> Told:
        request = Request.of(words, rows, folder / "answers")
        command = [sys.executable, "-m", f"benchmarks.peers.{module}", request.to_json()]
        told, own = watched(command, folder / "answers", request.env)
        _all_answered(module, own["rows"], rows)
        return told

    return side


def _all_answered(side: str, answered: int, rows: int) -> None:
    if answered != rows:
        raise RuntimeError(f"{side} answered {answered} of {rows} rows")


def daft(words: list[str], rows: int, folder: Path) -> Told:
    """Daft's `prompt`."""
    if importlib.util.find_spec("daft") is None:
        raise NotHere("daft is not installed: pip install daft==0.7.26")
    return _process("daft_prompt")(words, rows, folder)


SIDES: Mapping[str, Callable[[list[str], int, Path], Told]] = {
    "pipeline": pipeline,
    "LLM.chat": llm_chat,
    "run-batch": run_batch,
    "Ray Data LLM": _process("ray_data_llm"),
    "Daft": daft,
    "HTTP": _process("http_client"),
}
