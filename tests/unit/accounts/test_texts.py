"""Answers in free text: language, mood and overlap with their input, on texts of which one knows what is right."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.accounts import texts
from pipelines.accounts.panel import ROWS_OF_UNIT, UNITS
from pipelines.accounts.quality import Measures
from pipelines.accounts.quality_files import at_the_end, of_run
from pipelines.accounts.texts import Look, judged, overlap
from pipelines.alert_config import METRICS
from tests.report_outputs import opened, unit

LOOK = Look(answers=("label",), inputs=("text",))  # of tests.report_outputs: row n has the text "text n"
ENGLISH = "Thank you for writing to us, we are very sorry about the delay of your flight."
GERMAN = "Vielen Dank für Ihre Nachricht, die Verspätung Ihres Fluges tut uns sehr leid."


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this library was not installed."""
    real = importlib.import_module

    def found(wanted: str, package: str | None = None) -> Any:
        if wanted.partition(".")[0] == name:
            raise ModuleNotFoundError(name)
        return real(wanted, package)

    monkeypatch.setattr(importlib, "import_module", found)


def test_overlap_by_hand() -> None:
    # "The", "cat" and one "sat" of four words stand in the source; the second "sat" does not.
    assert overlap("The cat sat, sat.", "the CAT sat down") == 0.75
    assert overlap("sat, sat", "it sat and sat") == 1.0
    assert overlap("no word of it", "the cat") == 0.0
    assert overlap("", "the cat") is None
    assert overlap("the cat", "...") is None


def test_languages_and_moods_are_told_as_people_would_tell_them() -> None:
    pairs = [(ENGLISH, "Why was my flight to Boston so late yesterday?"), (GERMAN, "Warum war mein Flug so spät?")]
    pairs += [(ENGLISH, GERMAN), ("Yes", ENGLISH)]

    found = judged(pairs, language=texts._language(), polarity=texts._polarity())

    assert found.languages == {"en": 2, "de": 1}  # "Yes" is too short to tell
    assert (found.paired, found.same_language) == (3, 2)
    assert found.figures()["main_language_share"] == pytest.approx(2 / 3)
    assert found.figures()["same_language_share"] == pytest.approx(2 / 3)

    def mood(text: str) -> float:
        value = judged([(text, "")], language=None, polarity=texts._polarity()).sentiment
        assert value is not None
        return value

    assert mood("What a wonderful, excellent answer!") > 0.5
    assert mood("This is a terrible, horrible answer.") < -0.5
    assert mood("It leaves at nine.") == 0.0


def test_what_cannot_be_told_is_absent_and_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    answered = [unit(tmp_path, "1", 0, [ENGLISH] * 8)]
    for library in ("py3langid", "textblob"):
        without(library, monkeypatch)

    found = texts.texts(str(tmp_path), answered, LOOK)

    assert found is not None
    figures = found.figures()
    assert figures.keys() <= set(METRICS)
    assert [name for name, value in figures.items() if value is not None] == ["relevance"]
    assert texts.texts(str(tmp_path), answered, Look(answers=(), inputs=("text",))) is None
    assert texts.texts(str(tmp_path), [], LOOK) is None
    lost = texts.texts(str(tmp_path), answered, Look(answers=("label",), inputs=("not kept",)))
    assert lost is not None
    assert lost.figures()["relevance"] is None


def test_so_many_rows_are_looked_at_at_most_and_the_same_each_time(tmp_path: Path) -> None:
    opened(tmp_path)
    many = [unit(tmp_path, "1", 20 * n, [f"text {row}" for row in range(20 * n, 20 * n + 20)]) for n in range(60)]

    found = texts.texts(str(tmp_path), many, LOOK)

    assert found is not None
    assert found.rows == UNITS * ROWS_OF_UNIT
    assert found.relevance == 1.0  # each answer beside its own input
    assert found.languages == {}  # none is long enough
    assert found.figures()["main_language_share"] is None
    assert texts.texts(str(tmp_path), reversed(many), LOOK) == found


def test_a_run_keeps_them_for_alerts_and_later_runs(tmp_path: Path) -> None:
    opened(tmp_path)
    own = [unit(tmp_path, "1", 0, [ENGLISH] * 6 + [GERMAN] * 4)]
    kept: dict[str, Any] = {"job": "j", "model": "m", "fingerprint": "f", "measures": Measures.of(own)}

    found = at_the_end(str(tmp_path), "1", **kept, own=own, look=LOOK)
    of_labels = at_the_end(str(tmp_path), "2", **kept, own=own, look=Look(answers=(), inputs=()))

    assert found.figures()["main_language_share"] == 0.6
    assert of_run(str(tmp_path), "1") == found
    assert of_labels.texts is None
    assert of_labels.figures()["sentiment"] is None


def test_whoever_has_no_free_text_loads_neither_library() -> None:
    code = (
        "import sys; from pipelines.accounts import texts; "
        "texts.texts('/nowhere', [], texts.Look(answers=('a',), inputs=())); "
        "print([name for name in ('py3langid', 'textblob', 'nltk') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
