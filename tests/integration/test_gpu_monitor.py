"""GPU monitors as actors on a real Ray: one on each node that Ray says has GPUs, and what NVML tells there."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

DRIVER = """
import json, sys
import ray
from actors.gpu_monitor import gpu_usage, open_nvml, watch_gpus

ray.init(address="local", num_cpus=1, num_gpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False)
monitors = watch_gpus()
used = gpu_usage(monitors, timeout_s=120)
for monitor in monitors:
    ray.kill(monitor)
print(json.dumps([len(monitors), len(used), open_nvml() is None, len(gpu_usage(monitors, timeout_s=120))]))
"""


def told(num_gpus: int, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(num_gpus)],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_raylet_start_wait_time_s": "240"},
    )
    return done.stdout.strip()


def test_a_node_without_gpus_has_no_monitor_and_no_figures(tmp_path: Path) -> None:
    assert told(0, tmp_path).startswith("[0, 0, ")


def test_a_node_with_gpus_has_a_monitor_and_a_killed_one_or_a_missing_nvml_makes_its_figures_absent(
    tmp_path: Path,
) -> None:
    monitors, used, without_nvml, after_the_kill = json.loads(told(1, tmp_path))

    assert monitors == 1
    assert (used == 0) is without_nvml
    assert after_the_kill == 0
