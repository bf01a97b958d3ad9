"""The report of a run, from a hand-made output: its figures are worked out by hand, no text of a corpus is obeyed."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines import storage
from pipelines.accounts import report
from pipelines.accounts.agreement import wilson
from pipelines.accounts.attribution import NS, Parts
from pipelines.accounts.quality import Measures
from pipelines.accounts.quality_files import at_the_end
from pipelines.accounts.report_data import Beside
from pipelines.accounts.report_page import SORT, shown
from pipelines.accounts.report_plots import bins
from pipelines.accounts.report_rows import EXAMPLES, FILES_READ, answers, examples
from pipelines.accounts.reuse import Reuse
from pipelines.cli import command_of_few_keys
from pipelines.config import Exit, UserError
from pipelines.report import EXITS, KEYS, ReportConfig, ReportSink
from pipelines.report import report as command
from pipelines.sink.measures import OUTSIDE, Confident, Counts
from tests.accounts_samples import PARTS, run_config
from tests.report_outputs import ended, opened, two_units, unit

FIRST, SECOND = "20261101T000000Z-aaaaaa", "20261102T000000Z-bbbbbb"
NOW = datetime(2026, 11, 20, tzinfo=UTC)


class Parsed(HTMLParser):
    """What a browser would find in a page: elements with their attributes, and the text of each table's rows."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.facts: dict[str, str] = {}
        self.text: list[str] = []
        self._in: list[str] = []
        self._name = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._in.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        where = self._in[-1] if self._in else ""
        if where in ("td", "th"):
            self.rows[-1][-1] += data
        elif where == "dt":
            self._name = data
        elif where == "dd":
            self.facts.setdefault(self._name, data)
        if where not in ("script", "style"):
            self.text.append(data)

    def row(self, first: str) -> list[str]:
        """The row that begins so, without its empty fields."""
        (found, *_) = [row for row in self.rows if row and row[0] == first]
        return [text for text in found if text]

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def verdict(page: str) -> str:
    found = re.search(r'<p class="verdict">(.*?)</p>', page)
    assert found is not None
    return re.sub(r"<[^>]*>", "", found[1])


@pytest.fixture
def sink(tmp_path: Path) -> Path:
    """An output with one ended run over `two_units`."""
    made = tmp_path / "sink"
    ended(made, opened(made), FIRST, two_units(made, FIRST))
    return made


def test_rows_and_verdict_are_those_of_the_ledger(sink: Path) -> None:
    page = report.made(str(sink), FIRST, now=NOW)

    assert verdict(page) == (
        "Done: 196 of 200 rows answered, 4 errors (2.0 %) in 5 min 30 s for $0.04, $0.976 per million tokens."
    )
    assert Parsed(page).facts | {"rows": "200 in = 196 ok + 4 errors", "units": "2"} == Parsed(page).facts


def test_the_waterfall_adds_up_and_a_million_tokens_cost_what_the_rule_of_cost_py_says(sink: Path) -> None:
    """400 s at $0.36 an hour are $0.04; 40,000 - 10,000 + 1,000 computed tokens bear it, 217 s of 400 usefully."""
    page = Parsed(report.made(str(sink), FIRST, now=NOW))

    spent = {
        "start-up": ["$0.00800", "20.0 %", "80.0"],
        "prefill": ["$0.02100", "52.5 %", "210.0"],
        "decode": ["$0.00070", "1.8 %", "7.0"],
        "idle": ["$0.00530", "13.2 %", "53.0"],
        "tail": ["$0.00400", "10.0 %", "40.0"],
        "shutdown": ["$0.00100", "2.5 %", "10.0"],
        "total": ["$0.04000", "100.0 %", "400.0"],
    }
    assert {name: page.row(name)[1:4] for name in spent} == spent
    assert sum(Decimal(page.row(name)[1][1:]) for name in spent if name != "total") == Decimal("0.04")
    assert page.row("billed")[1:4] == ["$0.968", "$1.29", "$0.976"]
    assert page.row("useful")[1:4] == ["$0.525", "$0.70", "$0.529"]
    assert page.facts["saved"] == "$0.007 by the prefix cache (estimated)"
    bars = re.findall(r'style="left:([\d.]+)%;width:([\d.]+)%"', report.made(str(sink), FIRST, now=NOW))[:6]
    assert bars[0] == ("0.00", "20.00")
    assert bars[1] == ("20.00", "52.50")


