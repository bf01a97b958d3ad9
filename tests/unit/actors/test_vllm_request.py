"""What a request to vLLM says, as far as that needs no vLLM."""

from hypothesis import given
from hypothesis import strategies as st

from actors.vllm_request import most_until_decided

CHOICES = st.lists(st.text("aábn €", min_size=1, max_size=6), min_size=2, max_size=6, unique=True)
END = b""


def shown(spelled: bytes) -> str:
    """As a text is shown: without the bytes of a character that is not whole yet."""
    return spelled.decode(errors="ignore")


def decides_at(choice: str, choices: list[str], tokens: list[bytes]) -> int:
    """After how many of its tokens, the end included, `choice` is the only one left."""
    for count in range(1, len(tokens) + 1):
        text = shown(b"".join(tokens[:count]))
        left = [each for each in choices if each.startswith(text)] if text else []
        if left == [choice] or tokens[count - 1] == END:
            return count
    raise AssertionError("the end decides")


@given(CHOICES, st.data())
def test_however_a_choice_is_cut_into_tokens_it_is_decided_after_so_many(
    choices: list[str], data: st.DataObject
) -> None:
    choice = data.draw(st.sampled_from(choices))
    spelled = choice.encode()
    cuts = data.draw(st.sets(st.integers(1, len(spelled))))
    ends = sorted({*cuts, len(spelled)})
    tokens = [spelled[start:end] for start, end in zip([0, *ends], ends, strict=False)] + [END]

    assert decides_at(choice, choices, tokens) <= most_until_decided(choices)


@given(CHOICES)
def test_one_token_fewer_would_be_too_few_for_a_choice_that_is_spelled_in_bytes(choices: list[str]) -> None:
    spellings = {
        choice: [*(choice.encode()[at : at + 1] for at in range(len(choice.encode()))), END] for choice in choices
    }

    slowest = max(decides_at(choice, choices, tokens) for choice, tokens in spellings.items())

    assert slowest == most_until_decided(choices)


def test_choices_that_part_at_their_first_letter_take_one_token() -> None:
    assert most_until_decided(("negative", "positive")) == 1
    assert most_until_decided(("negative", "positive", "neutral")) == 3
    assert most_until_decided(("very positive", "very negative")) == 6
    assert most_until_decided(("pleased", "pleased and moved")) == 8
