"""Codecs of every origin behind one interface: sound in, the same sound out, at a known rate.

    ours: SpeechTokenizer (continuous latents), SpeechCodec (residual codes)
    transformers: Encodec, DAC, Mimi, from folders that the user brings; WavTokenizer, from its authors' checkpoints

Rates are counted as the paper's Table 5 counts them: its compression ratio is samples per token, a token being a latent
vector or one code of one quantizer. Floats and bits per second stand beside it, without which a vector of 64 floats and
a code of 10 bits look alike.

Shapes: B clips, S samples, N frames, Q codes per frame.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from latentlm.evaluation.speech.interfaces import Clips, PairScorer, SpeechScorer, resample
from latentlm.evaluation.speech.reconstruction import ReconstructionScores, score_reconstructions
from latentlm.evaluation.speech.wavtokenizer import SAMPLE_RATE, load_wavtokenizer
from latentlm.storage import read_json
from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer


@dataclass(frozen=True, kw_only=True)
class CodecRate:
    """What a codec spends on a second of sound."""

    sample_rate: int
    """Hz, its own."""
    frame_rate: float
    """Frames per second: the steps of an autoregressive model that predicts a frame a step."""
    tokens_per_frame: int
    """Codes; 1 of a continuous latent."""
    floats_per_frame: int | None = None
    """Of continuous latents."""
    bits_per_frame: float | None = None
    """Codes: log2 of the codebook size, summed. Latents: ½ Σ log2(1 + var mu / sigma²), where it was measured."""

    @property
    def codes_per_second(self) -> float:
        """Tokens."""
        return self.frame_rate * self.tokens_per_frame

    @property
    def compression_ratio(self) -> float:
        """The paper's: sample rate over quantizers times frame rate."""
        return self.sample_rate / self.codes_per_second

    @property
    def floats_per_second(self) -> float | None:
        """Of continuous latents."""
        return None if self.floats_per_frame is None else self.frame_rate * self.floats_per_frame

    @property
    def bits_per_second(self) -> float | None:
        """None where it is not known."""
        return None if self.bits_per_frame is None else self.frame_rate * self.bits_per_frame

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "sample_rate": self.sample_rate,
            "frame_rate": self.frame_rate,
            "tokens_per_frame": self.tokens_per_frame,
            "codes_per_second": self.codes_per_second,
            "compression_ratio": self.compression_ratio,
            "floats_per_second": self.floats_per_second,
            "bits_per_second": self.bits_per_second,
        }


@runtime_checkable
class Codec(Protocol):
    """Sound through a bottleneck.

    Attributes:
        label: What it is called in tables.
    """

    label: str

    def rate(self, num_quantizers: int | None = None) -> CodecRate:
        """What it spends with so many codes per frame; None is all.

        Raises:
            ValueError: If it has no such number of quantizers.
        """
        ...

    def reconstruct(
        self, waveforms: Float[Tensor, "B S"], sample_rate: int, num_quantizers: int | None = None
    ) -> Float[Tensor, "B S"]:
        """What comes out, at the rate and length that went in, in [-1, 1].

        Args:
            waveforms: In [-1, 1].
            sample_rate: Hz; others than the codec's own are resampled, both ways.
            num_quantizers: Codes per frame; None is all.

        Raises:
            ValueError: If it has no such number of quantizers.
        """
        ...


