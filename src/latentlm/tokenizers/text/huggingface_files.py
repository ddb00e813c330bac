"""Reading a Hugging Face tokenizer folder: which file is the vocabulary, what begins and ends a text, what is special.

tokenizer.json alone does not say what begins and ends a text. Its neighbours do, and they also name special tokens that
tokenizer.json does not flag.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm.storage import StorageError, read_json
from latentlm.tokenizers.text.base import list_some

DEFINITION_NAME = "tokenizer.json"

_TOKENIZER_CONFIG, _SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
_MODEL_CONFIGS = ("generation_config.json", "config.json")
_SLOW_FILES = ("vocab.json", "vocab.txt", "merges.txt")
_NAMED_TOKENS = ("bos_token", "eos_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ForeignFiles:
    """What a Hugging Face folder says."""

    definition: dict[str, Any]
    """Content of tokenizer.json."""
    eos_token: str
    bos_token: str | None
    """What begins a text; None if that is not said."""
    special_tokens: frozenset[str]
    """Tokens that its other files call special."""


def read_foreign(path: Path, eos_token: str | None = None) -> ForeignFiles:
    """Read a folder of Hugging Face's, or one tokenizer.json with what lies beside it.

    Args:
        path: The folder or the file.
        eos_token: What ends a text, as it is spelt in the vocabulary. None: what the folder says, in
            tokenizer_config.json, special_tokens_map.json, generation_config.json or config.json, in this order.

    Raises:
        ValueError: If there is no tokenizer.json, it is damaged, or nothing says what ends a text.
    """
    folder = path if path.is_dir() else path.parent
    is_definition = path.is_file() and path.suffix != ".model" and path.name not in _SLOW_FILES
    file = path if is_definition else folder / DEFINITION_NAME
    if not file.is_file():
        raise StorageError("missing", _why_missing(folder, file))
    definition = read_json(file)
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise StorageError("unreadable", f"{file} is no tokenizer.json: it describes no model")
    configs = [_read_optional(folder / name) for name in (_TOKENIZER_CONFIG, _SPECIAL_TOKENS_MAP)]
    special = [token["content"] for token in added_tokens(definition) if token.get("special")]
    eos_token = eos_token or _named(configs, "eos_token") or _by_id(folder, definition, "eos_token_id")
    if eos_token is None:
        known = list_some(special)
        raise ValueError(
            f"{folder} does not say which token ends a text; give eos_token, "
            + (f"perhaps one of its special tokens {known}" if known else "it has no special tokens")
        )
    bos_token = _named(configs, "bos_token")
    if bos_token is None:
        by_id = _by_id(folder, definition, "bos_token_id")
        # Configs keep defaults that their tokenizers know nothing of: an ordinary token does not begin texts.
        bos_token = by_id if by_id in special else None
    named_special = frozenset(name for config in configs for name in _special_names(config))
    return ForeignFiles(definition, eos_token, bos_token, named_special)


def added_tokens(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of `added_tokens` that have the form of one.

    Raises:
        ValueError: If an entry has another form.
    """
    entries = definition.get("added_tokens") or []
    for entry in entries:
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int):
            raise ValueError(f"{DEFINITION_NAME} is damaged: it has the added token {str(entry)[:60]}")
    return entries


def token_ids(definition: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of a definition, added tokens included.

    Raises:
        ValueError: If the vocabulary has no form that is known.
    """
    vocabulary = definition["model"].get("vocab")
    if isinstance(vocabulary, dict):
        ids = dict(vocabulary)
    elif isinstance(vocabulary, list):  # Unigram: [piece, score] in the order of ids
        ids = {str(entry[0]): index for index, entry in enumerate(vocabulary)}
    else:
        raise ValueError(f"{DEFINITION_NAME} is damaged: its model has no vocabulary")
    ids.update({token["content"]: token["id"] for token in added_tokens(definition)})
    return ids


def _why_missing(folder: Path, file: Path) -> str:
    is_sentencepiece = any(folder.glob("*.model"))
    if is_sentencepiece or any((folder / name).is_file() for name in _SLOW_FILES):
        kind = "a SentencePiece model" if is_sentencepiece else "the files of a slow tokenizer"
        return (
            f"{folder} holds {kind} but no {DEFINITION_NAME}; write one with transformers, once: "
            "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
        )
    return f"{file} does not exist"


def _read_optional(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise StorageError("unreadable", f"{path} is no JSON object")
    return content


def _spelling(token: Any) -> str | None:
    """Tokens stand as text or as {"content": text}."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _named(configs: Sequence[Mapping[str, Any]], role: str) -> str | None:
    """The token that the tokenizer's own files give a role; None if none does."""
    spelt = [_spelling(config.get(role)) for config in configs]
    return next((name for name in spelt if name), None)


def _by_id(folder: Path, definition: Mapping[str, Any], role: str) -> str | None:
    """The token whose id the model's configs give a role; None if none does."""
    by_id = {token_id: token for token, token_id in token_ids(definition).items()}
    for name in _MODEL_CONFIGS:
        token_id = _read_optional(folder / name).get(role)
        if isinstance(token_id, list) and token_id:
            token_id = token_id[0]  # chat models list several that end a turn; the first ends a text
        if isinstance(token_id, int) and token_id in by_id:
            return by_id[token_id]
    return None


def _special_names(config: Mapping[str, Any]) -> Iterator[str]:
    named = [config.get(name) for name in _NAMED_TOKENS]
    named += config.get("additional_special_tokens") or []
    described = config.get("added_tokens_decoder")
    if isinstance(described, dict):
        named += [token for token in described.values() if isinstance(token, dict) and token.get("special")]
    yield from (name for name in map(_spelling, named) if name)
