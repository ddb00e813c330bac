"""Text as its UTF-8 bytes: no vocabulary file, nothing to download, every string possible."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from latentlm.tokenizers.text.base import refuse_surrogates
from latentlm.tokenizers.text.byte_table import ByteTable
from latentlm.tokenizers.text.stored import check_fingerprint, read_config, write_config

_TABLE = ByteTable([bytes([value]) for value in range(256)] + [b""])


class ByteTokenizer:
    """Ids 0..255 are the bytes of the UTF-8 text; 256 ends a text and is out of reach of `encode`."""

    kind = "bytes"
    num_ids = 257
    eos_id = 256
    bos_id = 256
    special_ids = frozenset({256})

    def encode(self, text: str) -> list[int]:
        """The bytes of a text, without an end mark.

        Raises:
            ValueError: If the text holds a lone surrogate.
        """
        refuse_surrogates(text)
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids. End marks are left out; bytes that are no UTF-8 become U+FFFD, as models may write any.

        Raises:
            ValueError: If an id lies outside [0, 256].
        """
        return _TABLE.decode(ids)

    def num_bytes(self, ids: Sequence[int]) -> int:
        """How many ids are not end marks."""
        return _TABLE.num_bytes(ids)

    def token_bytes(self, token: int) -> bytes:
        """The byte; nothing for the end mark."""
        return _TABLE[token]

    def may_change(self, token: int) -> bool:
        """Never: each id stands for its byte."""
        return False

    def fingerprint(self) -> str:
        """The same for all: there is nothing to choose."""
        return hashlib.sha256(b"utf-8 bytes, end-of-text 256").hexdigest()

    def write_files(self, folder: Path) -> None:
        """Write config.json, which says all there is to say."""
        write_config(folder, kind=self.kind, fingerprint=self.fingerprint())

    @classmethod
    def from_folder(cls, folder: Path) -> "ByteTokenizer":
        """Read what `write_files` wrote.

        Raises:
            ValueError: In a sentence, if the folder holds another kind, a newer format or a damaged file.
        """
        tokenizer = cls()
        check_fingerprint(tokenizer.fingerprint(), read_config(folder, kind=cls.kind), folder)
        return tokenizer