class LatentCodec:
    """A `SpeechTokenizer` as a codec.

    Args:
        tokenizer: In evaluation mode, with measured statistics.
        label: What it is called in tables.
        sample: Decode a sample of the posterior, as models are trained on; False is its mean.
        seed: Of the sample, whose noise hangs on each clip's samples: another clip, other noise, in any order.
        bits_per_frame: From the tokenizer's report; None leaves the bit rate open.
    """

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        *,
        label: str = "sigma-VAE",
        sample: bool = True,
        seed: int = 0,
        bits_per_frame: float | None = None,
    ) -> None:
        self.label = label
        self._tokenizer, self._sample, self._seed, self._bits = tokenizer, sample, seed, bits_per_frame

    def rate(self, num_quantizers: int | None = None) -> CodecRate:
        """One token, of `latent_dim` floats, per frame."""
        _check_quantizers(num_quantizers, 1)
        config = self._tokenizer.config
        return CodecRate(
            sample_rate=config.sample_rate,
            frame_rate=config.frame_rate,
            tokens_per_frame=1,
            floats_per_frame=self._tokenizer.latent_dim,
            bits_per_frame=self._bits,
        )

    @torch.no_grad()
    def reconstruct(
        self, waveforms: Float[Tensor, "B S"], sample_rate: int, num_quantizers: int | None = None
    ) -> Float[Tensor, "B S"]:
        """Encoded and decoded."""
        _check_quantizers(num_quantizers, 1)
        tokenizer = self._tokenizer
        own = _to_rate(waveforms, sample_rate, tokenizer.config.sample_rate)
        if self._sample:
            latents = tokenizer.sample_keyed(tokenizer.posterior(own), self._seed, _content_keys(own))
        else:
            latents = tokenizer.encode(own, sample=False)
        copies = tokenizer.decode(latents, num_samples=own.shape[1])
        return _back(copies, waveforms, tokenizer.config.sample_rate, sample_rate)


class CodeCodec:
    """A `SpeechCodec` as a codec.

    Args:
        codec: In evaluation mode.
        label: What it is called in tables.
    """

    def __init__(self, codec: SpeechCodec, *, label: str = "RVQ") -> None:
        self.label = label
        self._codec = codec

    def rate(self, num_quantizers: int | None = None) -> CodecRate:
        """So many codes of log2(num_codes) bits per frame."""
        count = _check_quantizers(num_quantizers, self._codec.num_quantizers)
        config = self._codec.config
        return CodecRate(
            sample_rate=config.sample_rate,
            frame_rate=config.frame_rate,
            tokens_per_frame=count,
            bits_per_frame=count * math.log2(self._codec.num_codes),
        )

    @torch.no_grad()
    def reconstruct(
        self, waveforms: Float[Tensor, "B S"], sample_rate: int, num_quantizers: int | None = None
    ) -> Float[Tensor, "B S"]:
        """Encoded and decoded."""
        count = _check_quantizers(num_quantizers, self._codec.num_quantizers)
        own = _to_rate(waveforms, sample_rate, self._codec.config.sample_rate)
        copies = self._codec.decode(self._codec.encode(own, num_quantizers=count), num_samples=own.shape[1])
        return _back(copies, waveforms, self._codec.config.sample_rate, sample_rate)


