"""Training a byte-level BPE vocabulary on texts (Sennrich et al. 2016, over bytes as in GPT-2, Radford et al. 2019)."""

import json
from collections.abc import Iterable

from latentlm.tokenizers.text.huggingface import HuggingFaceTokenizer

EOS_TOKEN = "<|endoftext|>"
"""Fixed: words are split between letters and marks, so that no merge can ever spell it."""
MIN_VOCAB_SIZE = 257
"""Every byte, and end-of-text."""


def train_bpe(
    texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2, show_progress: bool = False
) -> HuggingFaceTokenizer:
    """Learn a vocabulary: bytes, then the most frequent pairs inside words, joined again and again.

    The same texts give the same vocabulary, in any order and on any number of cores. Every byte is in it, so that every
    string can be written. Words are GPT-2's: letters, digits or marks, with one space before. Memory grows with the
    number of different words, not with the length of the texts.

    Args:
        texts: Any number; each is read once. Pairs never cross from one text to the next.
        vocab_size: Ids, end-of-text (id 0) and the 256 bytes included. Fewer come out if pairs run out.
        min_frequency: Pairs that occur less often are not joined.
        show_progress: Draw the library's progress bars.

    Raises:
        ValueError: If `vocab_size` is below 257, `min_frequency` is below 1, or there is no text at all.
        ImportError: If `tokenizers` is not installed.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; every byte and end-of-text already need {MIN_VOCAB_SIZE}")
    if min_frequency < 1:
        raise ValueError(f"min_frequency is {min_frequency}, must be at least 1")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError("training a BPE needs tokenizers: pip install 'latentlm[text]'") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    num_characters = 0

    def counted() -> Iterable[str]:
        nonlocal num_characters
        for text in texts:
            num_characters += len(text)
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if num_characters == 0:
        raise ValueError("there is no text to learn a vocabulary from")
    return HuggingFaceTokenizer(json.loads(tokenizer.to_str()), eos_token=EOS_TOKEN)
