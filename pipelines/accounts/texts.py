"""What answers in free text are like: their language, their mood, and how much of them is of their input.

Some rows of a run are looked at when it has ended, by a hash of their place, so many at most whatever it answered.
Language is told by py3langid and sentiment by textblob, of the extra `quality`; without them it is absent. What each of
them does not tell is in docs/quality.md.
"""

import heapq
import importlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.accounts.panel import FILES_AT_ONCE, ROWS_OF_UNIT, UNITS, hash_of
from pipelines.sink.aside import open_file
from pipelines.sink.receipt import Receipt

log = logging.getLogger(__name__)

CHARS = 2000  # of a text, from its start
LEAST_LETTERS = 20  # of a text whose language is told: of fewer it is a guess
_WORD = re.compile(r"\w+")

Language = Callable[[str], str]  # its ISO 639-1 code
Polarity = Callable[[str], float]  # -1..1


@dataclass(frozen=True, slots=True)
class Look:
    """Columns to look at: those that the job's contract makes and that are free text, and those that prompts quote."""

    answers: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Of a sample of a run's answers. None: not measured."""

    rows: int  # of the sample, whose answer is not empty
    languages: Mapping[str, int] | None = None  # rows by the language of the answer; of those that are long enough
    paired: int | None = None  # of these rows, those whose input is long enough as well
    same_language: int | None = None  # of those, answered in the language of the input
    sentiment: float | None = None  # mean polarity, -1..1
    relevance: float | None = None  # mean share of the answer's words that the input has, 0..1

    def figures(self) -> dict[str, float | None]:
        """Those that alerts and MLflow know by name."""
        told = sum(self.languages.values()) if self.languages else 0
        return {
            "main_language_share": max(self.languages.values()) / told if self.languages and told else None,
            "same_language_share": (self.same_language or 0) / self.paired if self.paired else None,
            "sentiment": self.sentiment,
            "relevance": self.relevance,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made."""
        return cls(**plain)


def texts(sink_uri: str, receipts: Iterable[Receipt], look: Look) -> Texts | None:
    """Look at some of the rows of these units; None: the job's answers hold no free text, or none was answered.

    Raises:
        StoreFailed: the store refused or stayed away.
    """
    if not look.answers:
        return None
    units = heapq.nsmallest(
        UNITS,
        (one for one in receipts if one.rows_ok and one.data_file),
        key=lambda one: (hash_of(one.shard, one.start), one.shard, one.start),
    )
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        pairs = [pair for found in pool.map(partial(_of_unit, sink_uri, look), units) for pair in found]
    return judged(pairs, language=_language(), polarity=_polarity()) if pairs else None


def judged(pairs: Sequence[tuple[str, str]], *, language: Language | None, polarity: Polarity | None) -> Texts:
    """Answers and their inputs. None: that library is not there; an empty input: it was not kept in the output."""
    known = [(answer, source) for answer, source in pairs if answer.strip()]
    languages, paired, same = None, None, None
    if language is not None:
        long = [(language(answer), source) for answer, source in known if _letters(answer) >= LEAST_LETTERS]
        both = [(name, language(source)) for name, source in long if _letters(source) >= LEAST_LETTERS]
        languages = dict(Counter(name for name, _ in long).most_common())
        paired, same = len(both), sum(name == other for name, other in both)
    shares = [share for answer, source in known if (share := overlap(answer, source)) is not None]
    return Texts(
        rows=len(known),
        languages=languages,
        paired=paired,
        same_language=same,
        sentiment=fmean(polarity(answer) for answer, _ in known) if polarity is not None and known else None,
        relevance=fmean(shares) if shares else None,
    )


def overlap(answer: str, source: str) -> float | None:
    """ROUGE-1 precision (Lin 2004): the share of the answer's words that the source has, each as often as it stands
    there; no stemming. None: one of them has no word."""
    said, given = (Counter(_WORD.findall(text.casefold())) for text in (answer, source))
    if not said or not given:
        return None
    return (said & given).total() / said.total()


def _letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


def _of_unit(sink_uri: str, look: Look, receipt: Receipt) -> list[tuple[str, str]]:
    """Answer and input of some rows of a unit; none if its file is gone."""
    try:
        with open_file(sink_uri, "data", receipt.data_file or "") as file:
            there = pq.read_schema(file).names
            file.seek(0)
            wanted = [name for name in (*look.answers, *look.inputs) if name in there]
            rows = pq.read_table(file, columns=["_row", *wanted])
    except FileNotFoundError:
        return []
    numbers = rows["_row"].to_pylist()
    lowest = heapq.nsmallest(ROWS_OF_UNIT, range(len(numbers)), key=lambda line: hash_of(receipt.shard, numbers[line]))
    some = rows.take(sorted(lowest))
    return list(zip(_joined(some, look.answers), _joined(some, look.inputs), strict=True))


def _joined(rows: pa.Table, names: Sequence[str]) -> Iterator[str]:
    """The texts of these columns, row by row; of those that are not there, nothing."""
    columns = [rows[name].to_pylist() for name in names if name in rows.schema.names]
    for line in range(rows.num_rows):
        said = (column[line] for column in columns)
        yield " ".join(value[:CHARS] for value in said if isinstance(value, str))


def _language() -> Language | None:
    """By py3langid; None: it is not installed."""
    found = _optional("py3langid")
    return None if found is None else lambda text: str(found.classify(text)[0])


def _polarity() -> Polarity | None:
    """By the lexicon of textblob; None: it is not installed."""
    found = _optional("textblob.en.sentiments")
    if found is None:
        return None
    analyzer = found.PatternAnalyzer()
    return lambda text: float(analyzer.analyze(text).polarity)


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        log.info("%s is not installed: its figures are absent (the extra quality)", name)
        return None
