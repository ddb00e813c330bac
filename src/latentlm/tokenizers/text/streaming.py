"""Text while its ids come in: what a terminal or a server shows of a generation that is not over yet."""

import codecs

from latentlm.tokenizers.text.base import StoredTextTokenizer


class StreamDecoder:
    """Decodes one id at a time and never emits half a character. What `push` and `flush` give joins to `decode`.

    An id may stand for a part of a character only (an emoji takes four ids of a byte tokenizer). Its bytes wait until
    the character is whole, or until it cannot become one: then U+FFFD comes, exactly where `decode` puts it.

    Args:
        tokenizer: The tokenizer whose ids will come.
    """

    def __init__(self, tokenizer: StoredTextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # For tokenizers whose text depends on neighbours: the last id that was shown, and those that wait.
        self._window: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """The text that this id completes; often empty.

        Raises:
            ValueError: If the id is none of the tokenizer's.
        """
        data = self._tokenizer.token_bytes(token)
        if data is not None:
            return self._utf8.decode(data)
        self._window.append(token)
        if self._tokenizer.may_change(token):
            return ""
        new = self._tokenizer.decode(self._window)[len(self._shown) :]
        # One id of context is enough for what decoders do: spaces between words, none before the first.
        self._window = [token]
        self._shown = self._tokenizer.decode(self._window)
        return new

    def flush(self) -> str:
        """What still waited, an unfinished character as U+FFFD. The next `push` begins a new text."""
        rest = self._tokenizer.decode(self._window)[len(self._shown) :]
        self._window, self._shown = [], ""
        return rest + self._utf8.decode(b"", final=True)
