"""Token ids as transformers makes them, and no row that writes a control token."""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import UserError
from pipelines.job.chat import Chat, open_chat
from pipelines.job.filters import RowError
from pipelines.job.model import cache_dir
from tests.unit.job.models import CHATML, KINDS, TEXTS, bytes_bpe, write

EMBEDDED = cache_dir() / "models" / "smollm2-135m-instruct"
MODELS = ("embedded", *KINDS)

REFERENCE = """
import json, sys
from transformers import AutoTokenizer
for line in sys.stdin:
    folder, chats = json.loads(line)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ask = dict(tokenize=True, add_generation_prompt=True, return_dict=False)
    print(json.dumps([tokenizer.apply_chat_template(chat, **ask) for chat in chats]))
"""


@functools.cache
def folder(model: str) -> Path:
    if model == "embedded":
        if not (EMBEDDED / "tokenizer.json").is_file():
            pytest.skip("the embedded model is not made yet: python -m demo.model")
        return EMBEDDED
    return KINDS[model](Path(tempfile.mkdtemp(prefix="model-")) / model)


def chat(model: str) -> Chat:
    return open_chat(str(folder(model)), 49_152 if model == "embedded" else 10_000)


def roles(*contents: str) -> list[tuple[str, str]]:
    return list(zip(("system", "user", "assistant", "user"), contents, strict=False))


def asked(content: str) -> list[tuple[str, str]]:
    return [("user", content)]


PLAIN = [
    roles("You are a careful annotator.", "Is this good?\n\nText: the food was great\n"),
    roles("", "x"),
    roles("a", "b", "c", "d"),
    *(asked(text) for text in TEXTS if "<|>" not in text),
    asked("  outer blanks \n\n"),
    asked("NUL \x00, bell \x07, BOM \ufeff, e\u0301, 👩‍👩‍👧"),
    asked("    four blanks are a token of one of the models"),
    asked("<|im_ <| |> im_end < s > [INST [/ INST]"),
]


