"""Which text tokenizer a recipe means, and which one a model's folder holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from latentlm.data.datasets import resolve_path
from latentlm.tokenizers.text.base import StoredTextTokenizer
from latentlm.tokenizers.text.bytes import ByteTokenizer
from latentlm.tokenizers.text.huggingface import HuggingFaceTokenizer
from latentlm.tokenizers.text.phonemes import PhonemeTokenizer
from latentlm.tokenizers.text.stored import read_config
from latentlm.tokenizers.text.tiktoken import TiktokenTokenizer

TextTokenizerKind = Literal["bytes", "tiktoken", "huggingface", "phonemes"]

_FOLDER_READERS = {
    ByteTokenizer.kind: ByteTokenizer.from_folder,
    TiktokenTokenizer.kind: TiktokenTokenizer.from_folder,
    HuggingFaceTokenizer.kind: HuggingFaceTokenizer.from_folder,
    PhonemeTokenizer.kind: PhonemeTokenizer.from_folder,
}


@dataclass(frozen=True, kw_only=True)
class TextTokenizerConfig:
    kind: TextTokenizerKind = "bytes"
    """`bytes` needs nothing; `tiktoken` is the paper's (Table 8); `huggingface` is any tokenizer.json;
    `phonemes` is how a text sounds, for models that speak."""
    path: str | None = None
    """tiktoken: a ranks file (None: tiktoken's cache or download). huggingface: a tokenizer.json, or a folder with one.
    Both: the folder of a tokenizer of ours, such as `latentlm bpe` writes. A relative path is looked for here first,
    then below $LATENTLM_DATA."""
    encoding: str = "cl100k_base"
    """Which of tiktoken's encodings."""
    eos_token: str | None = None
    """What ends a text, as the vocabulary spells it. None: what the encoding or the folder says."""
    bos_token: str | None = None
    """huggingface: what begins a text (Llama 3: "<|begin_of_text|>"). None: what the folder says, and if it says
    nothing what ends a text."""

    language: str | None = None
    """phonemes: as espeak-ng calls it; None is en-us."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(TextTokenizerKind):
            raise ValueError(f"kind is {self.kind!r}, must be one of {', '.join(get_args(TextTokenizerKind))}")
        if self.kind in ("bytes", "phonemes") and (self.path is not None or self.eos_token is not None):
            raise ValueError(
                f"the text tokenizer of kind {self.kind!r} takes no path and no eos_token; did you mean another?"
            )
        if self.kind != "phonemes" and self.language is not None:
            raise ValueError(f"the text tokenizer of kind {self.kind!r} takes no language; did you mean 'phonemes'?")
        if self.kind != "huggingface" and self.bos_token is not None:
            raise ValueError(f"the text tokenizer of kind {self.kind!r} takes no bos_token: end-of-text begins a text")
        if self.kind == "huggingface" and self.path is None:
            raise ValueError("a text tokenizer of kind 'huggingface' needs path, a tokenizer.json or its folder")


def open_text_tokenizer(config: TextTokenizerConfig) -> StoredTextTokenizer:
    """The text tokenizer that a recipe describes.

    Raises:
        ValueError: If its files are missing or damaged, or do not say what ends a text.
        OSError: If tiktoken cannot fetch an encoding.
        ImportError: If the kind needs an extra; the message names it.
    """
    path = None if config.path is None else resolve_path(config.path)
    if config.kind == "bytes":
        return ByteTokenizer()
    if config.kind == "tiktoken":
        return TiktokenTokenizer.open(config.encoding, path, config.eos_token)
    if config.kind == "phonemes":
        return PhonemeTokenizer(config.language or "en-us")
    assert path is not None  # checked by the config
    return HuggingFaceTokenizer.open(path, config.eos_token, config.bos_token)


def load_text_tokenizer(folder: Path) -> StoredTextTokenizer:
    """The text tokenizer of a model: reads what `write_files` wrote, of any kind.

    Args:
        folder: In a model folder, `tokenizers/text`.

    Raises:
        ValueError: In a sentence, if the folder is missing, damaged, of a newer format, or of no kind known.
        ImportError: If the kind needs an extra; the message names it.
    """
    kind = read_config(folder)["kind"]
    known = ", ".join(_FOLDER_READERS)
    if kind not in _FOLDER_READERS:
        raise ValueError(f"{folder} holds a {kind!r}, no text tokenizer; their kinds are {known}")
    return _FOLDER_READERS[kind](folder)