class TransformersCodec:
    """Encodec, DAC or Mimi of the library transformers, with weights that the user brings.

    Codes are nested in all three: those of fewer quantizers are the first ones of more.

    Args:
        folder: As transformers' `save_pretrained` writes it: config.json and safetensors. Nothing is downloaded.
        label: What it is called in tables; None is the folder's name.
        device: Where it runs.

    Raises:
        ImportError: If transformers is missing; the message names the extra.
        ValueError: If the folder holds another model, one for stereo or for chunks, or misses tensors.
    """

    def __init__(self, folder: Path, *, label: str | None = None, device: str | torch.device = "cpu") -> None:
        self._kind = _kind_of(folder)
        try:
            import transformers
        except ImportError as error:
            raise ImportError("this codec needs transformers: pip install 'latentlm[hf]'") from error
        classes: dict[str, Any] = {
            "encodec": transformers.EncodecModel,
            "dac": transformers.DacModel,
            "mimi": transformers.MimiModel,
        }
        try:
            # Missing tensors would only be logged, and stay random.
            model, loading = classes[self._kind].from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is not a folder that transformers can read: {error}") from error
        if loading["missing_keys"]:
            raise ValueError(f"the weights in {folder} miss {sorted(loading['missing_keys'])[:5]}")
        config = model.config
        if getattr(config, "audio_channels", 1) != 1 or getattr(config, "chunk_length_s", None) is not None:
            raise ValueError(f"{folder} is a codec for stereo or for chunks of music; speech is mono and whole")
        self._model: Any = model.to(device).eval()
        self.label = label or folder.name
        if self._kind == "encodec":
            self._hop_length = math.prod(config.upsampling_ratios)
            # The most that it was trained for; its quantizer may have been given more.
            bits = math.log2(config.codebook_size)
            most = 1000 * max(config.target_bandwidths) * self._hop_length / config.sampling_rate / bits
            self._num_quantizers = math.floor(most)
        elif self._kind == "dac":
            self._hop_length, self._num_quantizers = config.hop_length, config.n_codebooks
        else:
            self._hop_length = round(config.sampling_rate / config.frame_rate)
            self._num_quantizers = config.num_quantizers

    def rate(self, num_quantizers: int | None = None) -> CodecRate:
        """So many codes of log2(codebook_size) bits per frame."""
        count = _check_quantizers(num_quantizers, self._num_quantizers)
        config = self._model.config
        return CodecRate(
            sample_rate=config.sampling_rate,
            frame_rate=config.sampling_rate / self._hop_length,
            tokens_per_frame=count,
            bits_per_frame=count * math.log2(config.codebook_size),
        )

    @torch.no_grad()
    def reconstruct(
        self, waveforms: Float[Tensor, "B S"], sample_rate: int, num_quantizers: int | None = None
    ) -> Float[Tensor, "B S"]:
        """Encoded and decoded."""
        count = _check_quantizers(num_quantizers, self._num_quantizers)
        rate = self._model.config.sampling_rate
        own = _to_rate(waveforms, sample_rate, rate).to(self._model.device)
        padded = F.pad(own, (0, -own.shape[1] % self._hop_length))[:, None]  # whole frames, (B, 1, S)
        copies = self._decode(self._encode(padded, count))[:, 0, : own.shape[1]]
        # DAC's transposed convolutions give back a few samples fewer than went in.
        copies = F.pad(copies, (0, own.shape[1] - copies.shape[1])).clamp(-1, 1)
        return _back(copies.to(waveforms.device), waveforms, rate, sample_rate)

    def _encode(self, waveforms: Tensor, num_quantizers: int) -> Tensor:
        """Codes (B, Q, N)."""
        if self._kind == "encodec":
            most = max(self._model.config.target_bandwidths)
            return self._model.encode(waveforms, bandwidth=most).audio_codes[0][:, :num_quantizers]
        codes = self._model.encode(waveforms).audio_codes
        return codes[:, :num_quantizers]

    def _decode(self, codes: Tensor) -> Tensor:
        """Waveforms (B, 1, S)."""
        if self._kind == "encodec":
            return self._model.decode(codes[None], [None]).audio_values
        values = self._model.decode(audio_codes=codes).audio_values
        return values if values.dim() == 3 else values[:, None]  # DAC drops the channel


