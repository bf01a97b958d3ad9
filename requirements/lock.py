"""Resolve pyproject.toml anew into requirements/*.lock, keeping the pins that still fit: `make lock`.

The locks name versions alone, neither a registry's host nor a path: they hold wherever the packages come from.
image-*.lock are what the Dockerfile installs: the same pins without the tools of developers, and what a cluster needs.
job-server.lock is what of that cpu.lock has not: for the tests' one Ray with a job server, in a folder of its own, for
every Ray beside it would start an agent that takes 2.4 s of CPU longer to load.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from requirements.install import uv_environment

HERE = Path(__file__).resolve().parent
OVERRIDES = ["--override", str(HERE / "overrides.txt")]
LOCKS = {
    "cpu": [*OVERRIDES, "--extra", "cpu", "--extra", "demo", "--extra", "quality", "--extra", "dev"],
    "gpu": ["--extra", "gpu", "--extra", "quality", "--extra", "dev"],
    "image-cpu": [*OVERRIDES, "--extra", "cpu", "--extra", "demo", "--extra", "cluster"],
    "image-gpu": ["--extra", "gpu", "--extra", "cluster"],
}
PLATFORM = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
NAMES_NO_PLACE = ["--no-emit-find-links", "--no-emit-index-url", "--no-annotate", "--no-header"]

environ = uv_environment([sys.executable, "-m", "pip"])
for name, options in LOCKS.items():
    compile_lock = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *PLATFORM, *NAMES_NO_PLACE, *options]
    output = HERE / f"{name}.lock"
    if name.startswith("image-"):  # uv keeps the pins that it finds in its output: those just tested
        shutil.copy(HERE / f"{name.removeprefix('image-')}.lock", output)
    subprocess.run([*compile_lock, str(HERE.parent / "pyproject.toml"), "-o", str(output)], env=environ, check=True)
image, ours = ((HERE / f"{name}.lock").read_text().splitlines() for name in ("image-cpu", "cpu"))
(HERE / "job-server.lock").write_text("".join(f"{line}\n" for line in image if line not in ours))
