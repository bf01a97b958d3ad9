"""Small models' folders for tests: tokenizers of the kinds that are about, each with a trap in it."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Llama 2's: content is trimmed, the first token is written by the template.
BRACKETS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' ~ message['content'] ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)
TEXTS = [
    "the food was great and we came back for more",
    "Is the sentiment of this text negative or positive? Answer with one label.",
    "system user assistant im_start im_end <|>[]/INST tool_call",
    "naïve café – 日本語 𝔘nicode\n\n\ttabs  and   blanks",
]


def write(folder: Path, tokenizer: Tokenizer, template: str | None, **config: Any) -> Path:
    """A model's folder with this tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    size = tokenizer.get_vocab_size()
    about = {"model_type": "llama", "vocab_size": size, "max_position_embeddings": 512, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def bytes_bpe(folder: Path) -> Path:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen; one control token that is not special, one of blanks that is none."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text in ("<|im_start|>", "<|im_end|>", "<|x|>")]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "    ")])
    return write(folder, tokenizer, CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")


def folding_bpe(folder: Path) -> Path:
    """BPE behind a normalizer that folds case and width; its control tokens are looked for after that."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokens = [AddedToken(text, normalized=True, special=True) for text in ("<s>", "</s>", "[INST]", "[/INST]")]
    tokenizer.add_special_tokens(tokens)
    return write(folder, tokenizer, BRACKETS, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def pieces_unigram(folder: Path) -> Path:
    """Unigram, as SentencePiece's: the control tokens stand in the model's own vocabulary, where text can find them."""
    letters = sorted(
        {letter for text in TEXTS for letter in text.replace(" ", "▁")} | set("abcdefghijklmnopqrstuvwxyz<>/s")
    )
    vocabulary = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), *((letter, -5.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return write(folder, tokenizer, BRACKETS, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = {"bytes": bytes_bpe, "folding": folding_bpe, "pieces": pieces_unigram}
