"""Text tokenizers: ids and strings."""

from collections.abc import Sequence


class ByteTokenizer:
    """UTF-8 bytes are ids 0..255; 256 is end of text, which no string encodes to."""

    num_ids = 257
    eos_id = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`; lone surrogates survive the round trip."""
        return list(text.encode("utf-8", errors="surrogatepass"))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of byte ids; special ids are skipped and broken sequences become U+FFFD."""
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")
