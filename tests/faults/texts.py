"""Texts of the campaign's corpora: those that any engine answers, and those that it is told to die of."""

from tokenizers import Tokenizer

from demo.model import folder as model_folder

POOL = tuple(f"text {number} {'abcdefgh'[number % 8]}" for number in range(360))
POISON, HANG, BAD = "a zebra among the texts", "a walrus among the texts", "an okapi among the texts"


def token_of(word: str) -> int:
    """The id of the first token of ` word` for the embedded model."""
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    return int(tokenizer.encode(f"x {word}").ids[1])
