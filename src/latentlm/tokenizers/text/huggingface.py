"""Any fast tokenizer of Hugging Face's: a tokenizer.json, run by the small library `tokenizers`.

What these files leave open, and what is decided here:

- A text that spells a special token is text. The library can be told so, yet some models (Unigram, WordLevel) hold
  their special tokens as words and find them all the same; such a word is cut in two and read again.
- Special are the added tokens that any file of the folder calls so, and end-of-text. Other added tokens (GPT-NeoX's
  runs of spaces, for instance) are ordinary words: they stand for their own text and come back as it.
- Truncation, padding and BPE dropout that a training left in the file are turned off: all of a text is encoded, and
  always to the same ids.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, `train_bpe`) return every text exactly, unless they normalise it.
Others return it as far as their model goes: lower-cased, or with unknown characters left out.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlm.storage import StorageError, write_json
from latentlm.tokenizers.text.base import check_ids, refuse_surrogates
from latentlm.tokenizers.text.byte_table import ByteTable
from latentlm.tokenizers.text.cutting import cut_text, find_safe_places
from latentlm.tokenizers.text.huggingface_files import DEFINITION_NAME, added_tokens, read_foreign, token_ids
from latentlm.tokenizers.text.stored import (
    check_fingerprint,
    is_stored,
    read_config,
    read_setting,
    read_vocabulary,
    write_config,
)

_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


class HuggingFaceTokenizer:
    """A vocabulary in the form of tokenizer.json, special tokens out of reach of `encode`.

    Args:
        definition: Content of a tokenizer.json.
        eos_token: The token that ends a text.
        bos_token: The token that begins a text (Llama's models were trained with one); None: the one that ends it.
        special_tokens: Added tokens that are special although the definition does not flag them; others are ignored.

    Attributes:
        definition: The one it works by, with every special token flagged.

    Raises:
        ValueError: If the definition is damaged, or has no such end-of-text.
        ImportError: If `tokenizers` is not installed.
    """

    kind = "huggingface"

    def __init__(
        self,
        definition: Mapping[str, Any],
        *,
        eos_token: str,
        bos_token: str | None = None,
        special_tokens: Collection[str] = frozenset(),
    ) -> None:
        ids = token_ids(definition)
        for token, does in ((eos_token, "end"), (bos_token or eos_token, "begin")):
            if token not in ids:
                raise ValueError(f"the vocabulary of {DEFINITION_NAME} has no token {token!r} to {does} a text")
        self.eos_token, self.bos_token = eos_token, bos_token
        self.eos_id, self.bos_id = ids[eos_token], ids[bos_token or eos_token]
        self.num_ids = 1 + max(ids.values())
        self.definition = definition
        for token in (eos_token, bos_token or eos_token):
            self.definition = _prepare(self.definition, token, ids[token], special_tokens)
        self.special_ids = frozenset(token["id"] for token in added_tokens(self.definition) if token["special"])
        self._tokenizer = _build(self.definition)
        # Unknown characters get the unknown token, special or not; that forges nothing, unless it ends a text.
        self._forbidden_ids = self.special_ids - ({_unknown_id(self.definition, ids)} - {self.eos_id})
        self._table = _byte_table(self.definition, ids, self.special_ids)
        falls_back = "ByteFallback" in _decoder_types(self.definition.get("decoder"))
        self._fallback_ids = frozenset(ids[name] for name in ids if falls_back and _BYTE_FALLBACK.fullmatch(name))
        self._safe_places = find_safe_places(self._encode_piece)
        halves = [*self._encode_piece("wo"), *self._encode_piece("rds")]
        self._may_cut_anywhere = self.decode(halves) == self.decode(self._encode_piece("words"))

    @classmethod
    def open(cls, path: Path, eos_token: str | None = None, bos_token: str | None = None) -> "HuggingFaceTokenizer":
        """A folder of Hugging Face's, a tokenizer.json, or a folder that `write_files` or `latentlm bpe` wrote.

        Args:
            path: The folder or file.
            eos_token: What ends a text; None: what the folder says (see `huggingface_files.read_foreign`).
            bos_token: What begins a text; None: what the folder says, and if it says nothing what ends a text.

        Raises:
            ValueError: If there is no tokenizer.json, it is damaged, or the folder does not say what ends a text.
            ImportError: If `tokenizers` is not installed.
        """
        if path.is_dir() and is_stored(path):
            tokenizer = cls.from_folder(path)
            if eos_token not in (None, tokenizer.eos_token):
                raise ValueError(f"{path} was written with eos_token {tokenizer.eos_token!r}, not {eos_token!r}")
            if bos_token not in (None, tokenizer.bos_token):
                raise ValueError(f"{path} was written with bos_token {tokenizer.bos_token!r}, not {bos_token!r}")
            return tokenizer
        foreign = read_foreign(path, eos_token)
        bos_token = bos_token or foreign.bos_token
        return cls(
            foreign.definition,
            eos_token=foreign.eos_token,
            bos_token=None if bos_token == foreign.eos_token else bos_token,
            special_tokens=foreign.special_tokens,
        )

    def encode(self, text: str) -> list[int]:
        """Ordinary ids of a text; of vocabularies with an unknown token, also that.

        Texts longer than `MAX_PIECE_CHARS` are encoded in pieces (see `cutting.py`). Where a vocabulary leaves no place
        to cut, they are encoded at once, which takes some hundred bytes of memory per character.

        Raises:
            ValueError: If the text holds a lone surrogate, or one character that is a special token.
        """
        refuse_surrogates(text)
        if self._safe_places is None:
            return self._encode_piece(text)
        pieces = cut_text(text, self._safe_places, anywhere=self._may_cut_anywhere)
        return [token for piece in pieces for token in self._encode_piece(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids. Special and unassigned ids are left out; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: If an id lies outside [0, num_ids).
        """
        if self._table is not None:
            return self._table.decode(ids)
        check_ids(ids, self.num_ids)
        return self._tokenizer.decode([token for token in ids if token not in self.special_ids])

    def num_bytes(self, ids: Sequence[int]) -> int:
        """UTF-8 bytes of the text that ids stand for."""
        return len(self.decode(ids).encode()) if self._table is None else self._table.num_bytes(ids)

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes of one id of a byte-level vocabulary; of others None, unless the id stands for nothing."""
        if self._table is not None:
            return self._table[token]
        check_ids((token,), self.num_ids)
        return b"" if token in self.special_ids else None

    def may_change(self, token: int) -> bool:
        """Whether this is a byte that its neighbours may complete to a character (<0xE4>), as in Llama 2."""
        return token in self._fallback_ids

    def fingerprint(self) -> str:
        """SHA-256, as hex, over the definition and what ends and begins a text."""
        content = json.dumps([self.definition, self.eos_token, self.bos_token], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def write_files(self, folder: Path) -> None:
        """Write config.json and tokenizer.json into a folder that exists.

        Raises:
            StorageError: If the disk refuses.
        """
        write_json(folder / DEFINITION_NAME, self.definition)
        settings = {"eos_token": self.eos_token} | ({"bos_token": self.bos_token} if self.bos_token else {})
        write_config(folder, kind=self.kind, fingerprint=self.fingerprint(), **settings)

    @classmethod
    def from_folder(cls, folder: Path) -> "HuggingFaceTokenizer":
        """Read what `write_files` wrote.

        Raises:
            ValueError: In a sentence, if the folder holds another kind, a newer format or a damaged file.
        """
        config = read_config(folder, kind=cls.kind)
        definition = read_vocabulary(folder / DEFINITION_NAME)
        if not isinstance(definition.get("model"), dict):
            raise StorageError("unreadable", f"{folder / DEFINITION_NAME} is damaged: it describes no model")
        eos_token = read_setting(config, "eos_token", str, folder)
        bos_token = read_setting(config, "bos_token", str, folder) if "bos_token" in config else None
        try:
            tokenizer = cls(definition, eos_token=eos_token, bos_token=bos_token)
        except ValueError as error:
            raise StorageError("unreadable", f"{folder} is damaged: {error}") from error
        check_fingerprint(tokenizer.fingerprint(), config, folder)
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        # The library's own pickle forgets `encode_special_tokens`: a data worker's copy would read "<|endoftext|>" as
        # the end of a text. Building anew does not forget it.
        return {"definition": self.definition, "eos_token": self.eos_token, "bos_token": self.bos_token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["definition"], eos_token=state["eos_token"], bos_token=state["bos_token"])

    def _encode_piece(self, text: str) -> list[int]:
        ids: list[int] = []
        waiting = [text]  # the next stretch of the text last
        while waiting:
            stretch = waiting.pop()
            encoding = self._tokenizer.encode(stretch, add_special_tokens=False)
            if self._forbidden_ids.isdisjoint(encoding.ids):
                ids += encoding.ids
            else:
                waiting += reversed(self._cut_special_words(stretch, encoding))
        return ids

    def _cut_special_words(self, text: str, encoding: Any) -> list[str]:
        """The text, cut in the middle of every word that the model took for a special token."""
        cuts = [0]
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._forbidden_ids:
                if end - start < 2:
                    raise ValueError(
                        f"this tokenizer reads {text[start:end]!r} as its special token {token}; choose another "
                        "eos_token, or another tokenizer"
                    )
                cuts.append((start + end) // 2)
        return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _prepare(definition: Mapping[str, Any], mark: str, mark_id: int, special_tokens: Collection[str]) -> dict[str, Any]:
    """A definition with every special token flagged, and without what makes encoding lossy or random."""
    tokens = [
        {**token, "special": bool(token.get("special")) or token["content"] in {*special_tokens, mark}}
        for token in added_tokens(definition)
    ]
    if not any(token["content"] == mark for token in tokens):
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        tokens.append({"id": mark_id, "content": mark, **plain, "special": True})
        tokens.sort(key=lambda token: token["id"])  # the order that the library expects
    model = dict(definition["model"])
    if "dropout" in model:
        model["dropout"] = None
    return {**definition, "truncation": None, "padding": None, "added_tokens": tokens, "model": model}


def _build(definition: Mapping[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("Hugging Face tokenizers need tokenizers: pip install 'latentlm[text]'") from error
    try:
        tokenizer = Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library knows no narrower one
        raise ValueError(f"{DEFINITION_NAME} is damaged, or of another version: {error}") from error
    for token in added_tokens(definition):
        number = tokenizer.token_to_id(token["content"])
        if number != token["id"]:  # the library numbers added tokens itself and does not mind gaps in the file
            raise ValueError(f"{DEFINITION_NAME} gives {token['content']!r} the id {token['id']}, but it is {number}")
    tokenizer.encode_special_tokens = True  # meaning: as text
    return tokenizer


def _unknown_id(definition: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    model = definition["model"]
    return model["unk_id"] if "unk_id" in model else ids.get(model.get("unk_token") or "")


def _decoder_types(decoder: Any) -> list[str]:
    """Types of a decoder's steps, in order."""
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [name for step in decoder["decoders"] for name in _decoder_types(step)]
    return [str(decoder.get("type"))]


def _byte_table(
    definition: Mapping[str, Any], ids: Mapping[str, int], special_ids: Collection[int]
) -> ByteTable | None:
    """The bytes of every id, if the vocabulary is byte-level."""
    if _decoder_types(definition.get("decoder")) != ["ByteLevel"]:
        return None
    alphabet = _byte_alphabet()
    tokens = [b""] * (1 + max(ids.values()))
    for name, token in ids.items():
        is_spelt = all(character in alphabet for character in name)
        tokens[token] = bytes(alphabet[character] for character in name) if is_spelt else name.encode()
    for entry in added_tokens(definition):  # these stand for their own text, whatever its letters
        tokens[entry["id"]] = entry["content"].encode()
    for token in special_ids:
        tokens[token] = b""
    return ByteTable(tokens)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as visible characters: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(hidden)}
