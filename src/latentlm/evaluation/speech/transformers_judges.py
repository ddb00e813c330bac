"""Recognisers and speaker encoders of the library transformers, from folders that the user brings.

Whisper, HuBERT-large and WavLM-TDNN are what papers judge speech with. Nothing is ever downloaded, and pickled weights
are never read. Clips go through one by one: padding would change what several of these networks say.

Shapes: S samples, D features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from latentlm.evaluation.speech.interfaces import Clips, refuse_silence, resample
from latentlm.storage import read_json

_WAVLM_RATE = 16000


class TransformersRecogniser:
    """Any recogniser of transformers: encoder-decoders such as Whisper, CTC networks such as HuBERT or wav2vec 2.0.

    Args:
        folder: As `save_pretrained` of model and processor writes it.
        label: What its errors are called in tables; None is "WER" with the folder's name.
        generate_options: For `generate` of an encoder-decoder, such as {"language": "en"} of a multilingual Whisper.
            Decoding is greedy.
        device: Where the network runs.

    Raises:
        ImportError: If transformers is missing; the message names the extra.
        ValueError: If the folder holds no recogniser, or misses tensors.
    """

    def __init__(
        self,
        folder: Path,
        *,
        label: str | None = None,
        generate_options: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        architecture = _architecture(folder)
        transformers = _transformers()
        if architecture.endswith("ForConditionalGeneration"):
            self._generates, auto_class = True, transformers.AutoModelForSpeechSeq2Seq
        elif architecture.endswith("ForCTC"):
            self._generates, auto_class = False, transformers.AutoModelForCTC
        else:
            raise ValueError(
                f"{folder} holds a {architecture}, but a recogniser is a ...ForConditionalGeneration or a ...ForCTC"
            )
        self._model = _load(auto_class, folder).to(device).eval()
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no processor that transformers can read: {error}") from error
        self._options = {"do_sample": False, "num_beams": 1, **(generate_options or {})}
        self.label = label or f"{folder.name} WER"

    @torch.no_grad()
    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """A text per clip.

        Raises:
            ValueError: If a clip is longer than the network's window (30 s of Whisper).
        """
        return [self._read(clip, sample_rate) for clip in clips]

    def _read(self, clip: Tensor, sample_rate: int) -> str:
        extractor = self._processor.feature_extractor
        window = getattr(extractor, "chunk_length", None)
        if self._generates and window is not None and len(clip) > window * sample_rate:
            raise ValueError(
                f"a clip of {len(clip) / sample_rate:.1f} s is longer than the {window} s that this recogniser hears"
            )
        samples = resample(clip, sample_rate, extractor.sampling_rate).cpu().numpy()
        inputs = self._processor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        if self._generates:
            ids = self._model.generate(**inputs, **self._options)
            return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        ids = self._model(**inputs).logits.argmax(dim=-1)
        # Of special ids, blanks still separate letters; the others are left out.
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


class WavlmSpeakerEncoder:
    """WavLM with its speaker-verification head (x-vectors of a TDNN; Chen et al. 2022).

    Published similarities are of the large network fine-tuned by the authors, which is not in transformers' format; the
    base-plus one of the hub gives other numbers. The label carries the folder's name for that reason.

    Args:
        folder: A `WavLMForXVector` as transformers' `save_pretrained` writes it.
        device: Where the network runs.

    Raises:
        ImportError: If transformers is missing; the message names the extra.
        ValueError: If the folder holds something else, or misses tensors.
    """

    def __init__(self, folder: Path, *, device: str | torch.device = "cpu") -> None:
        architecture = _architecture(folder)
        if architecture != "WavLMForXVector":
            raise ValueError(f"{folder} holds a {architecture}, but speaker similarity needs a WavLMForXVector")
        self._model = _load(_transformers().WavLMForXVector, folder).to(device).eval()
        self.label = f"WavLM-TDNN similarity ({folder.name})"
        extractor = read_json(folder / "preprocessor_config.json")
        self._normalizes = bool(extractor.get("do_normalize", True))

    @torch.no_grad()
    def embed(self, waveform: Float[Tensor, " S"], sample_rate: int) -> Float[Tensor, " D"]:
        """A unit vector."""
        refuse_silence(waveform)
        samples = resample(waveform, sample_rate, _WAVLM_RATE).to(self._model.device)
        if self._normalizes:  # as the folder's feature extractor would
            samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        return F.normalize(self._model(samples[None]).embeddings[0].float(), dim=0).cpu()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("this judge needs transformers: pip install 'latentlm[hf]'") from error
    return transformers


def _architecture(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"there is no file {folder / 'config.json'}; this judge reads a folder of weights that you bring, as "
            "transformers' save_pretrained writes it"
        )
    content = read_json(folder / "config.json")
    architectures = content.get("architectures") if isinstance(content, dict) else None
    if not isinstance(architectures, list) or not architectures:
        raise ValueError(f"{folder / 'config.json'} names no architecture")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} holds no .safetensors file; pickled weights are never read: load them with transformers once "
            "and save_pretrained them"
        )
    return str(architectures[0])


def _load(auto_class: Any, folder: Path) -> Any:
    try:
        # Missing tensors would only be logged, and stay random.
        model, loading = auto_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a folder that transformers can read: {error}") from error
    if loading["missing_keys"]:
        raise ValueError(f"the weights in {folder} miss {sorted(loading['missing_keys'])[:5]}")
    return model
