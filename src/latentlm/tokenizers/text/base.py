"""What every text tokenizer is to the rest of the package, and what the kinds share.

The law: `encode` gives ordinary ids only. A text that spells a special token ("<|endoftext|>", "<|im_start|>") is text
like any other, so nobody who merely writes text can end a document or pose as another speaker.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class StoredTextTokenizer(Protocol):
    """A text tokenizer that a model can keep in its folder. (`sequence.TextTokenizer` is what sequences need of it.)

    Ids lie in [0, num_ids). Some stand for no text: the special ones, and gaps that a vocabulary leaves unassigned.
    """

    kind: str
    """Which class reads its folder: "bytes", "tiktoken", "huggingface" or "phonemes"."""
    num_ids: int
    """Rows that a model needs for its ids, special ones included."""
    eos_id: int
    """End-of-text, one of the special ids."""
    bos_id: int
    """What begins a text: end-of-text again, unless the vocabulary brings a token of its own."""
    special_ids: frozenset[int]
    """Ids that no text encodes to."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special ids never among them.

        Raises:
            ValueError: If the text holds a lone surrogate, half of a character, which is no Unicode text.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids. Ids without text are left out; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: If an id lies outside [0, num_ids).
        """
        ...

    def num_bytes(self, ids: Sequence[int]) -> int:
        """UTF-8 bytes of the text that ids stand for: the denominator of bits per byte.

        Raises:
            ValueError: If an id lies outside [0, num_ids).
        """
        ...

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes that an id stands for; None if its text depends on the ids around it.

        Raises:
            ValueError: If the id lies outside [0, num_ids).
        """
        ...

    def may_change(self, token: int) -> bool:
        """Whether ids that follow can still alter the text of this one (half a character, spelt byte by byte)."""
        ...

    def fingerprint(self) -> str:
        """SHA-256, as hex, over everything that decides which ids a text gets."""
        ...

    def write_files(self, folder: Path) -> None:
        """Write config.json, and the vocabulary if there is one, into a folder that exists.

        Raises:
            StorageError: If the disk refuses.
        """
        ...


def refuse_surrogates(text: str) -> None:
    """Refuse a string that is no Unicode text.

    Python strings can hold lone surrogates (from JSON escapes, or file names). They have no UTF-8, and libraries
    disagree on what to put in their place; a replacement would be a silent change of the text.

    Raises:
        ValueError: Naming the first one and its place.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is "
            "half of a character; repair it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error


def check_ids(ids: Sequence[int], num_ids: int) -> None:
    """Refuse ids of another vocabulary.

    Raises:
        ValueError: Naming the first id outside [0, num_ids).
    """
    for token in ids:
        if not 0 <= token < num_ids:
            raise ValueError(
                f"id {token} is none of this text tokenizer's, which lie in [0, {num_ids}); "
                "do the ids come from a model with another vocabulary?"
            )


def list_some(names: Iterable[str], limit: int = 8) -> str:
    """Names for an error message; chat vocabularies have a thousand special tokens."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
