"""Set-up: what a machine lacks is one line each, pip's settings reach uv, what is there is left alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from requirements import install
from requirements.install import lacking, settings_for_uv

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What set-up needs of a checkout, in a folder whose name has a blank."""
    made = tmp_path / "a checkout"
    shutil.copytree(ROOT / "requirements", made / "requirements")
    shutil.copy(ROOT / "Makefile", made)
    return made


def make(checkout: Path, *arguments: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "PATH": path or os.environ["PATH"]}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # these tests may run below `make test`
        environ.pop(name, None)
    command = [str(shutil.which("make")), "--no-print-directory", "-C", str(checkout), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_too_little_disk_is_one_line_with_what_there_is_and_what_is_needed(tmp_path: Path) -> None:
    (line,) = lacking(tmp_path, needed_disk_gib=1e6, needed_memory_gib=0)

    free_gib = shutil.disk_usage(tmp_path).free / 2**30
    said = re.fullmatch(rf"{re.escape(str(tmp_path))} has ([0-9.]+) GiB of disk left, 1e\+06 GiB are needed.*", line)
    assert said and abs(float(said[1]) - free_gib) < 1  # others write to the disk meanwhile


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    (line,) = lacking(tmp_path, needed_disk_gib=0, needed_memory_gib=1e6)

    assert "GiB of memory, 1e+06 GiB are needed" in line


def test_a_python_without_venv_is_one_line_that_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    (line,) = lacking(tmp_path, needed_disk_gib=0, needed_memory_gib=0)

    assert "install the package python3.11-venv" in line


def test_what_pip_is_told_uv_is_told_and_the_environment_wins_over_files() -> None:
    listed = "\n".join(
        [
            ":env:.find-links='/wheels /more wheels'",
            "global.find-links='/other'",
            "global.extra-index-url='file:///one file:///two'",
            "install.index-url='file:///main'",
            "global.timeout='60'",
            "download.index-url='file:///not for installing'",
        ]
    )

    assert settings_for_uv(listed, {}) == {
        "UV_FIND_LINKS": "/wheels,/more,wheels",
        "UV_EXTRA_INDEX_URL": "file:///one file:///two",
        "UV_DEFAULT_INDEX": "file:///main",
    }


def test_what_the_user_told_uv_stands() -> None:
    assert settings_for_uv("global.index-url='file:///pip'", {"UV_DEFAULT_INDEX": "file:///uv"}) == {}


@pytest.mark.parametrize(
    ("script", "said"), [("echo Python 3.12.1; test $1 = --version", "Python 3.12.1"), ("exit 127", "not there")]
)
def test_without_python_3_11_make_says_so_in_one_line(checkout: Path, tmp_path: Path, script: str, said: str) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "sed", "expand"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (tools / "python3").chmod(0o755)

    ended = make(checkout, "run", path=str(tools))

    lines = [line for line in ended.stderr.splitlines() if not line.startswith("make")]
    assert ended.returncode != 0
    assert len(lines) == 1
    assert lines[0].startswith(f"setup: Python 3.11 is needed, and python3 is {said}")
    assert not (checkout / ".venv").exists()
    assert make(checkout, "help", path=str(tools)).returncode == 0


def test_a_set_up_that_is_done_is_left_alone(checkout: Path) -> None:
    venv = checkout / ".venv"
    venv.mkdir()
    (venv / "installed").write_text(install.digest(checkout / "requirements" / "cpu.lock"))

    ended = make(checkout, "setup", f"PYTHON={sys.executable}")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert [path.name for path in venv.iterdir()] == ["installed"]


def test_after_a_set_up_that_broke_off_too_little_disk_is_told_as_before_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").touch()
    monkeypatch.setattr(install, "ROOT", checkout)
    monkeypatch.setattr(install, "NEEDED_DISK_GIB", 1e6)

    assert install.main() == 1
    assert "of disk left, 1e+06 GiB are needed" in capsys.readouterr().err


def test_help_lists_every_target_that_is_not_a_file() -> None:
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))

    ended = make(ROOT, "help")

    listed = [line.split()[1] for line in ended.stdout.splitlines()]
    assert sorted(listed) == sorted(phony.split()[1:])


def test_the_locks_name_no_place() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "/" not in text
        assert all("==" in line for line in text.splitlines())
