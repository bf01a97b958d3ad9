"""What changes a fingerprint, what does not, and what people are told of it."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from actors.engine import EngineConfig
from pipelines.config import JobConfig, MessageConfig, OutputConfig, SamplingConfig
from pipelines.job.fingerprint import Fingerprint, difference, fingerprint, row_key

JOB = JobConfig(
    name="mine",
    messages=(MessageConfig(role="user", content="Label: {{ text }}"),),
    output=OutputConfig(kind="labels", labels=("a", "b")),
)
ENGINE = EngineConfig(kind="vllm", model="folder", model_name="smollm2")


def made(job: JobConfig = JOB, engine: EngineConfig = ENGINE, model: str = "m@1", chat: str = "c") -> Fingerprint:
    return fingerprint(job, engine=engine, model_identity=model, chat_template=chat)


def job(**changes: Any) -> JobConfig:
    return dataclasses.replace(JOB, **changes)


def engine(**changes: Any) -> EngineConfig:
    return dataclasses.replace(ENGINE, **changes)


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (made(job(messages=(MessageConfig(role="user", content="Label it: {{ text }}"),))), "prompt template"),
        (made(job(messages=(MessageConfig(role="system", content="Label: {{ text }}"),))), "prompt template"),
        (made(job(output=OutputConfig(kind="labels", labels=("b", "a")))), "output contract"),
        (made(job(sampling=SamplingConfig(stop=("x",)))), "sampling"),
        (made(job(fields=("b", "a"))), "field order"),
        (made(engine=engine(dtype="bfloat16")), "precision"),
        (made(engine=engine(quantization="fp8")), "quantization"),
        (made(engine=engine(kv_cache_dtype="fp8")), "kv cache"),
        (made(engine=engine(kind="simulated")), "engine"),
        (made(model="m@2"), "model"),
        (made(chat="d"), "chat template"),
    ],
)
def test_each_thing_that_changes_an_answer_changes_the_fingerprint_and_is_named(other: Fingerprint, part: str) -> None:
    assert other.digest != made().digest
    assert [line.split(":")[0] for line in difference(made().parts, other.parts)] == [part]


@pytest.mark.parametrize(
    "same",
    [
        made(job(name="other", gold="sentiment")),
        made(job(sampling=SamplingConfig(max_tokens=9))),  # of labels: as many as the longest one takes
        made(job(sampling=SamplingConfig(top_p=0.5, top_k=3))),  # at temperature 0
        made(engine=engine(max_num_seqs=7, max_num_batched_tokens=99, tensor_parallel=2, block_size=32, threads=3)),
        made(engine=engine(model="elsewhere", model_name="other", env={"A": "b"}, max_model_len=99, seed=9)),
    ],
)
def test_what_only_changes_when_and_where_a_row_is_answered_does_not(same: Fingerprint) -> None:
    assert same.digest == made().digest
    assert difference(made().parts, same.parts) == []


def test_the_context_counts_only_where_the_engine_computes_a_model_another_way_for_a_long_one() -> None:
    def parts(max_model_len: int) -> dict[str, str]:
        of = engine(max_model_len=max_model_len)
        return fingerprint(JOB, engine=of, model_identity="m@1", chat_template="c", long_above=4096).parts

    assert parts(100) == parts(4096)
    assert parts(4097) == parts(131_072)
    assert difference(parts(4096), parts(4097)) == ["context: short is now long"]


def test_the_seed_counts_only_where_sampling_draws() -> None:
    drawing = job(sampling=SamplingConfig(temperature=0.7))
    assert made(drawing, engine(seed=1)).digest != made(drawing, engine(seed=2)).digest
    assert difference(made().parts, made(drawing).parts)[0].startswith("sampling: ")
    assert "seed: absent is now 0" in difference(made().parts, made(drawing).parts)


def test_a_difference_at_the_end_of_a_long_prompt_is_shown_where_it_is() -> None:
    long = "Instruction. " * 200
    old = made(job(messages=(MessageConfig(role="user", content=long + "{{ text }}"),)))
    new = made(job(messages=(MessageConfig(role="user", content=long + "{{ body }}"),)))
    (line,) = difference(old.parts, new.parts)
    assert "text" in line
    assert "body" in line
    assert len(line) < 300


def test_digest_and_row_key_are_what_they_always_were() -> None:
    """Other values would have every output there is reprocessed: change them only on purpose."""
    assert Fingerprint({"a": "1"}).digest == "452647e07c48d5e6dbdad452d4f4715de98ad66f3397952966e13ffa37b3523f"
    assert Fingerprint({"b": "2", "a": "1"}).digest == Fingerprint({"a": "1", "b": "2"}).digest
    assert row_key("ab" * 32, [1, 2, 3]) == "35e47e422714c2b3dc1ed6e1b540d7da"


def test_row_keys_are_one_for_one_prompt_and_differ_with_prompt_and_fingerprint() -> None:
    one, two = made().digest, made(model="m@2").digest
    keys = [row_key(one, [1, 2, 3]), row_key(two, [1, 2, 3]), row_key(one, [1, 2]), row_key(one, [1, 2, 4])]
    assert len(set(keys)) == 4
    assert row_key(one, np.array([1, 2, 3], np.int32)) == row_key(one, np.array([1, 2, 3], np.int64)) == keys[0]
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_the_order_of_fields_counts_and_is_told() -> None:
    one, other = made(job(fields=("a", "b"))), made(job(fields=("b", "a")))

    assert one.digest != other.digest
    assert difference(one.parts, other.parts) == ['field order: ["a","b"] is now ["b","a"]']
