"""Text as its UTF-8 bytes: no vocabulary file, nothing to download, every string possible."""

from collections.abc import Sequence


class ByteTokenizer:
    """Ids 0..255 are the bytes of the UTF-8 text; 256 ends a text and is out of reach of `encode`."""

    num_ids = 257
    eos_id = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of a text, without an end mark."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids. End marks are left out; bytes that are no UTF-8 become U+FFFD, as models may write any.

        Raises:
            ValueError: If an id lies outside [0, 256].
        """
        for token in ids:
            if not 0 <= token < self.num_ids:
                raise ValueError(f"id {token} is not a byte or the end mark; ids of bytes lie in [0, {self.eos_id}]")
        return bytes(token for token in ids if token != self.eos_id).decode("utf-8", errors="replace")
