"""Fill .venv with what the lock names, once: `python3.11 requirements/install.py`, as `make setup` does.

Runs on a bare Python 3.11 with nothing but its standard library. It first says, a line each, what the machine lacks.
Packages come from wherever pip is configured to find them: pip's settings are handed on to uv, which is faster. A CPU
build of torch that is not found there comes from the index that uv knows as its CPU backend.
"""

import ast
import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.9"
NEEDED_DISK_GIB = 8.0  # measured: .venv and uv's cache 4.8, the model 0.5; the rest is for outputs and logs
NEEDED_MEMORY_GIB = 6.0
# pip's settings (several values divided by blanks), what uv calls them in its environment, and how it divides them.
PIP_TO_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "cert": ("SSL_CERT_FILE", " "),
}


def lacking(
    into: Path, needed_disk_gib: float = NEEDED_DISK_GIB, needed_memory_gib: float = NEEDED_MEMORY_GIB
) -> list[str]:
    """What this machine lacks for a virtual environment below the folder `into`, one line each."""
    lines = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        lines.append("this Python 3.11 cannot make virtual environments: install the package python3.11-venv")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        lines.append(f"vLLM's CPU build is for Linux on x86_64, this is {sys.platform} on {platform.machine()}")
        return lines
    free_gib = shutil.disk_usage(into).free / 2**30
    if free_gib < needed_disk_gib:
        lines.append(f"{into} has {free_gib:.1f} GiB of disk left, {needed_disk_gib:g} GiB are needed: free some")
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if memory_gib < needed_memory_gib:
        lines.append(f"this machine has {memory_gib:.1f} GiB of memory, {needed_memory_gib:g} GiB are needed")
    return lines


def held_gib(folder: Path) -> float:
    """What lies below `folder` already."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 2**30


def settings_for_uv(pip_config: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that tell uv what `pip config list` printed; what the user told uv already stands.

    `environ` is the environment in which uv will run; nothing in it is overwritten.
    """
    found: dict[str, str] = {}
    rank = {"global": 0, "install": 1, ":env:": 2}  # where pip has a setting twice, the later of these wins
    lines = [line.partition("=") for line in pip_config.splitlines() if "=" in line]
    for key, _, value in sorted(lines, key=lambda line: rank.get(line[0].rpartition(".")[0], -1)):
        section, _, name = key.rpartition(".")
        if section in rank and name in PIP_TO_UV:
            variable, divider = PIP_TO_UV[name]
            found[variable] = divider.join(str(ast.literal_eval(value)).split())
    return {name: value for name, value in found.items() if name not in environ}


def fill(venv: Path, lock: Path) -> None:
    """Make the virtual environment `venv` hold what `lock` names and nothing else; seconds where it does already."""
    python = str(venv / "bin" / "python")
    if not (venv / "bin" / "pip").exists():  # the last thing that the next line makes
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", UV], check=True)
    environ = uv_environment(pip)
    uv = [python, "-m", "uv", "pip"]
    torch = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    probe = [*uv, "install", "--python", python, "--dry-run", "--no-deps", "--quiet", torch]
    configured = subprocess.run(probe, env=environ, capture_output=True, check=False).returncode == 0
    backend = [] if configured else ["--torch-backend", "cpu"]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]  # else a log gets a line for each package
    subprocess.run([*uv, "sync", "--python", python, *quiet, *backend, str(lock)], env=environ, check=True)
    server = ["--no-deps", "--target", str(venv / "job-server"), "-r", str(lock.with_name("job-server.lock"))]
    subprocess.run([*uv, "install", "--python", python, *quiet, *server], env=environ, check=True)


def digest(lock: Path) -> str:
    """Of all that says what is installed."""
    return hashlib.sha256(lock.read_bytes() + lock.with_name("job-server.lock").read_bytes() + UV.encode()).hexdigest()


def uv_environment(pip: list[str]) -> dict[str, str]:
    """The environment in which uv finds what the command `pip` finds."""
    listed = subprocess.run([*pip, "config", "list"], check=True, capture_output=True, text=True).stdout
    # As pip does, take a version from any index that has it, not only from the first that knows the name.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", **os.environ, **settings_for_uv(listed, os.environ)}


def main() -> int:
    """Fill .venv if it is not what the lock says, telling what is done; the exit code."""
    venv, lock = ROOT / ".venv", ROOT / "requirements" / "cpu.lock"
    stamp = venv / "installed"  # absent while the environment changes
    wanted = digest(lock)
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    # Whatever a set-up that broke off has left; with a stamp there is room, since another lock is installed already.
    if not stamp.is_file() and (lines := lacking(ROOT, NEEDED_DISK_GIB - held_gib(venv))):
        print("\n".join(f"setup: {line}" for line in lines), file=sys.stderr)
        return 1
    venv.mkdir(exist_ok=True)
    with (venv / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # `make run` and `make test` may begin together
        if stamp.is_file() and stamp.read_text() == wanted:
            return 0
        stamp.unlink(missing_ok=True)
        begun = time.monotonic()
        print("setup: installing requirements/cpu.lock into .venv, once: some minutes", flush=True)
        try:
            fill(venv, lock)
        except subprocess.CalledProcessError as error:
            print(f"setup: `{' '.join(map(str, error.cmd))}` failed; its message is above", file=sys.stderr)
            return 1
        stamp.write_text(wanted)
        print(f"setup: done in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
