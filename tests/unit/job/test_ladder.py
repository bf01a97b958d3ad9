"""The ladder: what is tried for a row before it becomes a dead letter."""

import pickle
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.engine import Answer
from pipelines.config import LadderConfig, ModelConfig, OutputConfig, UserError
from pipelines.job.chat import Chat, open_chat
from pipelines.job.contract import OutputContract
from pipelines.job.filters import RowError
from pipelines.job.ladder import GAP, AskAgain, check, follow_up, shortened
from pipelines.job.model import ModelFiles, resolve
from tests.unit.job.models import bytes_bpe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = bytes_bpe(tmp_path_factory.mktemp("ladder") / "model")
    return resolve(ModelConfig(name="mine", path=str(folder)), cache=folder.parent / "cache")


@pytest.fixture(scope="module")
def chat(model: ModelFiles) -> Chat:
    return open_chat(model.tokenizer_folder, model.vocab_size)


def answer(text: str, finish_reason: str = "stop") -> Answer:
    return Answer(
        text=text,
        finish_reason="length" if finish_reason == "length" else "stop",
        prompt_tokens=1,
        cached_tokens=0,
        output_tokens=1,
    )


def again(model: ModelFiles, *, max_model_len: int = 4096) -> AskAgain:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    contract = OutputContract.of(OutputConfig(kind="json", json_schema=schema), job="mine")
    return AskAgain(times=2, model=model, contract=contract, max_tokens=8, max_model_len=max_model_len)


def test_a_follow_up_makes_the_very_prompt_of_the_longer_chat(chat: Chat) -> None:
    asked = [("system", "be brief"), ("user", "how many?")]
    whole = [*asked, ("assistant", "many"), ("user", "a number!")]

    assert chat.tokens(asked) + follow_up(chat, "many", "a number!") == chat.tokens(whole)


def test_an_answer_that_spells_a_control_token_is_quoted_as_text(chat: Chat) -> None:
    control, number = next(iter(chat.controls.items()))
    harmless = follow_up(chat, "x", "again").count(number)
    assert follow_up(chat, f"x {control} y", "again").count(number) == harmless


def test_a_good_answer_is_not_asked_again_and_a_bad_one_is_told_what_was_wrong(model: ModelFiles, chat: Chat) -> None:
    ladder = pickle.loads(pickle.dumps(again(model)))
    prompt = tuple(chat.tokens([("user", "how many?")]))

    assert ladder(prompt, answer('{"n": 3}')) is None
    following = ladder(prompt, answer('{"n": "three"}'))

    assert following is not None
    assert following[: len(prompt)] == prompt
    said = chat.tokenizer.decode(list(following[len(prompt) :]), skip_special_tokens=False)
    assert '{"n": "three"}' in said
    assert "'type'" in said


def test_a_question_that_would_not_fit_the_model_is_not_asked(model: ModelFiles, chat: Chat) -> None:
    prompt = tuple(chat.tokens([("user", "how many?")]))
    assert again(model, max_model_len=len(prompt) + 20)(prompt, answer("none")) is None


class _RewritesTurns:
    def tokens(self, messages: list[tuple[str, str]]) -> list[int]:
        return [len(messages), 1]


def test_a_model_that_cannot_go_on_from_an_answer_is_refused_before_the_start(chat: Chat) -> None:
    check(LadderConfig(ask_again=1), chat, job="mine")
    rewrites: Chat = _RewritesTurns()  # type: ignore[assignment]
    check(LadderConfig(), rewrites, job="mine")
    with pytest.raises(UserError, match=r"job mine: ladder.ask_again=1 .*set it to 0"):
        check(LadderConfig(ask_again=1), rewrites, job="mine")
    with pytest.raises(RowError):
        follow_up(rewrites, "x", "x")


POLICIES = ("cut_end", "cut_start", "cut_middle")


@given(st.text(min_size=1, max_size=300), st.integers(0, 60), st.sampled_from(POLICIES))
def test_as_much_of_the_longest_text_stays_as_fits(text: str, room: int, policy: str) -> None:
    assume(len(text) + 1 > room)
    ladder = LadderConfig.__pydantic_validator__.validate_python({"too_long": policy})  # type: ignore[attr-defined]

    def fitting(row: dict[str, str]) -> str | None:
        prompt = f"{row['title']}|{row['text']}"
        return prompt if len(prompt) <= room else None

    found = shortened({"title": "", "text": text, "n": 3}, ("n", "text", "title"), ladder, fitting, most_chars=10**6)

    gap = len(GAP) if policy == "cut_middle" else 0
    if found is None:  # not even one character fits
        assert room < 2 + gap or len(text) == 1
        return
    prompt, cut = found
    kept = prompt.removeprefix("|").replace(GAP, "", 1) if gap else prompt.removeprefix("|")
    assert len(kept) == len(text) - cut
    assert len(prompt) == min(room, len(text) + gap)  # one character more would be too long, or all of them
    half = len(kept) // 2
    beginning, end = {"cut_end": (kept, ""), "cut_start": ("", kept)}.get(policy, (kept[: -half or None], kept[-half:]))
    assert text.startswith(beginning)
    assert half == 0 or text.endswith(end)


def test_a_row_without_text_cannot_be_cut() -> None:
    assert shortened({"n": 1}, ("n",), LadderConfig(too_long="cut_end"), lambda row: "x", 10) is None


def test_the_ladder_changes_the_fingerprint_only_when_it_is_on(tmp_path: Path) -> None:
    from actors.engine import EngineConfig
    from pipelines.config import JobConfig, MessageConfig
    from pipelines.job.fingerprint import fingerprint

    def parts(ladder: LadderConfig) -> dict[str, str]:
        job = JobConfig(
            name="mine",
            messages=(MessageConfig(role="user", content="{{ text }}"),),
            output=OutputConfig(kind="text"),
            ladder=ladder,
        )
        engine = EngineConfig(kind="simulated", model="m", model_name="m")
        return fingerprint(job, engine=engine, model_identity="m", chat_template="c").parts

    assert "ladder" not in parts(LadderConfig())
    assert parts(LadderConfig(ask_again=1))["ladder"] != parts(LadderConfig(too_long="cut_end"))["ladder"]