def test_token_ids_equal_those_of_transformers_apply_chat_template() -> None:
    cases = [(str(folder(model)), chat(model), PLAIN) for model in MODELS]
    lines = [
        json.dumps([path, [[{"role": role, "content": content} for role, content in one] for one in chats]])
        for path, _, chats in cases
    ]
    answered = subprocess.run(
        [sys.executable, "-c", REFERENCE], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    for (path, ours, chats), line in zip(cases, answered.stdout.strip().splitlines(), strict=True):
        for messages, expected in zip(chats, json.loads(line), strict=True):
            assert ours.tokens(messages) == expected, (path, messages)


@pytest.mark.parametrize("model", MODELS)
def test_the_chat_template_alone_writes_the_first_token_and_it_is_written_once(model: str) -> None:
    ours = chat(model)
    ids = ours.tokens(asked("hello"))
    first = ours.tokenizer.id_to_token(ids[0])
    assert first in ("<|im_start|>", "<s>")
    assert ids[1] != ids[0]


def written(ours: Chat, ids: list[int]) -> list[int]:
    return [token for token in ids if token in ours.controls.values()]


@pytest.mark.parametrize("model", MODELS)
def test_no_control_token_that_a_row_spells_in_any_place_becomes_one(model: str) -> None:
    ours = chat(model)
    frame = written(ours, ours.tokens(asked("x")))
    for spelling in ours.controls:
        for text in (spelling, f"a{spelling}", f"{spelling}b", f"a {spelling} b", spelling * 3, f"\n{spelling}\n"):
            assert written(ours, ours.tokens(asked(text))) == frame, repr(text)


def decoded_content(ours: Chat, ids: list[int], harmless: str) -> str:
    """The text between the tokens that come before and after the content in a chat with `harmless`."""
    text = ours.tokenizer.decode(ids, skip_special_tokens=False)
    before, after = ours.tokenizer.decode(ours.tokens(asked(harmless)), skip_special_tokens=False).split(harmless)
    assert text.startswith(before)
    assert text.endswith(after)
    return text[len(before) : len(text) - len(after)]


pieces = st.sampled_from(
    [
        *("<|im_start|>", "<|im_end|>", "<|x|>", "<tool_call>", "<|endoftext|>", "<s>", "</s>", "<unk>", "[INST]"),
        *(
            "[/INST]",
            "<|im_",
            "end|>",
            "<",
            "|>",
            "s>",
            "system\n",
            "a",
            " ",
            "é",
            "\ue000",
            "\ue000:0\ue001",
            "{{ x }}",
        ),
    ]
)


@settings(max_examples=150)
@given(st.lists(pieces, max_size=8).map("".join))
@pytest.mark.parametrize("model", ["embedded", "bytes"])
def test_text_made_of_control_tokens_decodes_to_itself_and_opens_no_turn(model: str, text: str) -> None:
    ours = chat(model)
    ids = ours.tokens(asked(text))
    assert written(ours, ids) == written(ours, ours.tokens(asked("x")))
    assert decoded_content(ours, ids, "harmless") == text


@settings(max_examples=150)
@given(st.lists(pieces | st.sampled_from(["＜s＞", "<S>", "[inst]", "［INST］", "</S>"]), max_size=8).map("".join))
@pytest.mark.parametrize("model", ["folding", "pieces"])
def test_control_tokens_hidden_by_normalization_or_in_the_vocabulary_are_not_written(model: str, text: str) -> None:
    ours = chat(model)
    unknown = ours.controls["<unk>"]  # what stands for a character that the model lacks: text
    ids = [token for token in written(ours, ours.tokens(asked(text))) if token != unknown]
    assert ids == written(ours, ours.tokens(asked("x")))


def test_text_that_would_make_a_control_token_together_with_the_chat_template_is_not_asked(tmp_path: Path) -> None:
    bytes_bpe(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}|im_end|> so")
    ours = open_chat(str(tmp_path), 10_000)
    assert ours.tokens(asked("fine"))
    with pytest.raises(RowError) as caught:
        ours.tokens(asked("sly <"))
    assert caught.value.type == "template"


def test_a_row_that_spells_a_control_token_keeps_the_rest_of_the_prompt_as_it_was() -> None:
    ours = chat("embedded")
    plain = ours.tokens(roles("You label.", "A text: fine. Label:"))
    spelled = ours.tokens(roles("You label.", "A text: <|im_end|> fine. Label:"))
    prefix = next(place for place, (a, b) in enumerate(zip(plain, spelled, strict=False)) if a != b)
    assert prefix > 10
    assert plain[-8:] == spelled[-8:]


def test_many_chats_at_once_are_the_same_as_one_by_one_in_their_order() -> None:
    ours = chat("embedded")
    chats = [*PLAIN, asked("<|im_end|>"), asked("half \ud800"), *PLAIN]
    together = ours.batch(chats)
    for messages, ids in zip(chats, together, strict=True):
        if isinstance(ids, RowError):
            assert ids.type == "unreadable"
            assert "\ud800" in messages[0][1]
        else:
            assert ids.tolist() == ours.tokens(messages)
    assert sum(isinstance(ids, RowError) for ids in together) == 1


@settings(max_examples=60)
@given(st.lists(st.lists(pieces, max_size=5).map("".join), min_size=2, max_size=6))
@pytest.mark.parametrize("model", ["embedded", "bytes", "folding", "pieces"])
def test_what_chats_begin_with_is_encoded_once_and_no_id_changes_by_it(model: str, texts: list[str]) -> None:
    ours = chat(model)
    chats = [roles("You are careful.", "Is  this good?", "yes", text) for text in ["first", *texts]]
    if model in ("folding", "pieces"):  # their chat templates take user messages alone
        chats = [asked(f"Is  this good? {text}") for text in ["first", *texts]]
    for messages, ids in zip(chats, ours.batch(chats), strict=True):
        alone = ours.batch([messages])[0]
        if isinstance(ids, RowError) or isinstance(alone, RowError):
            assert isinstance(ids, RowError) and isinstance(alone, RowError)
        else:
            assert ids.tolist() == alone.tolist()


def test_the_shared_beginning_of_chats_is_found() -> None:
    ours = chat("embedded")
    texts = [ours.template.render(roles("System.", text)) for text in ("one", "two", "two and more")]
    assert ours._shared_head(texts).endswith("System.<|im_end|>\n")
    assert ours._shared_head(texts[:1]) == ""


def test_a_token_id_outside_the_models_vocabulary_is_a_row_error_and_never_reaches_the_engine() -> None:
    path = folder("bytes")
    narrow = open_chat(str(path), 300)
    with pytest.raises(RowError, match=r"outside the model's vocabulary of 300"):
        narrow.tokens(asked("hello"))


def test_roles_that_the_chat_template_refuses_are_found_before_the_start(tmp_path: Path) -> None:
    bytes_bpe(tmp_path)
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    (tmp_path / "chat_template.jinja").write_text(refusing)
    ours = open_chat(str(tmp_path), 10_000)
    ours.check(["user"], job="mine")
    with pytest.raises(UserError, match=r"system, user: .*no system role.*conf/job/mine\.yaml"):
        ours.check(["system", "user"], job="mine")


def test_an_empty_chat_is_a_row_error(tmp_path: Path) -> None:
    bytes_bpe(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] | trim }}")
    with pytest.raises(RowError) as caught:
        open_chat(str(tmp_path), 1000).tokens(asked("  "))
    assert caught.value.type == "empty"


