"""The bytes that each id of a byte-level vocabulary stands for: decoding is joining them."""

from collections.abc import Sequence

from latentlm.tokenizers.text.base import check_ids


class ByteTable:
    """Decodes byte-level ids. A list look-up per id, and the same for every byte-level tokenizer.

    Args:
        tokens: Bytes of every id, in order; empty for ids without text.
    """

    def __init__(self, tokens: list[bytes]) -> None:
        self._tokens = tokens

    def __getitem__(self, token: int) -> bytes:
        """Bytes of one id; ValueError if it lies outside the table."""
        check_ids((token,), len(self._tokens))
        return self._tokens[token]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD, as a model may write any."""
        check_ids(ids, len(self._tokens))
        return b"".join([self._tokens[token] for token in ids]).decode("utf-8", errors="replace")

    def num_bytes(self, ids: Sequence[int]) -> int:
        """How many bytes some ids stand for, whether or not they are UTF-8."""
        check_ids(ids, len(self._tokens))
        return sum(len(self._tokens[token]) for token in ids)
