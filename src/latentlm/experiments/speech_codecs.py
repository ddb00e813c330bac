"""Trained tokenizers of speech, as the codecs that evaluations compare.

Shapes: B clips, S samples.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from latentlm.evaluation.speech.codecs import Codec, CodeCodec, CodecRate, LatentCodec
from latentlm.evaluation.speech.interfaces import resample
from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer


class FrameCodec:
    """A tokenizer without noise as a codec: frames that a formula gives, and a decoder that makes them sound.

    Args:
        tokenizer: In evaluation mode; offers `config`, `latent_dim`, `encode(waveforms)` and
            `decode(frames, num_samples=...)` as `SpeechTokenizer` does.
        label: What it is called in tables.
    """

    def __init__(self, tokenizer: Any, *, label: str = "frames") -> None:
        self.label = label
        self._tokenizer = tokenizer

    def rate(self, num_quantizers: int | None = None) -> CodecRate:
        """One frame of floats, whose bits nobody counts.

        Raises:
            ValueError: If it is asked for several codes.
        """
        if num_quantizers not in (None, 1):
            raise ValueError(f"{num_quantizers} quantizers were asked for, but a frame has none")
        config = self._tokenizer.config
        return CodecRate(
            sample_rate=config.sample_rate,
            frame_rate=config.frame_rate,
            tokens_per_frame=1,
            floats_per_frame=self._tokenizer.latent_dim,
        )

    @torch.no_grad()
    def reconstruct(
        self, waveforms: Float[Tensor, "B S"], sample_rate: int, num_quantizers: int | None = None
    ) -> Float[Tensor, "B S"]:
        """Through the frames and back, at the rate and length that went in.

        Raises:
            ValueError: If it is asked for several codes.
        """
        own_rate = self.rate(num_quantizers).sample_rate
        own = torch.stack([resample(clip, sample_rate, own_rate) for clip in waveforms])
        copies = self._tokenizer.decode(self._tokenizer.encode(own), num_samples=own.shape[1])
        back = torch.stack([resample(copy, own_rate, sample_rate) for copy in copies])[:, : waveforms.shape[1]]
        return F.pad(back, (0, waveforms.shape[1] - back.shape[1])).clamp(-1, 1)


def codecs_of(tokenizer: Any, *, bits_per_frame: float | None = None, seed: int = 0) -> dict[str, Codec]:
    """The ways in which a tokenizer gives sound back, by name; the last one is what models are trained on.

    Args:
        tokenizer: Of speech.
        bits_per_frame: Of a sigma-VAE, measured; None leaves it open.
        seed: Of its noise.

    Returns:
        `mean` and `sample` of a sigma-VAE, `codes` of a codec, `frames` of anything else.
    """
    if isinstance(tokenizer, SpeechTokenizer):
        return {
            name: LatentCodec(tokenizer, sample=name == "sample", seed=seed, bits_per_frame=bits_per_frame)
            for name in ("mean", "sample")
        }
    if isinstance(tokenizer, SpeechCodec):
        return {"codes": CodeCodec(tokenizer)}
    return {"frames": FrameCodec(tokenizer)}


def codec_for_models(tokenizer: Any, *, seed: int = 0) -> Codec:
    """What a perfect model of a tokenizer's tokens would say."""
    return list(codecs_of(tokenizer, seed=seed).values())[-1]


def reconstruct(
    codec: Codec,
    clip: Float[Tensor, " S"],
    sample_rate: int,
    *,
    num_quantizers: int | None = None,
    device: str | torch.device = "cpu",
) -> Float[Tensor, " S"]:
    """One clip through a codec whose weights are on some device, and back to the CPU."""
    return codec.reconstruct(clip[None].to(device), sample_rate, num_quantizers)[0].cpu()


def device_of(tokenizer: Any) -> torch.device:
    """Where a tokenizer's weights are; the CPU for one without any."""
    parameter = next(tokenizer.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
