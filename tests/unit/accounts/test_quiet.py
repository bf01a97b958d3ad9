"""What our own modules say while a run shows its progress: on the terminal, and in the log that is named."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SAID = r"""
import logging, sys
from pathlib import Path
from pipelines.accounts.progress import Progress
from pipelines.accounts.quiet import quiet_ray, warnings_told

listing, replica = logging.getLogger("pipelines.listing"), logging.getLogger("actors.replica")
with quiet_ray(Path(sys.argv[1])) as ray_options, Progress(every_s=3600) as progress, warnings_told(progress.note):
    listing.warning("%s: skipped", "a\x1b[2Jb")
    replica.warning("the store said %s", "hf_SENTINELaaaabbbbccccdddd")
    listing.info("took over %d units", 7)
    listing.debug("not worth a line")
    assert "ray" not in sys.modules
    assert ray_options()["log_to_driver"] is False
    logging.getLogger("ray.data").warning("said by %s", "Ray Data")
    from ray._private import worker  # as Ray's own listener does with what a node tells
    worker.print_to_stdstream({"lines": ["10 processes"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
listing.info("after the run")
"""


def test_warnings_are_harmless_lines_on_the_terminal_and_all_is_in_the_log_without_secrets(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"

    done = subprocess.run(
        [sys.executable, "-c", SAID, str(log)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[:2] == [r"a\x1b[2Jb: skipped", "the store said ***"]
    assert len(done.stderr.splitlines()) == 3  # and the progress' own last line
    written = log.read_text()
    for said in (
        "WARNING pipelines.listing: a",
        "WARNING actors.replica: the store said ***",
        "took over 7 units",
        "raylet: 10 processes",
        "WARNING ray.data: said by Ray Data",
    ):
        assert said in written
    assert "SENTINEL" not in written
    assert "not worth a line" not in written
    assert "after the run" not in written