def test_accuracy_has_its_interval_and_labels_their_shares(sink: Path) -> None:
    page = Parsed(report.made(str(sink), FIRST, now=NOW))

    assert page.facts["accuracy"] == (
        "75.0 % (147 of 196 answered rows with a gold label; 95 % interval 68.5 % to 80.5 %, Wilson)"
    )
    assert page.row("bad")[1:] == ["147", "75.0 %"]
    assert page.row("good")[1:] == ["49", "25.0 %"]
    assert [round(end, 4) for end in wilson(0, 10)] == [0.0, 0.2775]
    assert [round(end, 4) for end in wilson(10, 10)] == [0.7225, 1.0]


def test_drift_classes_and_calibration_stand_in_the_section_about_answers(tmp_path: Path) -> None:
    """90 of 100 good, then 50: PSI 0.4 ln(0.5 / 0.1) + -0.4 ln(0.5 / 0.9) = 0.8789."""
    sink = tmp_path / "sink"
    for run, good in ((FIRST, 90), (SECOND, 50)):
        output = opened(sink)
        counts = Counts(
            rows=100,
            labels={"label": {"good": good, "<b>": 100 - good}},
            confidence=(Confident(), Confident(100, 80_000_000, 50, 40_000_000, 30)),
            confusion={"good": {"good": 30, "<b>": 10}, OUTSIDE: {"<b>": 10}},
        )
        told = unit(sink, run, 100 * (run == SECOND), ["good"] * 100, measures=counts.to_json())
        found = at_the_end(str(sink), run, job="classify", model="m", fingerprint="f", measures=Measures.of([told]))
        ended(sink, output, run, [told], quality=found)
    page = Parsed(report.made(str(sink), SECOND, now=NOW))

    assert page.facts["against"] == f"run {FIRST}, with 100 answered rows"
    assert page.row("values of label")[1:] == ["0.879", "0.1468", "< 0.0001", "another"]
    assert page.row("error rate")[1:] == ["+0.00 points"]
    assert page.facts["calibration"].startswith("confidences are 20.0 % off")
    # Of 40 expected 30 are so answered, and all 30 answers were so expected: F1 60 / 70
    good_row = next(row for row in page.rows if row[:3] == ["good", "40", "30"])
    assert (good_row[3], good_row[5], good_row[7]) == ("100.0 %", "75.0 %", "85.7 %")
    assert ["good", "<b>", "10"] in page.rows
    assert ["(another)", "<b>", "10"] in page.rows

    (sink / "runs" / SECOND / "quality.json").unlink()  # as if the run were killed: the ledger tells the counts
    page = Parsed(report.made(str(sink), SECOND, now=NOW))
    assert ["good", "<b>", "10"] in page.rows
    assert "against" not in page.facts


