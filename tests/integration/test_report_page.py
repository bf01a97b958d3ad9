"""The report in a browser: what axe finds, light and dark, wide and on a phone. Needs chromium, and npm for axe-core.

pytest -m slow tests/integration/test_report_page.py
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipelines.accounts import report
from pipelines.accounts.quality import Measures
from pipelines.accounts.quality_files import at_the_end
from pipelines.sink.measures import Confident, Counts
from tests.report_outputs import ended, opened, two_units, unit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("npm")), reason="needs chromium and npm, of Debian"
    ),
]
AXE = "axe-core@4.14.1"
RUNS = ("20261101T000000Z-aaaaaa", "20261102T000000Z-bbbbbb")
SIZES = {"wide": "1400,1000", "phone": "390,844"}
SCHEMES = {"dark": 0, "light": 1}  # of Blink's setting
# Where the page's own policy is in the way of axe, it is taken out of the copy that axe looks at.
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
ASK = """axe.run(document, {resultTypes: ["violations"]}).then(found => {
  const told = document.createElement("pre");
  told.id = "axe";
  told.textContent = JSON.stringify({violations: found.violations, passes: found.passes.length});
  document.body.replaceChildren(told);
});"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("npm")
    subprocess.run(("npm", "install", "--prefix", folder, "--no-audit", AXE), check=True, capture_output=True)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a second run: dead letters, drift, classes, calibration, and the run before beside it."""
    sink = tmp_path_factory.mktemp("reported") / "sink"
    for run, good in zip(RUNS, (90, 50), strict=True):
        output = opened(sink)
        counts = Counts(
            rows=100,
            labels={"label": {"good": good, "bad": 100 - good}},
            confidence=(Confident(), Confident(100, 80_000_000, 50, 40_000_000, 30)),
            confusion={"good": {"good": 30, "bad": 10}, "bad": {"bad": 10}},
        )
        told = unit(sink, run, 0, ["good"] * 100, shard=f"{run}.jsonl", measures=counts.to_json())
        measures = Measures.of([told])
        found = at_the_end(str(sink), run, job="classify", model="m", fingerprint="f", measures=measures)
        ended(sink, output, run, [told, *two_units(sink, run)], quality=found)
    return report.made(str(sink), RUNS[1], other=RUNS[0])


def looked_at(page: str, axe: str, folder: Path, *, size: str, scheme: int) -> dict[str, Any]:
    """What axe says of the page."""
    copy = folder / "page.html"
    body, scripts = POLICY.sub("", page), f"<script>{axe}</script><script>{ASK}</script>"
    copy.write_text(body.replace("</body>", f"{scripts}</body>"), "utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}")
    done = subprocess.run(
        (
            *("chromium", *options, f"--window-size={size}", f"--blink-settings=preferredColorScheme={scheme}"),
            *("--virtual-time-budget=60000", "--dump-dom", copy.as_uri()),
        ),
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    (told,) = re.findall(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)
    found: dict[str, Any] = json.loads(html.unescape(told))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_against_the_page(page: str, axe: str, tmp_path: Path, size: str, scheme: str) -> None:
    found = looked_at(page, axe, tmp_path, size=SIZES[size], scheme=SCHEMES[scheme])

    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found["violations"]] == []
    assert found["passes"] > 20


def test_axe_would_find_a_text_that_cannot_be_read(page: str, axe: str, tmp_path: Path) -> None:
    pale = page.replace("<body", '<body style="color: #fefefe; background: #ffffff"', 1)

    found = looked_at(pale, axe, tmp_path, size=SIZES["wide"], scheme=SCHEMES["light"])

    assert "color-contrast" in {one["id"] for one in found["violations"]}
