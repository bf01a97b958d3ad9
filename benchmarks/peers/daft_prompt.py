"""Daft's prompt with its vLLM provider, and the pipeline's engine settings: a Request as JSON in, Parquet out.

Daft is in no lock here: `pip install daft==0.7.26` beside the rest. Its provider takes a prompt as text, so the chat
template is applied before, by the model's tokenizer. It tells nothing of tokens.

The last line on standard output is JSON.
"""

import json
from typing import Any

import pyarrow.dataset as ds

from benchmarks.peers.request import Request


def main(request: Request) -> dict[str, Any]:
    import daft  # type: ignore[import-not-found]  # see above
    from daft.functions import prompt  # type: ignore[import-not-found]
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    tokenizer = AutoTokenizer.from_pretrained(request.model)

    def text_of(system: str, user: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    render = daft.func(text_of)
    structured = StructuredOutputsParams(choice=list(request.choices)) if request.choices else None
    params = SamplingParams(temperature=0, max_tokens=request.max_tokens, structured_outputs=structured)
    rows = daft.read_parquet(request.corpus)
    rows = rows.with_column("prompt", render(daft.col("system"), daft.col("user")))
    answer = prompt(
        daft.col("prompt"),
        provider="vllm-prefix-caching",
        model=request.model,
        engine_args=dict(request.engine),
        generate_args={"sampling_params": params},
        gpus_per_actor=0,
        num_gpus=0,
    )
    rows.with_column("answer", answer).exclude("prompt").write_parquet(request.answers)
    return {"rows": ds.dataset(request.answers, format="parquet").count_rows()}


if __name__ == "__main__":
    print(json.dumps(main(Request.from_command_line())))
