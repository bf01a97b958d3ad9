"""What labels cost that begin alike: decoded until they are decided, decoded to their end, or each of them scored.

    python -m demo.corpus && python -m benchmarks.labels [ROWS]        (default 100)

The first rows of the demo corpus, on the bare engine with the pipeline's settings and requests. A label's score is the
sum of the log probabilities of its tokens and of the token that ends it, behind the prompt. The prompt is read once for
each label: vLLM takes nothing from its prefix cache where it is to tell the probabilities of a prompt's tokens.
Computed are the tokens that the model is given: of prompts those that no cache had, of answers all but the last.
"""

import json
import os
import sys
from typing import Any

from actors.engine import Constraint, Sampling
from actors.vllm_request import sampling_params, token_input
from actors.vllm_settings import engine_args, set_environment
from benchmarks.bare_engine import conversations, settings
from benchmarks.measure import circumstances
from pipelines.job.chat import open_chat

LABELS = ("very positive", "positive", "negative", "very negative")
SAMPLING = Sampling(max_tokens=16)


def scores(llm: Any, prompts: list[list[int]], endings: list[list[int]]) -> list[list[float]]:
    """For each prompt the sum of the log probabilities of each ending."""
    from vllm import SamplingParams

    asked = [token_input([*prompt, *ending]) for prompt in prompts for ending in endings]
    told = llm.generate(asked, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    found = []
    for number, output in enumerate(told):
        length = len(endings[number % len(endings)])
        behind = zip(output.prompt_token_ids[-length:], output.prompt_logprobs[-length:], strict=True)
        found.append(sum(position[token].logprob for token, position in behind))
    return [found[start : start + len(endings)] for start in range(0, len(found), len(endings))]


def main(rows: int) -> None:
    config, engine = settings(["+job=classify", "source.uri=out/corpus", "sink.uri=unused"])
    set_environment(engine)
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    import torch
    from vllm import LLM

    torch.set_num_threads(engine.threads)
    chat = open_chat(engine.model, 49_152)
    prompts = [
        chat.tokens([(message["role"], message["content"]) for message in each]) for each in conversations(config, rows)
    ]
    llm = LLM(**{key: value for key, value in engine_args(engine).items() if key != "disable_log_stats"})
    params = sampling_params(SAMPLING, Constraint(choices=LABELS), 0)
    outputs = llm.generate([token_input(prompt) for prompt in prompts], params, use_tqdm=False)
    labels = [output.outputs[0].text for output in outputs]
    read = sum(len(prompt) for prompt in prompts) - sum(output.num_cached_tokens or 0 for output in outputs)
    whole = [list(output.outputs[0].token_ids) for output in outputs]
    decided = [_decided(llm.get_tokenizer(), ids) for ids in whole]

    end = llm.get_tokenizer().eos_token_id
    endings = [[*llm.get_tokenizer().encode(label, add_special_tokens=False), end] for label in LABELS]
    scored = [LABELS[each.index(max(each))] for each in scores(llm, prompts, endings)]
    result = {
        "benchmark": "labels",
        "rows": rows,
        "labels": LABELS,
        "computed_until_decided": read + sum(count - 1 for count in decided),
        "computed_to_the_end": read + sum(len(ids) - 1 for ids in whole),
        "computed_by_scores": sum(len(prompt) + len(ending) for prompt in prompts for ending in endings),
        "same_label_by_scores": sum(one == other for one, other in zip(labels, scored, strict=True)) / rows,
        "answers": {label: labels.count(label) for label in LABELS},
        "answers_by_scores": {label: scored.count(label) for label in LABELS},
    }
    for name, value in result.items():
        print(f"{name:<24} {value}")
    print(json.dumps(result | circumstances(f"python -m benchmarks.labels {rows}")))


def _decided(tokenizer: Any, ids: list[int]) -> int:
    """After how many tokens of a whole answer one label is left."""
    for count in range(1, len(ids)):
        text = tokenizer.decode(ids[:count])
        if sum(label.startswith(text) for label in LABELS) == 1:
            return count
    return len(ids)


if __name__ == "__main__":
    main(*[int(argument) for argument in sys.argv[1:]] or [100])