def test_errors_come_by_type_with_at_most_three_examples_of_each(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    output = opened(sink)
    dead = [("too_long", "too many tokens", f"text of {n}") for n in range(5)]
    ended(sink, output, FIRST, [unit(sink, FIRST, start, ["good"], dead=dead) for start in (0, 6, 12)])
    page = Parsed(report.made(str(sink), FIRST, now=NOW))

    assert page.row("too_long")[1:] == ["15", "83.3 %"]
    shown_rows = [row for row in page.rows if row[:2] == ["too_long", "a.jsonl"]]
    assert len(shown_rows) == EXAMPLES
    assert shown_rows[0] == ["too_long", "a.jsonl", "1", "too many tokens", "text of 0"]


def test_cached_tokens_lengths_and_providers_are_told_from_the_runs_own_tokens(sink: Path) -> None:
    page = Parsed(report.made(str(sink), FIRST, now=NOW))

    assert page.facts["prefix reuse"] == "25.0 %: 10,000 of 40,000 prompt tokens were cached"
    assert page.facts["output tokens of a row"].endswith("most 3")
    assert len(page.all("svg")) == 2  # two units are too few for speed over time
    micro = page.row("amazon.nova-micro-v1:0")
    # 40,000 tokens in at $0.0175 and 1,000 out at $0.07 a million, in a batch: a fiftieth of $0.04
    assert micro[1:2] + micro[3:5] == ["Bedrock", "$0.00077", "0.0"]
    assert "2026-11-23" in micro[-1]
    assert "This run's engine was simulated: its own cost says nothing of a model's." in page.text


def test_what_could_have_been_reused_and_what_order_captured_stand_beside_what_was(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    reuse = Reuse(available=0.714, captured=0.5, delivered=0.25)
    ended(sink, opened(sink), FIRST, two_units(sink, FIRST), reuse=reuse)

    facts = Parsed(report.made(str(sink), FIRST, now=NOW)).facts

    assert facts["reuse available"].startswith("71.4 % of the prompt tokens ")
    assert facts["captured by order"].startswith("50.0 % stood right behind a prompt that begins alike")


def test_a_provider_is_compared_by_the_cheaper_of_its_prices(tmp_path: Path) -> None:
    """8 s are $0.0008; Nova Micro is $0.00077 in a batch, 0.96 of that, and $0.00154 without, 1.9 of it."""
    sink = tmp_path / "sink"
    ended(sink, opened(sink), FIRST, two_units(sink, FIRST), parts=Parts(prefill=8 * NS))

    micro = Parsed(report.made(str(sink), FIRST, now=NOW)).row("amazon.nova-micro-v1:0")

    assert micro[2:5] == ["$0.00154", "$0.00077", "1.0"]


def test_speed_over_time_puts_each_unit_where_it_was_finished(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    output = opened(sink)
    ended(sink, output, FIRST, [unit(sink, FIRST, 2 * n, ["good"] * 2, finished_s=2.0 + n) for n in range(10)])
    page = Parsed(report.made(str(sink), FIRST, now=NOW))

    told = "".join(page.text)
    assert "11 intervals of 1 s; least 0.0, most 2.0 a second" in told
    assert page.facts["a unit"] == "median 1.0 s, 95th percentile 1.0 s, longest 1.0 s, from read to written"


def test_what_was_not_measured_is_absent(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    output = opened(sink)
    bare = unit(sink, FIRST, 0, ["good"], prompt_tokens=0, output_tokens=0)
    ended(sink, output, FIRST, [bare], parts=None, startup_s=None, steady_s=None)
    page = Parsed(report.made(str(sink), FIRST, now=NOW))
    words = "".join(page.text)

    assert {"billed", "accuracy", "prefix reuse", "rows/s", "of which", "saved"} & set(page.facts) == set()
    for absent in ("Cost", "providers", "Errors", "Run after run", "Bottleneck", "None", " nan"):
        assert absent not in words, absent


@pytest.mark.parametrize(
    ("code", "changes", "begin"),
    [
        (Exit.DONE, {}, "Done: "),
        (Exit.STOPPED, {"stopped_by": "budget.usd=5"}, "Stopped (budget.usd=5), the same command goes on: "),
        (Exit.TOO_MANY_ERRORS, {}, "Over the error rate of 1.0 % that was allowed: "),
        (Exit.FAILED, {"error": "RunFailed: no engine"}, "Failed (RunFailed: no engine); what is committed: "),
    ],
)
def test_the_verdict_says_how_the_run_ended(tmp_path: Path, code: Exit, changes: dict[str, Any], begin: str) -> None:
    sink = tmp_path / "sink"
    ended(sink, opened(sink), FIRST, two_units(sink, FIRST), exit_code=code, **changes)

    assert verdict(report.made(str(sink), FIRST, now=NOW)).startswith(begin + "196 of 200 rows answered")


def test_a_run_that_costs_what_the_one_before_did_costs_neither_more_nor_less(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    for run in (FIRST, SECOND):
        ended(sink, opened(sink), run, two_units(sink, run))

    assert verdict(report.made(str(sink), SECOND, now=NOW)).endswith(
        f"; against run {FIRST}: as much per million, accuracy +0.0 points."
    )


def test_each_head_of_a_table_has_words_for_who_hears_it(sink: Path) -> None:
    page = report.made(str(sink), FIRST, now=NOW)

    assert re.findall(r"<th\b[^>]*>", page)
    assert re.findall(r"<th\b[^>]*>\s*</th>", page) == []


def test_a_run_that_was_killed_is_told_by_what_it_committed(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    ended(sink, opened(sink), FIRST, two_units(sink, FIRST), parts=None, finish=False)

    assert verdict(report.made(str(sink), FIRST, now=NOW)) == (
        "Not ended, at work or killed; what is committed: 196 of 200 rows answered, 4 errors (2.0 %)."
    )


def test_a_second_run_is_told_beside_the_first_and_the_first_not_beside_the_second(sink: Path) -> None:
    """Twice the seconds for half the rows: 20,500 tokens for $0.08 are $3.90 a million, 300 % more than $0.976."""
    output = opened(sink)
    twice = Parts(**{name: 2 * ns for name, ns in PARTS.known()})
    (first, _) = two_units(sink, SECOND)
    ended(sink, output, SECOND, [replace(first, shard="b.jsonl")], parts=twice)

    page = report.made(str(sink), SECOND, now=NOW)
    alone = report.made(str(sink), FIRST, now=NOW)

    assert verdict(page).endswith(f"; against run {FIRST}: 300.0 % more per million, accuracy +5.0 points.")
    assert [row[0] for row in Parsed(page).rows if row[0] in (FIRST, SECOND)] == [SECOND, FIRST]
    assert SECOND not in alone
    assert "Run after run" not in alone


def test_two_runs_compared_stand_side_by_side(sink: Path) -> None:
    output = opened(sink)
    (first, _) = two_units(sink, SECOND)
    ended(sink, output, SECOND, [replace(first, shard="b.jsonl")])
    page = Parsed(report.made(str(sink), SECOND, other=FIRST, now=NOW))

    assert page.row("rows in") == ["rows in", "200", "100", "-50.0 %"]
    assert page.row("$ per million total") == ["$ per million total", "$0.976", "$1.95", "+100.0 %"]
    assert page.row("errors, % of rows") == ["errors, % of rows", "2.00", "0.00", "-100.0 %"]
    assert page.row("bad") == ["bad", "147", "75.0 %", "51", "51.0 %"]
    assert any("one fingerprint" in text for text in page.text)


HOSTILE = (
    "<script>alert(1)</script>",
    "{{ 7*7 }}{% for x in y %}",
    '"><img src=https://evil.example/x onerror=alert(1)>',
    "</td></table></body><iframe src='//evil.example'>",
    "\x1b[31m\x00\x07 red\u202e\ufeff\ud7ff",
    "javascript:alert(1)",
    "=cmd|'/C calc'!A0",
    "x" * 10**6,
)


def test_hostile_text_in_any_place_is_text_and_nothing_else(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    output = opened(sink)
    dead = [(kind[:2000], error, text) for kind in HOSTILE for error, text in [(kind, kind)]]
    hostile = unit(sink, FIRST, 0, HOSTILE, dead=dead, shard="<script>x.jsonl", prompt_tokens=9, output_tokens=9)
    ended(sink, output, FIRST, [hostile], stopped_by=HOSTILE[2], exit_code=Exit.STOPPED)
    rewrite(sink / "runs" / FIRST / "manifest.json")
    page = report.made(str(sink), FIRST, now=NOW)
    parsed = Parsed(page)

    only_what_is_ours(page)
    assert "49" not in [text.strip() for row in parsed.rows for text in row]
    assert "{{ 7*7 }}{% for x in y %}" in [text for row in parsed.rows for text in row]
    assert max(len(text) for row in parsed.rows for text in row) <= 1001
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ufeff]", page)
    assert len(page) < 200_000


def rewrite(path: Path) -> None:
    """Put hostile text into each place of a manifest where text of a user, a model or a machine may stand."""
    manifest = json.loads(path.read_text())
    manifest["config"]["job"]["name"] = HOSTILE[2]
    manifest["config"]["model"]["name"] = HOSTILE[0]
    manifest["config"]["job"]["messages"][0]["content"] = "".join(HOSTILE[:5])
    manifest["config"]["tracking"]["uri"] = "javascript:alert(1)"
    manifest["config"]["sink"]["uri"] = HOSTILE[3]
    manifest["model"] |= {"name": HOSTILE[3], "source": HOSTILE[2], "identity": HOSTILE[4]}
    manifest["engine"]["dtype"] = manifest["host"]["cpu_model"] = manifest["started_at"] = HOSTILE[2]
    manifest["finished_at"] = None
    manifest["fingerprint_parts"] = {HOSTILE[0]: HOSTILE[2]}
    manifest["versions"] = {HOSTILE[0]: HOSTILE[4]}
    manifest["summary"]["gpus"] = [{"name": HOSTILE[0], "node": HOSTILE[2], "index": 0, "utilization": 0.5}]
    limits = {"bottleneck": HOSTILE[0], "bottleneck_share": 0.5, "change": HOSTILE[2], "gain_at_most_estimated": 2.0}
    manifest["summary"]["limits"] = limits
    path.write_text(json.dumps(manifest))


def only_what_is_ours(page: str) -> None:
    """One script, known to the policy by its hash; nothing that loads, runs or leads elsewhere."""
    parsed = Parsed(page)
    tags = {tag for tag, _ in parsed.elements}
    assert (
        tags & {"iframe", "img", "object", "embed", "link", "base", "form", "input", "foreignobject", "a:href"} == set()
    )
    assert len(parsed.all("script")) == 1
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts == [SORT]
    (policy,) = (one["content"] for one in parsed.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not {"src", "srcset", "xlink:href", "action", "data"} & set(attributes), tag
        href = attributes.get("href", "#")
        assert href.startswith("#") or href in ("manifest.json", "config.yaml", "http://mlflow:5000"), href
    assert re.findall(r"url\((?!#)[^)]*\)|@import", page) == []


def test_a_page_is_as_described_and_links_to_a_server_of_mlflow_alone(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    config = run_config(tmp_path)
    config = replace(config, tracking=replace(config.tracking, uri="http://mlflow:5000"))
    ended(sink, opened(sink), FIRST, two_units(sink, FIRST), config=config)
    page = report.made(str(sink), FIRST, now=NOW)
    parsed = Parsed(page)

    only_what_is_ours(page)
    assert [one["href"] for one in parsed.all("a")][-3:] == ["manifest.json", "config.yaml", "http://mlflow:5000"]
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in parsed.all("svg"):
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) <= set(ids)
    assert not re.search(r"#0[1234]0[1234]0[1234]", page)  # every colour is the page's


def test_a_secret_in_a_text_is_hidden(sink: Path) -> None:
    assert shown("see https://me:pa55word@host/x") == "see https://***@host/x"
    assert shown("x" * 300) == "x" * 200 + "…"
    assert shown("a\nb\x1b[0m") == "a\\nb\\x1b[0m"


def test_an_output_of_100_000_rows_makes_a_page_under_5_mb_from_a_bounded_number_of_files(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    output = opened(sink)
    labels = [f"label {n % 60}" for n in range(490)]
    dead = [("contract", "an error", "y" * 500)]
    receipts = [unit(sink, FIRST, 491 * n, labels, dead=dead, finished_s=2.0 + n) for n in range(205)]
    ended(sink, output, FIRST, receipts)

    page = report.made(str(sink), FIRST, receipts=receipts, now=NOW)

    assert f"{490 * FILES_READ:,} rows in {FILES_READ} of 205 data files" in page
    assert "30 others" in page
    assert len(page.encode()) < 5 * 2**20


def test_files_that_a_later_run_replaced_are_left_out(sink: Path) -> None:
    for file in (sink / "data").glob("*.parquet"):
        file.unlink()
    receipts = Beside.of(str(sink)).run(FIRST).receipts

    seen = answers(str(sink), receipts, ("label",))

    assert (seen.files, seen.of_files, seen.rows, seen.labels) == (0, 2, 0, {})
    assert verdict(report.made(str(sink), FIRST, now=NOW)).startswith("Done: 196 of 200 rows answered")


def test_examples_of_dead_letters_are_whole_where_they_are_short(sink: Path) -> None:
    found = examples(str(sink), Beside.of(str(sink)).run(FIRST).receipts)

    assert {kind: len(each) for kind, each in found.items()} == {"too_long": 3, "contract": 1}
    assert (found["contract"][0].row, found["contract"][0].text) == (199, "an odd text")


def test_bins_hold_every_value_once() -> None:
    import numpy as np

    for values in ([5], [1, 2, 3], list(range(1000)), [0, 10**6]):
        counts, edges = bins(np.array(values, np.int64))
        assert counts.sum() == len(values)
        assert len(counts) <= 41
        assert edges[0] == min(values)


def test_the_report_of_a_run_that_ends_lies_in_its_folder(sink: Path) -> None:
    told: list[str] = []

    page = report.at_the_end(str(sink), FIRST, Beside.of(str(sink)).run(FIRST).receipts, tell=told.append)

    assert (sink / "runs" / FIRST / "report.html").read_text() == page
    assert told == []


def test_a_report_is_made_and_found_on_every_store(store: str) -> None:
    ended(store, opened(store), FIRST, two_units(store, FIRST))

    page = report.made(store, report.newest(store), now=NOW)
    uri = report.stored(store, FIRST, page)

    assert storage.get(uri).decode() == page
    assert Parsed(page).row("contract")[1:] == ["1", "0.5 %"]
    assert "an odd text" in page


def test_a_report_that_cannot_be_made_is_one_line_and_no_failure(sink: Path) -> None:
    told: list[str] = []
    (sink / "runs" / FIRST / "manifest.json").write_text("{ torn")

    assert report.at_the_end(str(sink), FIRST, [], tell=told.append) is None

    assert len(told) == 1
    assert told[0].startswith("warning: no report was made (UserError: ")
    assert "\n" not in told[0]
    assert not (sink / "runs" / FIRST / "report.html").exists()


def test_the_command_makes_the_newest_runs_report_or_the_one_that_is_named(
    sink: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(sink, opened(sink), SECOND, [])

    assert command(ReportConfig(sink=ReportSink(uri=str(sink)))) is Exit.DONE
    assert command(ReportConfig(sink=ReportSink(uri=str(sink)), run=FIRST)) is Exit.DONE
    assert command(ReportConfig(sink=ReportSink(uri=str(sink)), compare=(FIRST, SECOND))) is Exit.DONE

    runs = sink / "runs"
    made = [runs / SECOND / "report.html", runs / FIRST / "report.html", runs / SECOND / f"report-beside-{FIRST}.html"]
    assert capsys.readouterr().out.split() == [str(path) for path in made]
    assert all(path.read_text().startswith("<!DOCTYPE html>") for path in made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": "20200101T000000Z-cccccc"}, f"has no such run; its newest: {FIRST}$"),
        ({"run": "../../etc"}, "has no such run"),
        ({"compare": (FIRST,)}, "name two different runs"),
        ({"compare": (FIRST, FIRST)}, "name two different runs"),
        ({"compare": (FIRST, "nobody")}, "run=nobody: .* has no such run"),
        ({"compare": (FIRST, SECOND), "run": FIRST}, "say one of them"),
        ({"sink": ReportSink(uri="nowhere/at/all")}, "there is no such folder"),
    ],
)
def test_what_a_user_can_mend_is_said_by_name(sink: Path, changes: dict[str, Any], said: str) -> None:
    values: dict[str, Any] = {"sink": ReportSink(uri=str(sink))}

    with pytest.raises(UserError, match=said):
        command(ReportConfig(**(values | changes)))


def test_an_empty_folder_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no run; check"):
        command(ReportConfig(sink=ReportSink(uri=str(tmp_path))))


def test_a_wrong_key_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended_with:
        command_of_few_keys(command, ReportConfig, doc="", keys=KEYS, exits=EXITS, argv=["sink.uri=out", "rnu=3"])

    assert ended_with.value.code == Exit.USAGE
    assert capsys.readouterr().err == "error: there is no key rnu (=3), the nearest is run; --help lists them\n"


def test_a_part_below_zero_is_shown_as_such(tmp_path: Path) -> None:
    """What a killed run had booked as failed is taken back when its units turn out to be finished."""
    sink = tmp_path / "sink"
    ended(sink, opened(sink), FIRST, two_units(sink, FIRST), parts=Parts(prefill=10 * NS, failed=-2 * NS))
    page = Parsed(report.made(str(sink), FIRST, now=NOW))

    assert page.row("failed")[1:3] == ["-$0.0002000", "-25.0 %"]
    assert page.row("total")[1] == "$0.0008000"
