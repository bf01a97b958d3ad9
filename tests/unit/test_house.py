"""The house rules that a reader relies on: the map is true, imports follow the drawing, CPU stages stay light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "vllm")
OURS = sorted(path for top in ("pipelines", "actors", "demo") for path in (ROOT / top).rglob("*.py"))


def files_of_the_house() -> set[str]:
    found = (path.relative_to(ROOT / "pipelines") for path in (ROOT / "pipelines").rglob("*.py"))
    return {str(path) for path in found if path.name != "__init__.py"}


def files_of_the_map() -> list[str]:
    """Files that the docstring of the package lists, below the folder that they stand under."""
    doc = ast.get_docstring(ast.parse((ROOT / "pipelines" / "__init__.py").read_text("utf-8"))) or ""
    listed, folder = [], ""
    for line in doc.splitlines():
        entry = re.match(r"( *)([a-z_0-9]+\.py|[a-z_]+/)\s", line)
        if entry and entry[2].endswith("/"):
            folder = entry[2]
        elif entry:
            folder = folder if len(entry[1]) >= 4 else ""
            listed.append(f"{folder}{entry[2]}")
    return listed


def test_the_map_lists_each_file_of_the_house_once_and_no_other() -> None:
    listed = files_of_the_map()

    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == files_of_the_house()


@pytest.mark.parametrize("path", OURS, ids=[str(path.relative_to(ROOT)) for path in OURS])
def test_a_module_says_what_it_is_about_and_asserts_nothing_of_its_users(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))

    if tree.body:
        assert ast.get_docstring(tree), "no docstring"
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


def test_imports_follow_the_drawing() -> None:
    # In a process of its own: it silences every logger that is there, for all tests that come after.
    lint = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run((lint, "--no-cache"), cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr


def test_neither_a_command_nor_a_cpu_stage_loads_torch_transformers_or_vllm() -> None:
    modules = [f"pipelines.{file.removesuffix('.py').replace('/', '.')}" for file in sorted(files_of_the_house())]
    modules += ["actors.engine", "actors.exchange", "actors.host", "actors.control", "actors.gpu_monitor"]
    script = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    script += f"print([name for name in {HEAVY!r} if name in sys.modules])"

    done = subprocess.run((sys.executable, "-c", script), cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.stderr == ""
    assert done.stdout == "[]\n"


def test_a_command_that_may_find_nothing_to_do_loads_neither_ray_nor_pandas_nor_mlflow() -> None:
    commands = ("run", "plan", "submit", "verify")
    script = f"import importlib, sys\nfor name in {commands!r}: importlib.import_module(f'pipelines.{{name}}')\n"
    script += "print([name for name in ('ray', 'pandas', 'mlflow') if name in sys.modules])"

    done = subprocess.run((sys.executable, "-c", script), cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.stderr == ""
    assert done.stdout == "[]\n"


def test_each_test_that_the_docs_name_exists() -> None:
    there = {path.name: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    functions = set(re.findall(r"def (test_\w+)\(", "\n".join(there.values())))
    missing = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for file, function in re.findall(r"`(?:[\w/]*/)?(test_\w+\.py)?(?:::)?(test_\w+)?`", page.read_text("utf-8")):
            known = function in re.findall(r"def (test_\w+)\(", there.get(file, "")) if file else function in functions
            if (file and file not in there) or (function and not known):
                missing.append(f"{page.name}: {file}::{function}")

    assert missing == []
