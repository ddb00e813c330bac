"""Voices: a short recording as plain tensors, so that a model can go on speaking as it does.

    recording ─speech tokenizer▶ posterior, or codes ─save▶ anna.safetensors (tensors, text, tokenizer's fingerprint)

A voice keeps the posterior, not a sample, as caches do (see `data/latents.py`); a codec's voice keeps codes. Nothing in
the file is executable.

Shapes: S samples, n latents or frames of codes, C latent_dim, Q codes of a frame.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentlm.data.audio import decode_audio, normalize_level
from latentlm.nn.keyed_noise import combine_keys, signed_int64
from latentlm.storage import write_file_atomically
from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer

FORMAT = "latentlm-voice-1"
MAX_SECONDS = 60.0
"""Of a recording; every latent of it stands in the cache of each utterance."""

VOICE_LEVEL_DB = -23.0
"""Active level that recordings are brought to, dB of full scale: that of the recipes."""

_VOICE_STREAM = 0x701CE


@dataclass(frozen=True, eq=False)
class Voice:
    """A recording of somebody, encoded as latents.

    Attributes:
        mean: Of the posterior, before noise and normalisation.
        log_std: Its learned deviation; None where the tokenizer itself sets it.
        text: What is said; None if nobody wrote it down.
        tokenizer_fingerprint: Of the tokenizer that encoded it.
        seconds: Length of the recording.
    """

    mean: Float[Tensor, "n C"]
    log_std: Float[Tensor, "n C"] | None
    text: str | None
    tokenizer_fingerprint: str
    seconds: float

    def latents(self, tokenizer: SpeechTokenizer, *, seed: int, sample: bool = True) -> Float[Tensor, "n C"]:
        """Latents of unit variance.

        Args:
            tokenizer: The one that encoded it.
            seed: Of the sample.
            sample: Draw from the posterior, as models are trained; otherwise its mean.

        Raises:
            ValueError: If the voice was made with another tokenizer.
        """
        _refuse_other_tokenizer(self.tokenizer_fingerprint, tokenizer)
        device = next(tokenizer.parameters()).device
        mean = self.mean[None].to(device)
        if not sample:
            return tokenizer.statistics.normalize(mean)[0]
        posterior = Posterior(mean, None if self.log_std is None else self.log_std[None].to(device))
        noise_seed = int(combine_keys(_VOICE_STREAM, signed_int64(seed)))
        return tokenizer.sample_keyed(posterior, noise_seed, torch.zeros(1, dtype=torch.long, device=device))[0]

    def save(self, path: Path) -> None:
        """Write the voice as one safetensors file.

        Raises:
            StorageError: If the disk refuses.
        """
        tensors = {"mean": self.mean} if self.log_std is None else {"mean": self.mean, "log_std": self.log_std}
        _write(path, tensors, self)


@dataclass(frozen=True, eq=False)
class CodeVoice:
    """A recording of somebody, encoded as a codec's codes.

    Attributes:
        frames: Codes, frame by frame.
        text: What is said; None if nobody wrote it down.
        tokenizer_fingerprint: Of the codec that encoded it.
        seconds: Length of the recording.
    """

    frames: Int[Tensor, "n Q"]
    text: str | None
    tokenizer_fingerprint: str
    seconds: float

    def codes(self, codec: SpeechCodec) -> Int[Tensor, "n Q"]:
        """Its codes.

        Args:
            codec: The one that encoded it.

        Raises:
            ValueError: If the voice was made with another codec.
        """
        _refuse_other_tokenizer(self.tokenizer_fingerprint, codec)
        return self.frames

    def save(self, path: Path) -> None:
        """Write the voice as one safetensors file.

        Raises:
            StorageError: If the disk refuses.
        """
        _write(path, {"codes": self.frames}, self)


@torch.no_grad()
def make_voice(tokenizer: SpeechTokenizer, waveform: Float[Tensor, "S"], *, text: str | None = None) -> Voice:
    """Encode a recording as latents.

    Args:
        tokenizer: Of the model that is to speak.
        waveform: In [-1, 1], at the tokenizer's sample rate.
        text: What is said; with it a model goes on as if it had read this text aloud.

    Raises:
        ValueError: If the recording is empty, silent, too long or not finite.
    """
    seconds = _checked_seconds(waveform, tokenizer)
    posterior = tokenizer.posterior(waveform[None].to(next(tokenizer.parameters()).device))
    log_std = None if posterior.log_std is None else posterior.log_std[0].float().cpu()
    return Voice(posterior.mean[0].float().cpu(), log_std, text, tokenizer.fingerprint(), seconds)


@torch.no_grad()
def make_code_voice(codec: SpeechCodec, waveform: Float[Tensor, "S"], *, text: str | None = None) -> CodeVoice:
    """Encode a recording as codes; arguments and errors as in `make_voice`."""
    seconds = _checked_seconds(waveform, codec)
    codes = codec.encode(waveform[None].to(next(codec.parameters()).device))[0].cpu()
    return CodeVoice(codes, text, codec.fingerprint(), seconds)


def read_voice(path: Path, tokenizer: SpeechTokenizer, *, text: str | None = None) -> Voice:
    """A voice file, or a recording in any format that the audio library reads.

    Args:
        path: `*.safetensors` for a voice file.
        tokenizer: Of the model that is to speak.
        text: What a recording says; it takes the place of a voice file's own.

    Raises:
        ValueError: If the file is damaged, no voice, or no recording.
        FileNotFoundError: If there is none.
    """
    if _is_recording(path):
        return make_voice(tokenizer, _read_recording(path, tokenizer), text=text)
    try:
        tensors, metadata = _read(path)
        mean, log_std = tensors["mean"].float(), tensors.get("log_std")
        if mean.dim() != 2 or not len(mean) or mean.shape[1] != tokenizer.latent_dim or not mean.isfinite().all():
            raise ValueError(f"latents of shape {tuple(mean.shape)}, expected finite [n, {tokenizer.latent_dim}]")
        if log_std is not None and (log_std.shape != mean.shape or not log_std.isfinite().all()):
            raise ValueError("deviations that do not belong to its latents")
        own_text = metadata.get("text") if text is None else text
        log_std = None if log_std is None else log_std.float()
        return Voice(mean, log_std, own_text, metadata["tokenizer_fingerprint"], float(metadata["seconds"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no voice of this version of latentlm: {error}") from error


def read_code_voice(path: Path, codec: SpeechCodec, *, text: str | None = None) -> CodeVoice:
    """As `read_voice`, for a model of a codec's codes."""
    if _is_recording(path):
        return make_code_voice(codec, _read_recording(path, codec), text=text)
    try:
        tensors, metadata = _read(path)
        codes = tensors["codes"]
        fits = codes.dtype == torch.int64 and codes.dim() == 2 and codes.shape[1] == codec.num_quantizers
        if not fits or not len(codes) or not 0 <= int(codes.min()) <= int(codes.max()) < codec.num_codes:
            raise ValueError(
                f"{codes.dtype} of shape {tuple(codes.shape)}, expected int64 [n, {codec.num_quantizers}] in "
                f"[0, {codec.num_codes})"
            )
        own_text = metadata.get("text") if text is None else text
        return CodeVoice(codes, own_text, metadata["tokenizer_fingerprint"], float(metadata["seconds"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no voice of codes of this version of latentlm: {error}") from error


def _is_recording(path: Path) -> bool:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a recording, or a file that `latentlm voice` made")
    return path.suffix != ".safetensors"


def _read_recording(path: Path, tokenizer: SpeechTokenizer | SpeechCodec) -> Float[Tensor, "S"]:
    """The recording at the level that is usual in training: a tokenizer has heard no other."""
    sample_rate = tokenizer.config.sample_rate
    waveform = decode_audio(path, str(path), sample_rate=sample_rate, max_seconds=MAX_SECONDS)
    return torch.from_numpy(normalize_level(waveform, sample_rate, VOICE_LEVEL_DB))


def _checked_seconds(waveform: Tensor, tokenizer: SpeechTokenizer | SpeechCodec) -> float:
    """The length of a recording that can be a voice."""
    seconds = len(waveform) / tokenizer.config.sample_rate
    if not len(waveform) or not waveform.isfinite().all():
        raise ValueError("the recording of a voice is empty, or holds NaN or infinite samples")
    if seconds > MAX_SECONDS:
        raise ValueError(f"the recording of a voice has {seconds:.0f} s; at most {MAX_SECONDS:g} s are used, cut it")
    if float(waveform.abs().max()) < 1e-4:
        raise ValueError("the recording of a voice is silent")
    return seconds


def _refuse_other_tokenizer(fingerprint: str, tokenizer: SpeechTokenizer | SpeechCodec) -> None:
    if fingerprint != tokenizer.fingerprint():
        raise ValueError(
            f"this voice was made with another speech tokenizer (fingerprint {fingerprint[:12]}…, the model has "
            f"{tokenizer.fingerprint()[:12]}…); make it again: latentlm voice RECORDING --model ..."
        )


def _write(path: Path, tensors: dict[str, Tensor], voice: Voice | CodeVoice) -> None:
    metadata = {
        "format": FORMAT,
        "tokenizer_fingerprint": voice.tokenizer_fingerprint,
        "seconds": repr(voice.seconds),
    }
    if voice.text is not None:
        metadata["text"] = voice.text
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_file_atomically(path, save(contiguous, metadata))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a voice file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
    return tensors, metadata
