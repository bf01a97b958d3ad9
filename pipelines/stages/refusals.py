"""Refusals: answers that decline to answer, by the phrases that they begin with.

A short list of what instruction-tuned models say in English. It misses refusals in other words and languages, and takes
an answer for a refusal that quotes one at its start: it is there to see a rate change, not to judge a row.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

PHRASES = (
    "i can't",
    "i cannot",
    "i can not",
    "i could not",
    "i couldn't",
    "i am unable",
    "i'm unable",
    "i am not able",
    "i'm not able",
    "i am not allowed",
    "i'm not allowed",
    "i am not comfortable",
    "i'm not comfortable",
    "i won't",
    "i will not",
    "i must decline",
    "i have to decline",
    "i refuse",
    "unable to comply",
    "as an ai",
    "as a language model",
    "as a large language model",
    "it is not appropriate",
    "it's not appropriate",
)
BEFORE = ("i'm sorry", "i am sorry", "sorry", "i apologize", "my apologies", "unfortunately", "but", "however")
_PATTERN = r"^\W*(?:(?:{before})\b\W*)*(?:{phrases})\b".format(
    before="|".join(map(re.escape, BEFORE)), phrases="|".join(map(re.escape, PHRASES))
)


def refused(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each text begins like a refusal; null where there is no text."""
    plain = pc.replace_substring(pc.utf8_slice_codeunits(pc.cast(texts, pa.string()), 0, 200), "\u2019", "'")
    return pc.match_substring_regex(plain, _PATTERN, ignore_case=True)
