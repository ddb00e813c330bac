"""A recording of any length through a tokenizer and back, in the memory of a chunk.

Shapes: s samples of a chunk.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.tokenizers.speech.codec import SpeechCodec
from latentlm.tokenizers.speech.tokenizer import SpeechTokenizer


def stream_through(
    tokenizer: SpeechTokenizer | SpeechCodec, chunks: Iterable[Float[Tensor, "_"]]
) -> Iterator[Float[Tensor, "_"]]:
    """What the tokenizer gives back of a recording: means of latents, or all codes, made sound again.

    The chunks together are what encoding and decoding the whole recording gives, and as long as it.

    Args:
        tokenizer: In evaluation mode.
        chunks: The recording in [-1, 1], at the tokenizer's rate, in pieces of any length.

    Raises:
        ValueError: If latent statistics were never measured.
    """
    device = next(tokenizer.parameters()).device
    encoding, decoding = tokenizer.encoder_state(1), tokenizer.decoder_state(1)
    num_missing = 0
    for chunk in chunks:
        num_missing += len(chunk)
        with torch.no_grad():  # left before the caller's code runs between two chunks
            tokens, encoding = tokenizer.encode_step(chunk[None].to(device), encoding)
            waveforms, decoding = tokenizer.decode_step(tokens, decoding)
        num_missing -= waveforms.shape[1]
        yield waveforms[0].cpu()
    with torch.no_grad():
        tokens, _ = tokenizer.encode_step(torch.zeros(1, 0, device=device), encoding, final=True)
        waveforms, _ = tokenizer.decode_step(tokens, decoding)
    # The last latent was completed by silence.
    yield waveforms[0, :num_missing].cpu()
