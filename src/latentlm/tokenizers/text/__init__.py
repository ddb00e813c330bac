"""Text tokenizers: text to ids and back, one file per kind, all behind the interface in `base.py`.

    ByteTokenizer          UTF-8 bytes; needs nothing
    TiktokenTokenizer      cl100k_base (the paper's, Table 8) and tiktoken's other encodings
    HuggingFaceTokenizer   any tokenizer.json; `train_bpe` makes one from texts
    PhonemeTokenizer       how a text sounds, for models that speak

Whatever a text says, `encode` never gives a special id: not end-of-text, not a chat mark, under no spelling.
`StreamDecoder` writes text while its ids come in. A model keeps its tokenizer in a folder that `load_text_tokenizer`
reads; a recipe names one with `TextTokenizerConfig`.
"""

from latentlm.tokenizers.text.base import StoredTextTokenizer
from latentlm.tokenizers.text.bpe import train_bpe
from latentlm.tokenizers.text.bytes import ByteTokenizer
from latentlm.tokenizers.text.huggingface import HuggingFaceTokenizer
from latentlm.tokenizers.text.opening import TextTokenizerConfig, load_text_tokenizer, open_text_tokenizer
from latentlm.tokenizers.text.phonemes import PhonemeTokenizer
from latentlm.tokenizers.text.streaming import StreamDecoder
from latentlm.tokenizers.text.tiktoken import TiktokenTokenizer

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "PhonemeTokenizer",
    "StoredTextTokenizer",
    "StreamDecoder",
    "TextTokenizerConfig",
    "TiktokenTokenizer",
    "load_text_tokenizer",
    "open_text_tokenizer",
    "train_bpe",
]
