"""Messages to token ids, as the model's own tokenizer and chat template say, with the `tokenizers` library alone.

The ids equal those of transformers' `apply_chat_template(messages, add_generation_prompt=True)`, which is what vLLM's
`LLM.chat` asks for: the rendered chat is encoded as it is, and no special token is added to those that the chat
template writes.

No row can write a control token. What counts is the sequence of control tokens in a prompt: it must be that of the
same chat with harmless contents. Almost every row passes as it is; one that does not, or whose text spells a control
token, is encoded by `Chat._guarded`, and if that does not help it is not asked.
"""

import functools
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer

from pipelines.config import UserError
from pipelines.job.chat_template import NOW, ChatTemplate
from pipelines.job.filters import RowError
from pipelines.job.template import Message

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
BATCH_CHARS = 2**20
MAX_BYTES = 128 * 2**20  # of one file; the largest tokenizer.json of a known model has 33 MB

_NONCE = secrets.token_hex(12)  # no row can know it, so no row can spell what is named after it
_MARK = re.compile(f"\ue000{_NONCE}:([0-9]+)\ue001")

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Chat:
    """A model's way from messages to token ids. One per process and folder: `open_chat`."""

    folder: str
    vocab_size: int
    tokenizer: Tokenizer
    template: ChatTemplate
    controls: dict[str, int]  # the tokens that no row may write, by how they are spelled
    identity: str  # sha256 of the chat template, the tokenizer and their settings

    def check(self, roles: Sequence[str], *, job: str) -> None:
        """See before the start that the model's chat template takes messages of these roles at all.

        Raises:
            UserError: it refuses them, as some do a system message, or its own tokens are not in the vocabulary.
        """
        ids = self.batch([[(role, "x") for role in roles]])[0]
        if isinstance(ids, RowError):
            said = f"{self.folder} cannot be asked with messages of roles {', '.join(roles)}: {ids.reason}"
            raise UserError(f"{said}. Change the messages in conf/job/{job}.yaml, or choose another model")

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of one chat; RowError if it cannot be asked."""
        ids = self.batch([messages])[0]
        if isinstance(ids, RowError):
            raise ids
        return [int(token) for token in ids]

    def batch(self, chats: Sequence[Sequence[Message]]) -> list[Ids | RowError]:
        """The prompts of many chats, each with ids in [0, vocab_size) and none empty, or the error of its row."""
        results: list[Ids | RowError | None] = [None] * len(chats)
        rendered: list[str] = []
        places: list[int] = []  # of `rendered` among the chats
        for place, messages in enumerate(chats):
            try:
                text = self.template.render(messages)
                text.encode()
            except RowError as error:
                results[place] = error
            except UnicodeEncodeError:
                results[place] = RowError("unreadable", "its text holds half a surrogate pair, which is no character")
            else:
                if not any(self._spelled.search(content) for _, content in messages):
                    rendered.append(text)
                    places.append(place)
        for place, ids in zip(places, self._encoded(rendered), strict=True):
            if self._written(ids) == self._frame(_shape(chats[place])):
                results[place] = ids
        return [
            self._checked(self._guarded(messages) if result is None else result)
            for messages, result in zip(chats, results, strict=True)
        ]

    def _encoded(self, texts: Sequence[str]) -> Iterator[Ids]:
        """Ids of each text; what all of them begin with is encoded once.

        A tokenizer takes a text apart at its control tokens before anything else, so the ids before one do not depend
        on what follows it. The first text is encoded whole as well: one that knows better is taken at its word.
        """
        head = self._shared_head(texts)
        if head:
            whole, first, front = self._encoded_whole([texts[0], texts[0][len(head) :], head])
            if np.array_equal(whole, np.concatenate([front, first])):
                for rest in self._encoded_whole([text[len(head) :] for text in texts]):
                    yield np.concatenate([front, rest])
                return
        yield from self._encoded_whole(texts)

    def _shared_head(self, texts: Sequence[str]) -> str:
        """What all texts begin with, up to the last control token in it; empty for one text alone."""
        shared = commonprefix([min(texts), max(texts)]) if len(texts) > 1 else ""  # noqa: RUF071 - characters are meant
        return shared[: max((found.start() for found in self._spelled.finditer(shared)), default=0)]

    def _encoded_whole(self, texts: Sequence[str]) -> Iterator[Ids]:
        """Ids of each text. The library keeps over 100 bytes a token until a batch is done, so batches are bounded."""
        start = 0
        while start < len(texts):
            stop, chars = start, 0
            while stop < len(texts) and (stop == start or chars + len(texts[stop]) <= BATCH_CHARS):
                chars += len(texts[stop])
                stop += 1
            for encoding in self.tokenizer.encode_batch_fast(texts[start:stop], add_special_tokens=False):
                yield np.array(encoding.ids, np.int32)
            start = stop

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        return [len(ids) for ids in self._encoded_whole(texts)]

    def fewest_tokens(self, chars: int) -> int:
        """A text of so many characters has at least so many tokens; 0 where the tokenizer may shorten a text first."""
        return chars // self.longest_token if self.tokenizer.normalizer is None else 0

    @functools.cached_property
    def longest_token(self) -> int:
        """In characters."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def _checked(self, ids: Ids | RowError) -> Ids | RowError:
        if isinstance(ids, RowError):
            return ids
        if not len(ids):
            return RowError("empty", "its prompt has no tokens")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            size = f"the model's vocabulary of {self.vocab_size:,}"
            return RowError("template", f"its prompt holds token id {int(ids.max())}, outside {size}")
        return ids

    # --------------------------------------------------------------------------------------------- control tokens

    @functools.cached_property
    def _spelled(self) -> re.Pattern[str]:
        """Finds control tokens in a text, the longest at each place, as the tokenizer does."""
        spellings = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spellings)) or r"(?!)")

    @functools.cached_property
    def _is_control(self) -> npt.NDArray[np.bool_]:
        size = max(self.vocab_size, self.tokenizer.get_vocab_size(), *self.controls.values(), 0) + 1
        table = np.zeros(size, np.bool_)
        table[list(self.controls.values())] = True
        model = json.loads(self.tokenizer.to_str())["model"]
        unknown = model.get("unk_id") if "unk_id" in model else self.controls.get(model.get("unk_token"))
        if unknown is not None:
            table[unknown] = False  # it stands for any character that the model lacks: that is text
        return table

    def _written(self, ids: Ids) -> tuple[int, ...]:
        """The control tokens among `ids`, in order."""
        return tuple(ids[self._is_control[ids]].tolist())

    @functools.cached_property
    def _frames(self) -> dict[tuple[tuple[str, str], ...], tuple[int, ...]]:
        return {}

    def _frame(self, shape: tuple[tuple[str, str], ...]) -> tuple[int, ...]:
        """The control tokens of a chat of these roles with harmless contents."""
        frame = self._frames.get(shape)
        if frame is None:
            text = self.template.render(shape)
            ids = np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
            frame = self._frames[shape] = self._written(ids)
        return frame

    @functools.cached_property
    def _guard(self) -> tuple[Tokenizer, dict[str, str]]:
        """This tokenizer with its control tokens under names that no row can spell, and those names.

        Their spellings are then unknown to it: neither a search for added tokens nor the model's own vocabulary
        can make a control token out of text.
        """
        names = {spelling: f"\ue000{_NONCE}/{number}\ue001" for number, spelling in enumerate(self.controls)}
        document = json.loads(self.tokenizer.to_str())
        for token in document["added_tokens"]:
            if token["content"] in names:
                token |= {"content": names[token["content"]], "normalized": False, "single_word": False}
        model = document["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(text, text): token for text, token in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not names.keys() & _made_of(pair)]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        document["post_processor"] = None
        return Tokenizer.from_str(json.dumps(document)), names

    def _guarded(self, messages: Sequence[Message]) -> Ids | RowError:
        """The prompt of a chat whose text spells control tokens, with those as text.

        Each spelling in a content is replaced by a mark before the chat template sees it. What then looks like a
        control token in the rendered chat was written by the chat template: it gets its unspellable name, and
        after that the marks become the row's text again.
        """
        guard, names = self._guard
        spelled: list[str] = []

        def mark(match: re.Match[str]) -> str:
            spelled.append(match[0])
            return f"\ue000{_NONCE}:{len(spelled) - 1}\ue001"

        try:
            marked = [(role, self._spelled.sub(mark, content)) for role, content in messages]
            text = self._spelled.sub(lambda match: names[match[0]], self.template.render(marked))
        except RowError as error:
            return error
        text = _MARK.sub(lambda match: spelled[int(match[1])], text)
        ids = np.array(guard.encode(text, add_special_tokens=False).ids, np.int32)
        if any(guard.token_to_id(names[spelling]) != token for spelling, token in self.controls.items()):
            return RowError("template", "its text spells a control token, and this tokenizer cannot keep it text")
        if self._written(ids) != self._frame(_shape(messages)):
            return RowError("template", "its text and the model's chat template make a control token together")
        return ids


def _shape(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    # Blank contents stay blank: some chat templates leave out a system message that says nothing.
    return tuple((role, "x" if content and not content.isspace() else "") for role, content in messages)


def _made_of(pair: str | Sequence[str]) -> set[str]:
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return {left, right, left + right}


# ------------------------------------------------------------------------------------------------- a model's files


@functools.lru_cache(maxsize=4)
def open_chat(folder: str, vocab_size: int, arguments: str = "") -> Chat:
    """The chat of the model in `folder`, opened once per process. `arguments`: of its chat template, as JSON.

    Raises:
        UserError: tokenizer.json or a chat template is missing, or does not fit the model.
    """
    # A CPU task has one CPU; the library would start a thread for each core and take them from the engine.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    root = Path(folder)
    if not (root / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json; save it there with transformers' save_pretrained")
    config = _json(root / "tokenizer_config.json")
    raw = _bytes(root / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # noqa: BLE001  the library raises no other type
        raise UserError(f"{root / 'tokenizer.json'} is no tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    named = _named(root, config)
    _add_missing(tokenizer, config, named)
    source = _template_source(root, config)
    digest = hashlib.sha256(raw)
    digest.update(json.dumps([source, named, config.get("added_tokens_decoder"), NOW.isoformat()]).encode())
    controls = {
        token.content: number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if not token.content.replace("\u2581", " ").isspace()  # runs of blanks are text to all who made such tokens
    }
    if arguments:  # else an output from before there were any would be asked anew
        digest.update(arguments.encode())
    template = ChatTemplate(source, named, where=folder, arguments=json.loads(arguments or "{}"))
    return Chat(folder, vocab_size, tokenizer, template, controls, digest.hexdigest())


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    return path.read_bytes()


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON document: {error}") from None
    return document if isinstance(document, dict) else {}


def _named(root: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token and its like. Those in the tokenizer's config count before those in the older file."""
    named = {}
    for source in (_json(root / "special_tokens_map.json"), config):
        for name in NAMED:
            token = source.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[name] = token
    return named


def _add_missing(tokenizer: Tokenizer, config: dict[str, Any], named: dict[str, str]) -> None:
    """Tokens that only the config knows, as transformers adds them."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            flags = {
                flag: bool(token.get(flag)) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])
            known.add(token["content"])
    for text in dict.fromkeys(named.values()):
        if text not in known:
            tokenizer.add_special_tokens([text])


def _template_source(root: Path, config: dict[str, Any]) -> str:
    path = root / "chat_template.jinja"
    if path.is_file():
        return _bytes(path).decode()
    templates = config.get("chat_template") or _json(root / "chat_template.json").get("chat_template")
    if isinstance(templates, list):
        templates = {item.get("name"): item.get("template") for item in templates}.get("default")
    if not isinstance(templates, str):
        raise UserError(
            f"{root} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): "
            "it is no chat model; use its instruct version"
        )
    return templates
