"""tiktoken's encodings: cl100k_base, the paper's text tokenizer (Table 8), and its relatives.

An encoding is a regular expression that splits text into words, and a file of ranks: the byte strings it knows, in
order of merging. tiktoken holds the expressions and special tokens, and the SHA-256 of each ranks file; the file itself
comes from tiktoken's cache, its download, or a path. A model's folder keeps all of it, so that it needs none of them.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from latentlm.storage import StorageError, write_json
from latentlm.tokenizers.text.base import list_some, refuse_surrogates
from latentlm.tokenizers.text.byte_table import ByteTable
from latentlm.tokenizers.text.cutting import cut_text
from latentlm.tokenizers.text.stored import check_fingerprint, read_config, read_setting, read_vocabulary, write_config

RANKS_NAME = "ranks.json"
"""In our folders, {base64 of the bytes: rank}: JSON, so that it travels through the hub like every other file."""
DEFAULT_EOS_TOKEN = "<|endoftext|>"


class TiktokenTokenizer:
    """A vocabulary of tiktoken, special tokens out of reach of `encode`.

    Ids are tiktoken's own, but around a cut in the middle of more than `MAX_PIECE_CHARS` characters without a word (see
    `cutting.py`), where tiktoken itself would panic or take minutes.

    Args:
        ranks: Bytes -> id; an id is also the priority of its merge. All 256 single bytes are among them.
        encoding: Its name, for people.
        pattern: Regular expression of words, as tiktoken writes them.
        special_tokens: Text -> id. cl100k_base has five, at 100257..100260 and 100276.
        eos_token: The special token that ends a text.

    Raises:
        ValueError: If bytes are missing, two tokens share an id, there is no such end-of-text, or the pattern is wrong.
        ImportError: If tiktoken is not installed.
    """

    kind = "tiktoken"

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        *,
        encoding: str,
        pattern: str,
        special_tokens: Mapping[str, int],
        eos_token: str = DEFAULT_EOS_TOKEN,
    ) -> None:
        _check_vocabulary(ranks, special_tokens, eos_token, encoding)
        self.encoding = encoding
        self.eos_token = eos_token
        self.eos_id = self.bos_id = special_tokens[eos_token]
        self.special_ids = frozenset(special_tokens.values())
        self.num_ids = 1 + max(max(ranks.values()), max(self.special_ids))
        self._ranks = dict(ranks)
        self._pattern = pattern
        self._special_tokens = dict(special_tokens)
        # Given no special tokens, tiktoken can make none.
        self._encoding = _import_tiktoken().Encoding(
            encoding, pat_str=pattern, mergeable_ranks=self._ranks, special_tokens={}
        )
        tokens = [b""] * self.num_ids
        for data, rank in ranks.items():
            tokens[rank] = data
        self._table = ByteTable(tokens)

    @classmethod
    def open(
        cls, encoding: str = "cl100k_base", path: Path | None = None, eos_token: str | None = None
    ) -> "TiktokenTokenizer":
        """One of tiktoken's encodings.

        Args:
            encoding: Its name.
            path: A local ranks file (cl100k_base.tiktoken, or the file of tiktoken's cache named
                9b5ad71b2ce5302211f9c61530b329a4922fc6a4), or a folder that `write_files` wrote. None: from tiktoken's
                cache ($TIKTOKEN_CACHE_DIR), or the network.
            eos_token: Which special token ends a text; by default <|endoftext|>.

        Raises:
            ValueError: If there is no such encoding, or the file is not the one that tiktoken knows by this name.
            OSError: If the file cannot be read, or cannot be fetched.
            ImportError: If tiktoken is not installed.
        """
        if path is not None and path.is_dir():
            tokenizer = cls.from_folder(path)
            if (encoding, eos_token or tokenizer.eos_token) != (tokenizer.encoding, tokenizer.eos_token):
                raise ValueError(f"{path} was written with {tokenizer.encoding} and eos_token {tokenizer.eos_token!r}")
            return tokenizer
        definition = _define(encoding, path)
        ranks, special_tokens = definition["mergeable_ranks"], definition["special_tokens"]
        expected = definition.get("explicit_n_vocab")
        if expected is not None and expected != len(ranks) + len(special_tokens):
            raise ValueError(f"{path} has {len(ranks)} ranks, but {encoding} has {expected - len(special_tokens)}")
        return cls(
            ranks,
            encoding=encoding,
            pattern=definition["pat_str"],
            special_tokens=special_tokens,
            eos_token=eos_token or DEFAULT_EOS_TOKEN,
        )

    def encode(self, text: str) -> list[int]:
        """Ordinary ids of a text, as `tiktoken.Encoding.encode_ordinary` gives them.

        Raises:
            ValueError: If the text holds a lone surrogate.
        """
        refuse_surrogates(text)
        return [token for piece in cut_text(text) for token in self._encoding.encode_ordinary(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids. Special and unassigned ids are left out; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: If an id lies outside [0, num_ids).
        """
        return self._table.decode(ids)

    def num_bytes(self, ids: Sequence[int]) -> int:
        """UTF-8 bytes of the text that ids stand for."""
        return self._table.num_bytes(ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id; none for special and unassigned ids."""
        return self._table[token]

    def may_change(self, token: int) -> bool:
        """Never: each id stands for its bytes."""
        return False

    def fingerprint(self) -> str:
        """SHA-256, as hex, over pattern, ranks and special tokens; the name does not count."""
        ordered = sorted((rank, data.hex()) for data, rank in self._ranks.items())
        content = [self._pattern, sorted(self._special_tokens.items()), self.eos_token, ordered]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def write_files(self, folder: Path) -> None:
        """Write config.json and ranks.json into a folder that exists.

        Raises:
            StorageError: If the disk refuses.
        """
        ordered = sorted(self._ranks.items(), key=lambda item: item[1])
        write_json(folder / RANKS_NAME, {base64.b64encode(data).decode(): rank for data, rank in ordered})
        write_config(
            folder,
            kind=self.kind,
            fingerprint=self.fingerprint(),
            encoding=self.encoding,
            pattern=self._pattern,
            special_tokens=self._special_tokens,
            eos_token=self.eos_token,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "TiktokenTokenizer":
        """Read what `write_files` wrote.

        Raises:
            ValueError: In a sentence, if the folder holds another kind, a newer format or a damaged file.
        """
        config = read_config(folder, kind=cls.kind)
        path = folder / RANKS_NAME
        ranks = {_decode_base64(data, path): rank for data, rank in read_vocabulary(path).items()}
        special_tokens = read_setting(config, "special_tokens", dict, folder)
        if not all(type(rank) is int for rank in (*ranks.values(), *special_tokens.values())):
            raise StorageError("unreadable", f"{folder} is damaged: an id is no integer")
        encoding, pattern, eos_token = (
            read_setting(config, name, str, folder) for name in ("encoding", "pattern", "eos_token")
        )
        try:
            tokenizer = cls(
                ranks, encoding=encoding, pattern=pattern, special_tokens=special_tokens, eos_token=eos_token
            )
        except ValueError as error:
            raise StorageError("unreadable", f"{folder} is damaged: {error}") from error
        check_fingerprint(tokenizer.fingerprint(), config, folder)
        return tokenizer


def read_ranks(path: Path, expected_sha256: str | None, encoding: str) -> dict[bytes, int]:
    """Read a ranks file of tiktoken: lines of `base64 rank`.

    Args:
        path: The file.
        expected_sha256: The hash that tiktoken knows; None if it knows none.
        encoding: Its name, for the error message.

    Raises:
        StorageError: If the file is missing, is another, or is none.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StorageError("missing", f"{path} does not exist") from error
    found = hashlib.sha256(data).hexdigest()
    if expected_sha256 is not None and found != expected_sha256:
        raise StorageError(
            "hash_mismatch",
            f"{path} is not the ranks file of {encoding}: its SHA-256 is {found}, but tiktoken expects "
            f"{expected_sha256}; it is damaged, or of another encoding",
        )
    ranks = {}
    for line in data.splitlines():
        if line:
            token, _, rank = line.partition(b" ")
            if not rank.isdigit():
                raise StorageError("unreadable", f"{path} is no ranks file: it has the line {line[:60]!r}")
            ranks[_decode_base64(token.decode("ascii", errors="replace"), path)] = int(rank)
    return ranks


def _define(encoding: str, path: Path | None) -> dict[str, Any]:
    """What tiktoken knows of an encoding: pat_str, special_tokens and mergeable_ranks."""
    tiktoken = _import_tiktoken()
    known = tiktoken.list_encoding_names()
    if encoding not in known:
        raise ValueError(f"tiktoken knows no encoding {encoding!r}; it knows {', '.join(known)}")
    constructors: Any = tiktoken.registry.ENCODING_CONSTRUCTORS
    if path is not None:
        return _define_with_ranks(constructors[encoding], path, encoding)
    try:
        return constructors[encoding]()
    except OSError as error:  # what `requests` raises without a network
        raise OSError(
            f"the ranks of {encoding} are not in tiktoken's cache and cannot be fetched ({error}); "
            "give path, a ranks file, or set TIKTOKEN_CACHE_DIR"
        ) from error


def _define_with_ranks(constructor: FunctionType, path: Path, encoding: str) -> dict[str, Any]:
    """Call a constructor of tiktoken's with a reader of ours in place of the one that downloads.

    Constructors are functions that name a web address and its hash. A copy of the function with its own globals leaves
    tiktoken's module as it is, so that other threads and later calls notice nothing.
    """
    was_read = False

    def read_local(*_: Any, expected_hash: str | None = None, **__: Any) -> dict[bytes, int]:
        nonlocal was_read
        was_read = True
        return read_ranks(path, expected_hash, encoding)

    scope = dict(constructor.__globals__)
    scope["load_tiktoken_bpe"] = scope["data_gym_to_mergeable_bpe_ranks"] = read_local
    # Constructors call each other (o200k_harmony is o200k_base with more special tokens).
    for name, value in constructor.__globals__.items():
        if isinstance(value, FunctionType) and value.__globals__ is constructor.__globals__:
            scope[name] = FunctionType(value.__code__, scope, name, value.__defaults__, value.__closure__)
    local = FunctionType(constructor.__code__, scope, encoding, constructor.__defaults__, constructor.__closure__)
    definition = local()
    if not was_read:
        raise ValueError(f"tiktoken's {encoding} does not come from a ranks file; leave out path")
    return definition


def _check_vocabulary(
    ranks: Mapping[bytes, int], special_tokens: Mapping[str, int], eos_token: str, encoding: str
) -> None:
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:  # tiktoken would panic on the first text that holds it
        raise ValueError(f"the ranks of {encoding} lack {len(missing)} of the 256 bytes, the first is {missing[0]}")
    ids = [*ranks.values(), *special_tokens.values()]
    if len(set(ids)) != len(ids) or min(ids) < 0:
        raise ValueError(f"two tokens of {encoding} share an id, or an id is negative")
    if eos_token not in special_tokens:
        raise ValueError(
            f"{encoding} has no special token {eos_token!r} to end a text; it has {list_some(special_tokens)}"
        )


def _decode_base64(token: str, path: Path) -> bytes:
    try:
        return base64.b64decode(token, validate=True)
    except (binascii.Error, ValueError) as error:
        raise StorageError("unreadable", f"{path} is no ranks file: {token[:60]!r} is no base64") from error


def _import_tiktoken() -> ModuleType:
    try:
        import tiktoken
    except ImportError as error:
        raise ImportError("tiktoken's vocabularies need tiktoken: pip install 'latentlm[text]'") from error
    return tiktoken