# ------------------------------------------------------------------------------------------------- the folder


def test_a_folder_without_tokenizer_or_chat_template_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        open_chat(str(tmp_path), 10)
    write(tmp_path, open_chat(str(folder("bytes")), 10_000).tokenizer, None)
    with pytest.raises(UserError, match="no chat template"):
        open_chat(str(tmp_path), 11)


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": CHATML},
        {"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]},
    ],
)
def test_the_chat_template_may_stand_in_the_tokenizers_config(tmp_path: Path, config: dict[str, Any]) -> None:
    ours = open_chat(str(folder("bytes")), 10_000)
    write(tmp_path, ours.tokenizer, None, **config)
    assert open_chat(str(tmp_path), 10_000).tokens(asked("hi")) == ours.tokens(asked("hi"))


def test_the_identity_changes_with_tokenizer_and_chat_template_and_with_nothing_else(tmp_path: Path) -> None:
    ours = open_chat(str(folder("bytes")), 10_000)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    same = open_chat(str(write(tmp_path / "same", ours.tokenizer, CHATML, **config)), 10_000)
    other = open_chat(str(write(tmp_path / "other", ours.tokenizer, CHATML + " ", **config)), 10_000)
    assert same.identity == open_chat(str(tmp_path / "same"), 20_000).identity
    assert other.identity != same.identity


THINKING = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def test_an_argument_of_the_chat_template_reaches_it_and_its_identity(tmp_path: Path) -> None:
    ours = open_chat(str(folder("bytes")), 10_000)
    path = str(write(tmp_path / "thinks", ours.tokenizer, THINKING))
    silent = str(write(tmp_path / "silent", ours.tokenizer, CHATML + "<think></think>"))

    plain, told = open_chat(path, 10_000), open_chat(path, 10_000, '{"enable_thinking": false}')

    assert plain.tokens(asked("hi")) == ours.tokens(asked("hi"))
    assert told.tokens(asked("hi")) == open_chat(silent, 10_000).tokens(asked("hi"))
    assert told.tokens(asked("<|im_end|>")) == open_chat(silent, 10_000).tokens(asked("<|im_end|>"))
    assert told.identity not in (plain.identity, open_chat(path, 10_000, '{"enable_thinking": true}').identity)


def test_an_argument_that_the_chat_template_does_not_know_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = str(write(tmp_path, open_chat(str(folder("bytes")), 10_000).tokenizer, THINKING))

    with pytest.raises(UserError, match=r"enable_thinkin: .* knows no such argument. Did you mean enable_thinking\?"):
        open_chat(path, 10_000, '{"enable_thinkin": false}')
