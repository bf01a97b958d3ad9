"""The command that finds rules for the order of fields and tries them, and the runs that go by them, on a real Ray."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.model import folder as model_folder
from pipelines.agree import agree
from pipelines.compose import compose
from pipelines.config import Exit, UserError
from pipelines.job.chat import open_chat
from pipelines.job.fingerprint import row_key
from pipelines.job.row_order import in_order
from pipelines.row_rules import FILE, kept
from pipelines.verify import VerifyConfig, VerifySink, verify
from tests.runs import data, job, ledger

pytestmark = pytest.mark.usefixtures("ray_cluster")
FIELDS = ("id", "terms", "story", "notes")
WORDS = (
    'job.messages=[{role: user, content: "Sort: {{ fields }}"}]',
    f"job.fields=[{','.join(FIELDS)}]",
    "job.gold=null",
)


def rows(count: int) -> list[dict[str, Any]]:
    """Each text is one of two in half of the rows, and the row's own in the others."""
    chosen = random.Random(4)

    def text(name: str, number: int) -> str:
        return f"{name} {chosen.randrange(2)} " * 9 if chosen.random() < 0.5 else f"{name} of {number} " * 9

    return [{"id": n, **{name: text(name, n) for name in FIELDS[1:]}} for n in range(count)]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows(120)), tmp_path / "in" / "a.parquet")
    return tmp_path / "in", tmp_path / "out"


def tried(places: tuple[Path, Path], *overrides: str) -> Exit:
    source, sink = places
    words = ["+job=classify", "engine=simulated", "tracking=none", f"source.uri={source}", f"sink.uri={sink}"]
    (config,) = compose([*words, *WORDS, *overrides])
    return agree(config)


def run(places: tuple[Path, Path], *overrides: str) -> Exit:
    source, sink = places
    return job(*WORDS, "prompt.field_order=rows", *overrides, source=source, sink=sink)


def test_rules_that_nobody_has_tried_are_not_run_by(places: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"there are no rules for this output .*pipelines\.agree"):
        run(places)


def test_answers_that_hang_on_the_order_are_told_and_a_run_by_the_rules_is_refused_unless_it_is_wanted_nevertheless(
    places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, sink = places

    ended = tried(places)  # the simulated engine's label is another for each prompt

    said = capsys.readouterr().out
    found = kept(str(sink), FIELDS)
    assert ended == Exit.FAILED
    assert found is not None
    assert (found.asked, 0.2 < found.share < 0.8) == (120, True)
    assert f"{found.same} of 120 rows the same in both orders" in said
    assert "too few for prompt.min_agreement=0.95" in said
    with pytest.raises(UserError, match=rf"of 120 rows {found.same} .* prompt\.min_agreement=0\.95"):
        run(places)
    assert not (sink / "data").exists()
    assert run(places, "prompt.min_agreement=0") == Exit.DONE
    answered = data(sink)
    orders = [in_order(found.rules, row) for row in answered]
    assert [row["_key"] for row in answered] == keys(answered, orders, manifest(sink)["fingerprint"])
    assert len(set(orders)) > 2
    receipts = ledger(sink)
    assert run(places, "prompt.min_agreement=0") == Exit.DONE  # nothing is left to do
    assert ledger(sink) == receipts


def test_answers_that_do_not_hang_on_the_order_let_a_run_go_by_the_rules_and_be_verified_until_the_job_changes(
    places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, sink = places
    one = "{type: object, properties: {stars: {type: integer, minimum: 1, maximum: 1}}, required: [stars]}"
    same = (f"job.output={{kind: json, json_schema: {one}}}",)  # whatever is asked

    assert tried(places, *same) == Exit.DONE

    assert "120 of 120 rows the same in both orders: 100.0%" in capsys.readouterr().out
    assert run(places, *same) == Exit.DONE
    assert verify(VerifyConfig(sink=VerifySink(uri=str(sink)), sample=9)) == Exit.DONE
    assert "stars: 9 of 9 the same" in capsys.readouterr().out
    with pytest.raises(UserError, match="was tried before this changed: prompt template"):
        run(places, *same, 'job.messages=[{role: user, content: "Sort this: {{ fields }}"}]')


def test_where_rules_gain_nothing_no_row_is_asked_and_none_are_kept(
    places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, sink = places
    pq.write_table(pa.Table.from_pylist([{n: f"{n} {i}" for n in FIELDS} for i in range(50)]), source / "a.parquet")

    assert tried(places) == Exit.DONE

    assert "rules    none" in capsys.readouterr().out
    assert not (sink / FILE).exists()


def keys(answered: list[dict[str, Any]], orders: list[tuple[str, ...]], fingerprint: str) -> list[str]:
    """Of the prompts that print each row's fields in its order."""
    chat = open_chat(str(model_folder()), 49_152)
    texts = [json.dumps({name: row[name] for name in order}) for row, order in zip(answered, orders, strict=True)]
    return [row_key(fingerprint, chat.tokens([("user", f"Sort: {text}")])) for text in texts]


def manifest(sink: Path) -> dict[str, Any]:
    (found,) = (sink / "runs").glob("*/manifest.json")
    read: dict[str, Any] = json.loads(found.read_text())
    return read
