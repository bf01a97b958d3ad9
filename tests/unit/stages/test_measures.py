"""What the data rows of a unit say, counted."""

import pyarrow as pa
import pytest

from pipelines.config import OutputConfig
from pipelines.job.contract import OutputContract
from pipelines.sink.measures import CONFIDENCE_BINS, MOST_VALUES, OUTSIDE, Confident
from pipelines.stages.measures import measured
from pipelines.stages.refusals import refused

TOKENS = {"_prompt_tokens": pa.array([0, 1, 2, 3, 4, 1023, 1024], pa.int32()), "_output_tokens": [1] * 7}


def test_labels_lengths_confidence_and_gold_by_hand() -> None:
    contract = OutputContract.of(OutputConfig(kind="labels", labels=("good", "bad", "odd")), job="j")
    data = pa.table(
        {
            "label": ["good", "good", "bad", "bad", "good", "bad", "good"],
            "confidence": [1.0, 0.99, 0.5, None, 0.51, 0.0, 0.9],
            "wanted": ["good", "bad", "bad", "bad", None, "elsewhere", "good"],
            **TOKENS,
        }
    )

    found = measured(data, contract, "wanted")

    assert found.rows == 7
    assert found.labels == {"label": {"good": 4, "bad": 3, "odd": 0}}
    assert found.others == {}
    assert found.prompt_tokens == (1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 1, 1)  # 0 | 1 | 2, 3 | 4 | … | 1023 | 1024
    assert found.output_tokens == (0, 7)
    assert found.confusion == {"good": {"good": 2}, "bad": {"good": 1, "bad": 2}, OUTSIDE: {"bad": 1}}
    assert found.refusals is None
    assert len(found.confidence) == CONFIDENCE_BINS
    assert {place: bin_ for place, bin_ in enumerate(found.confidence) if bin_.rows} == {
        0: Confident(1, 0, 1, 0, 0),
        7: Confident(2, 1_010_000, 1, 500_000, 1),  # 0.5 and 0.51, the latter without gold
        13: Confident(1, 900_000, 1, 900_000, 1),
        14: Confident(2, 1_990_000, 2, 1_990_000, 1),
    }
    assert measured(data, contract, None).confusion == {}


def test_columns_of_closed_sets_are_counted_and_the_rest_of_a_large_set_as_one() -> None:
    properties = {
        "mood": {"type": "string", "enum": ["up", "down"]},
        "sure": {"type": "boolean"},
        "place": {"type": "string", "enum": [f"p{n}" for n in range(MOST_VALUES + 2)]},
        "said": {"type": ["string", "null"]},
    }
    schema = {"type": "object", "properties": properties}
    contract = OutputContract.of(OutputConfig(kind="json", json_schema=schema), job="j")
    data = pa.table(
        {
            "mood": ["up", "up", "up", "down", None, "up", "up"],
            "sure": [True, False, True, True, True, True, True],
            "place": ["p0", "p1", f"p{MOST_VALUES}", f"p{MOST_VALUES + 1}", "p0", "p0", "p0"],
            "said": ["I’m sorry, but I can't help with that.", "fine", None, "As an AI, I", "", "no", "I cannot"],
            **TOKENS,
        }
    )

    found = measured(data, contract, None)

    assert found.labels["mood"] == {"up": 5, "down": 1}
    assert found.labels["sure"] == {"true": 6, "false": 1}
    assert (found.labels["place"]["p0"], len(found.labels["place"])) == (4, MOST_VALUES)
    assert found.others == {"mood": 1, "place": 2}
    assert found.refusals == 3


def test_a_unit_without_an_answer_has_counts_of_nothing() -> None:
    contract = OutputContract.of(OutputConfig(kind="text"), job="j")
    empty = pa.schema([("text", pa.string()), ("_prompt_tokens", pa.int32()), ("_output_tokens", pa.int32())])
    found = measured(empty.empty_table(), contract, None)
    assert (found.rows, found.prompt_tokens, found.refusals) == (0, (), 0)


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I can't assist with that request.", True),
        ("Sorry, I cannot do that.", True),
        ("Unfortunately, I am unable to say.", True),
        ("**I'm sorry**, but as a language model I have no opinion", True),
        ("The customer said: I cannot log in.", False),
        ("I cannoli", False),
        ("Sorry is the hardest word.", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_how_it_begins(text: str, declines: bool) -> None:
    assert refused(pa.chunked_array([[text]])).to_pylist() == [declines]
