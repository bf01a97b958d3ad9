"""One request to vLLM: a prompt in its terms, its final output as an answer, and where a choice may end early.

Imported by vllm_engine.py alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import Any

from actors.engine import Alternative, Answer, BadPrompt, Constraint, FinishReason, Prompt, Sampling


def token_input(ids: list[int]) -> Any:
    """Token ids as vLLM takes them; older ones (0.25) know only the raw form, which newer ones deprecate."""
    try:
        from vllm.inputs.engine import tokens_input
    except ImportError:
        return {"prompt_token_ids": ids}
    return tokens_input(ids)


@lru_cache(maxsize=64)
def sampling_params(sampling: Sampling, constraint: Constraint, alternatives: int, until_decided: bool = False) -> Any:
    """vLLM's parameters for one request. It clones them, so that all rows of a job can share one object.

    `until_decided`: nothing is wanted behind the token that leaves one choice. The output then comes after each token,
    for `decided_answer` to look at. Where any first token decides there is nothing to look at: the engine is told that
    one is all. An engine in a process of its own, or one that plans a step ahead, has begun the next token by the time
    that it is told to stop; this it ends by itself.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    structured, most = None, sampling.max_tokens
    if constraint.choices:
        structured = StructuredOutputsParams(choice=list(constraint.choices))
        most = min(most, most_until_decided(constraint.choices)) if until_decided else most
    elif constraint.json_schema:
        structured = StructuredOutputsParams(json=constraint.json_schema)
    return SamplingParams(
        max_tokens=most,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop) or None,
        logprobs=alternatives or None,
        structured_outputs=structured,
        output_kind=RequestOutputKind.CUMULATIVE if until_decided and most > 1 else RequestOutputKind.FINAL_ONLY,
    )


def most_until_decided(choices: Sequence[str]) -> int:
    """Tokens after which one choice is left, whichever it is and however the model spells it.

    A token is a byte at least, and a text shows a character once all bytes of it are there. So a choice takes as many
    tokens at most as the bytes of its shortest beginning that no other choice has, and where it is itself the beginning
    of another, the one behind its last that ends it.
    """
    ranked = sorted(set(choices))
    shared = [_in_common(*pair) for pair in pairwise(ranked)]  # the neighbours in order have most in common
    stems = [max(around) for around in zip([0, *shared], [*shared, 0], strict=True)]
    ends = zip(ranked, stems, strict=True)
    return max((len(choice[: stem + 1].encode()) + (len(choice) == stem) for choice, stem in ends), default=1)


def _in_common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def to_answer(output: Any, prompt: Prompt, until_decided: bool = False) -> Answer | Exception:
    """An answer from vLLM's final output; an error where vLLM ended the request for a reason of its own."""
    reason = output.outputs[0].finish_reason
    if reason not in ("stop", "length"):
        return BadPrompt(f"the engine ended the request with {reason!r}")
    decided = decided_answer(output, prompt) if until_decided and reason == "length" else None
    return decided or _answer(output, output.outputs[0].text, reason, prompt.alternatives)


def decided_answer(output: Any, prompt: Prompt) -> Answer | None:
    """The one choice that an output which is not at the end of any can still become; None: there are several.

    Each token was drawn under the constraint of the whole answer, so the choice is the one it would have ended as.
    """
    text = output.outputs[0].text.rstrip("\ufffd")  # the bytes of a character that is not whole yet
    left = [choice for choice in prompt.constraint.choices if choice.startswith(text)] if text else []
    return _answer(output, left[0], "stop", prompt.alternatives) if len(left) == 1 else None


def _answer(output: Any, text: str, reason: FinishReason, alternatives: int) -> Answer:
    completion = output.outputs[0]
    positions = completion.logprobs or ()
    return Answer(
        text=text,
        finish_reason=reason,
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        output_tokens=len(completion.token_ids),
        token_logprobs=tuple(
            min(0.0, position[token].logprob) for token, position in zip(completion.token_ids, positions, strict=True)
        )
        if positions
        else (),
        alternatives=tuple(_alternatives(position, alternatives) for position in positions),
    )


def _alternatives(position: Any, most: int) -> tuple[Alternative, ...]:
    """The most probable first. What the constraint forbids has a log probability of minus infinity, and is left out."""
    options = sorted(position.values(), key=lambda option: -option.logprob)
    possible = [option for option in options if option.logprob != float("-inf")]
    return tuple(
        Alternative(text=option.decoded_token or "", logprob=min(0.0, option.logprob)) for option in possible[:most]
    )