class WavTokenizerCodec:
    """WavTokenizer, with weights that the user brings.

    Args:
        path: A checkpoint of its authors, or a safetensors file of its state dict.
        label: What it is called in tables.
        device: Where it runs.

    Raises:
        ImportError: If transformers is missing; the message names the extra.
        ValueError: If the file holds anything but its tensors.
    """

    def __init__(self, path: Path, *, label: str = "WavTokenizer", device: str | torch.device = "cpu") -> None:
        self.label = label
        self._model = load_wavtokenizer(path).to(device)

    def rate(self, num_quantizers: int | None = None) -> CodecRate:
        """One code per frame."""
        count = _check_quantizers(num_quantizers, 1)
        return CodecRate(
            sample_rate=SAMPLE_RATE,
            frame_rate=SAMPLE_RATE / self._model.hop_length,
            tokens_per_frame=count,
            bits_per_frame=math.log2(len(self._model.codebook)),
        )

    @torch.no_grad()
    def reconstruct(
        self, waveforms: Float[Tensor, "B S"], sample_rate: int, num_quantizers: int | None = None
    ) -> Float[Tensor, "B S"]:
        """Encoded and decoded."""
        _check_quantizers(num_quantizers, 1)
        own = _to_rate(waveforms, sample_rate, SAMPLE_RATE).to(self._model.codebook.device)
        padded = F.pad(own, (0, -own.shape[1] % self._model.hop_length))  # whole frames
        copies = self._model.decode(self._model.encode(padded))[:, : own.shape[1]].clamp(-1, 1)
        return _back(copies.to(waveforms.device), waveforms, SAMPLE_RATE, sample_rate)


def open_codec(path: Path) -> Codec:
    """A codec that others trained: a folder of transformers' Encodec, DAC or Mimi, or a file of WavTokenizer's.

    Raises:
        ImportError: If transformers is missing; the message names the extra.
        ValueError: If it is none of them.
    """
    return WavTokenizerCodec(path) if path.is_file() else TransformersCodec(path)


def score_codec(
    codec: Codec,
    clips: Clips,
    sample_rate: int,
    *,
    num_quantizers: int | None = None,
    max_frequency: float | None = None,
    scorers: Sequence[PairScorer] | None = None,
    speech_scorers: Sequence[SpeechScorer] = (),
    progress: bool = False,
) -> tuple[CodecRate, ReconstructionScores]:
    """A row of Table 5: the rate, and how much of the clips survives.

    Args:
        codec: Any.
        clips: Real ones, that it never saw.
        sample_rate: Hz.
        num_quantizers: Codes per frame; None is all.
        max_frequency: See `score_reconstructions`, as the rest.
        scorers: Compare the pairs.
        speech_scorers: Judge the copies alone.
        progress: Show a progress bar.
    """
    copies = [codec.reconstruct(clip[None], sample_rate, num_quantizers)[0] for clip in clips]
    scores = score_reconstructions(
        clips,
        copies,
        sample_rate,
        max_frequency=max_frequency,
        scorers=scorers,
        speech_scorers=speech_scorers,
        progress=progress,
    )
    return codec.rate(num_quantizers), scores


def _kind_of(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"there is no file {folder / 'config.json'}; a codec is read from a folder of weights that you bring, as "
            "transformers' save_pretrained writes it; WavTokenizer from its checkpoint, a file"
        )
    content = read_json(folder / "config.json")
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in ("encodec", "dac", "mimi"):
        raise ValueError(
            f"{folder} holds a model of type {kind!r}; of transformers' codecs, encodec, dac and mimi are known. Any "
            "other needs a class with the two methods of Codec around its own code"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no .safetensors file; pickled weights are never read")
    return kind


def _check_quantizers(asked: int | None, most: int) -> int:
    if asked is not None and not 1 <= asked <= most:
        raise ValueError(f"{asked} quantizers were asked for, but this codec has 1 to {most}")
    return most if asked is None else asked


def _content_keys(waveforms: Tensor) -> Int[Tensor, " B"]:
    digests = [hashlib.sha256(clip.cpu().numpy().tobytes()).digest() for clip in waveforms]
    keys = [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
    return torch.tensor(keys, device=waveforms.device)


def _to_rate(waveforms: Tensor, from_rate: int, to_rate: int) -> Tensor:
    return torch.stack([resample(clip, from_rate, to_rate) for clip in waveforms])


def _back(copies: Tensor, waveforms: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """At the rate and length of what went in; two roundings of the length may miss a sample."""
    returned = _to_rate(copies, from_rate, to_rate)[:, : waveforms.shape[1]]
    return F.pad(returned, (0, waveforms.shape[1] - returned.shape[1])).clamp(-1, 1)
