"""Sound to latent vectors, or to codes, and back, whole or as a stream (paper Section 3.3).

`autoencoder.py` reads like the paper's paragraph: causal encoder, mirrored decoder, strides; `convnext.py` is its block
and `spectrum.py` the Fourier transform of the second design. `tokenizer.py` puts a bottleneck between them, `codec.py`
residual quantization. `streaming.py` sends recordings of any length through one of them.
"""

from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoderConfig
from latentlm.tokenizers.speech.codec import SpeechCodec, SpeechCodecConfig
from latentlm.tokenizers.speech.convnext import ConvNeXtConfig
from latentlm.tokenizers.speech.spectrum import SpectrumConfig
from latentlm.tokenizers.speech.streaming import stream_through
from latentlm.tokenizers.speech.tokenizer import SpeechTokenizer, SpeechTokenizerConfig

__all__ = [
    "ConvNeXtConfig",
    "SpectrumConfig",
    "SpeechAutoencoderConfig",
    "SpeechCodec",
    "SpeechCodecConfig",
    "SpeechTokenizer",
    "SpeechTokenizerConfig",
    "stream_through",
]
