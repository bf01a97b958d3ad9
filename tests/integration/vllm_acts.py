"""Scenes on the real engine, each in a process of its own: vLLM changes the environment of its process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo import model

ROOT = Path(__file__).parents[2]


def act(out: Path, script: str) -> Any:
    """Run the scenes of a script that lies here; what they saw."""
    model.make(model.folder())
    scenes = Path(__file__).with_name(script)
    log = out.with_suffix(".log")
    with log.open("wb") as lines:
        ended = subprocess.run(
            [sys.executable, scenes, model.folder(), out],
            stdout=lines,
            stderr=lines,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=1800,
        )
    assert ended.returncode == 0, log.read_text(errors="replace")[-3000:]
    return json.loads(out.read_text())
