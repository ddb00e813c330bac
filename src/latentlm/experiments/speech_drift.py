"""Exposure bias in speech, measured: what becomes of latents and sound over a thousand latents of one stream.

A LatentLM that was trained on long streams goes on where a real one of an unheard voice stops, without a text. A model
that is not robust to its own sampling errors drifts: the spread of its latents leaves 1, words blur, the voice changes.
`long_generation.py` asks the same of pictures.

Shapes: D streams, N latents drawn of each, n latents of some stretch, C latent_dim, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latentlm.config import from_mapping
from latentlm.data.audio import WordStringConfig, WordStrings
from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.speech.interfaces import SpeakerEncoder, Unscorable
from latentlm.evaluation.speech.word_segmentation import cut_words
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.speech_codecs import device_of
from latentlm.experiments.speech_data import SpeechData, readable
from latentlm.experiments.speech_judges import SpeechJudges, SpeechJudgesConfig
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.requests import GenerationRequest, LatentSpan, PartEvent
from latentlm.generation.speech import SPEECH, decode_after, speech_tokenizer
from latentlm.nn.precision import Precision, autocast
from latentlm.sequence import Document, LatentPart
from latentlm.tokenizers.speech import SpeechTokenizer


@dataclass(frozen=True, kw_only=True)
class SpeechDriftOptions:
    """What is drawn."""

    speaker: str
    """Whose streams are continued; the run must not have heard them."""
    num_streams: int = 40
    """D."""
    num_latents: int = 1024
    """N; 64 seconds at 16 latents a second."""
    latents_per_bin: int = 64
    """Latents that are scored together; 3 s at least, for voices."""
    num_prompt_latents: int = 64
    """Real latents before the drawn ones."""
    num_words: int = 160
    """Of a real stream, which must last for prompt and drawn latents; no recording occurs twice in it."""
    num_inference_steps: int | None = None
    """Solver steps; None takes the model's. Guidance stays off, as its second stream knows no past."""
    batch_size: int = 20
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the recordings' config, written over the recipe's."""
    words: WordStringConfig | None = None
    """How single words are joined, instead of the recipe's way; the number of words is that above."""
    precision: Precision = "float32"
    """Of the model's matrix products."""
    judges: SpeechJudgesConfig = field(default_factory=SpeechJudgesConfig)
    seed: int = 0
    """Of streams and draws."""

    def __post_init__(self) -> None:
        if min(self.num_streams, self.num_prompt_latents, self.batch_size) < 1:
            raise ValueError("num_streams, num_prompt_latents and batch_size must be at least 1")
        if self.latents_per_bin < 1 or self.num_latents % self.latents_per_bin:
            raise ValueError(f"{self.num_latents} latents do not make bins of {self.latents_per_bin}")


def speech_drift(context: MeasureContext) -> dict[str, Any]:
    """Continue streams freely and, as a control, the same places of them after real latents.

    Latents late in a stream differ from early ones for two reasons: a longer past, and the model's own errors in it.
    The control has the first alone: up to a bin its past is real. What is left between the two is exposure bias.

    Returns:
        `free`, `forced`, and `real` (the streams through the tokenizer): for every bin, as lists, the `variance` of the
        latents (data: 1), their Fréchet distance to real latents (`latent_frechet`), the classifier's mean `confidence`
        in the words it finds, `words_per_second`, and `similarity` of the voice to that of the real beginning;
        `excess`: free minus forced; `drift`: the excess of the last bin; `variance` of the freely drawn latents at
        every one of `positions`; `first_latent` of every bin; `num_streams`, `frame_rate`, `speaker`, `heard`.

    Raises:
        ValueError: If the run has heard the speaker, its model does not speak, or real streams are too short.
    """
    assert context.run_dir is not None
    options = from_mapping(SpeechDriftOptions, context.options, where=f"options of {context.cell}")
    data = SpeechData.of(context.recipe, options.data, options.words)
    streams = _Streams(context, options, data, context.load(context.run_dir / "model"))
    free, forced, real = (_Bins(streams) for _ in range(3))
    drawn = streams.draw_free()
    for start in tqdm(streams.bin_starts, desc="bins", disable=not context.progress):
        stretch = slice(start, start + options.latents_per_bin)
        free.add(start, drawn[:, stretch], past=drawn[:, :start])
        forced.add(start, streams.draw_forced(start) if start else drawn[:, stretch], past=streams.real[:, :start])
        real.add(start, streams.real[:, stretch], past=streams.real[:, :start])
    excess = {name: [a - b for a, b in zip(free.lists[name], forced.lists[name], strict=True)] for name in free.lists}
    return {
        "num_streams": options.num_streams,
        "num_latents": options.num_latents,
        "frame_rate": streams.tokenizer.config.frame_rate,
        "speaker": options.speaker,
        "heard": sorted(data.heard_speakers),
        "positions": list(range(options.num_latents)),
        "variance": drawn.double().var(dim=(0, 2)).tolist(),
        "first_latent": streams.bin_starts,
        "free": free.lists,
        "forced": forced.lists,
        "real": real.lists,
        "excess": excess,
        "drift": {name: values[-1] for name, values in excess.items()},
    }


class _Streams:
    """Real streams, and what a model makes of their beginnings; every draw is remembered.

    Attributes:
        prompts: Latents [D, n, C] before the drawn ones.
        real: Latents [D, N, C] that really follow.
        voices: Sound of the prompts.
    """

    def __init__(
        self, context: MeasureContext, options: SpeechDriftOptions, data: SpeechData, pipeline: LatentLMPipeline
    ) -> None:
        self.context, self.options, self._pipeline = context, options, pipeline
        self.tokenizer: SpeechTokenizer = speech_tokenizer(pipeline)
        self.judges = SpeechJudges(context, data, options.judges, measured=(options.speaker,))
        clips = self._clips(data)
        prompt = options.num_prompt_latents
        latents = self._encode(clips)
        self.prompts, self.real = latents[:, :prompt], latents[:, prompt:]
        self.voices = [clip[: prompt * self.tokenizer.config.hop_length] for clip in clips]
        self.bin_starts = list(range(0, options.num_latents, options.latents_per_bin))

    def _clips(self, data: SpeechData) -> list[Float[Tensor, "S"]]:
        """Sound of the real streams, all of one length."""
        options = self.options
        if data.words is None:
            raise ValueError("streams are joined from single words; this run was trained on utterances")
        count = options.num_words
        config = replace(
            data.words, min_words=count, max_words=count, num_utterances=options.num_streams, seed=options.seed
        )
        recordings, _ = data.of_speaker(options.speaker)
        length = (options.num_prompt_latents + options.num_latents) * self.tokenizer.config.hop_length
        clips = [example["audio"] for example in readable(WordStrings(recordings, config))]
        if short := [len(clip) for clip in clips if len(clip) < length]:
            raise ValueError(
                f"{len(short)} streams of {count} words are shorter than the {length / data.sample_rate:.0f} s of "
                "prompt and drawn latents: raise num_words"
            )
        return [clip[:length] for clip in clips]

    @torch.no_grad()
    def _encode(self, clips: Sequence[Float[Tensor, "S"]]) -> Float[Tensor, "D n C"]:
        """Samples of the posteriors, as the model was trained."""
        device, latents = device_of(self.tokenizer), []
        for number, clip in enumerate(clips):
            posterior = self.tokenizer.posterior(clip[None].to(device))
            key = torch.tensor([number], device=device)
            latents.append(self.tokenizer.sample_keyed(posterior, self.options.seed, key).cpu())
        return torch.cat(latents)

    def draw_free(self) -> Float[Tensor, "D N C"]:
        """Everything after the prompts."""
        return self._draw("free", self.prompts, self.options.num_latents)

    def draw_forced(self, start: int) -> Float[Tensor, "D n C"]:
        """The latents of one bin after real ones."""
        past = torch.cat([self.prompts, self.real[:, :start]], dim=1)
        return self._draw(f"forced{start}", past, self.options.latents_per_bin)

    def _draw(self, name: str, prefix: Tensor, num_latents: int) -> Tensor:
        parts = []
        for first in range(0, self.options.num_streams, self.options.batch_size):
            rows = range(first, min(first + self.options.batch_size, self.options.num_streams))
            draw = partial(self._draw_rows, rows, prefix, num_latents)
            parts.append(remembered(self.context.scratch_dir, f"{name}_{first}", draw)["latents"])
        return torch.cat(parts)

    def _draw_rows(self, rows: range, prefix: Tensor, num_latents: int) -> dict[str, Tensor]:
        requests = [
            GenerationRequest(
                prompt=Document(()),
                spans=(LatentSpan(SPEECH, num_latents, prefix=prefix[row]),),
                cfg_scale=1.0,
                seed=self.options.seed + row,
            )
            for row in rows
        ]
        drawn: dict[int, Tensor] = {}
        with autocast(self._pipeline.model.device, self.options.precision):
            for event in self._pipeline.events(requests, num_inference_steps=self.options.num_inference_steps):
                if isinstance(event, PartEvent) and isinstance(event.part, LatentPart):
                    drawn[event.request] = event.part.latents.float().cpu()
        return {"latents": torch.stack([drawn[number] for number in range(len(requests))])}


class _Bins:
    """Scores of bins, gathered as lists."""

    def __init__(self, streams: _Streams) -> None:
        self._streams = streams
        self.lists: dict[str, list[float]] = {}

    def add(self, start: int, latents: Float[Tensor, "D n C"], *, past: Float[Tensor, "D start C"]) -> None:
        """Score the latents of a bin, and how they sound after prompts and past."""
        streams = self._streams
        before = torch.cat([streams.prompts, past], dim=1)
        clips = [decode_after(streams.tokenizer, one, own) for one, own in zip(latents, before, strict=True)]
        flat, real = latents.flatten(0, 1), streams.real.flatten(0, 1)
        scores = {
            "variance": float(latents.double().var()),
            "latent_frechet": frechet_distance(flat, real),
            **self._words(clips),
        }
        encoder = streams.judges.speaker_encoder
        if encoder is not None:
            scores["similarity"] = self._similarity(encoder, clips)
        for name, value in scores.items():
            self.lists.setdefault(name, []).append(value)

    def _words(self, clips: Sequence[Float[Tensor, "S"]]) -> dict[str, float]:
        """How sure the classifier is of the words that it finds, 0 without any, and how many there are."""
        sample_rate, classifier = self._streams.tokenizer.config.sample_rate, self._streams.judges.classifier
        words = [word for clip in clips for word in cut_words(clip, sample_rate)]
        confidence = classifier.probabilities(words, sample_rate).amax(dim=1).mean().item() if words else 0.0
        return {"confidence": confidence, "words_per_second": len(words) * sample_rate / sum(map(len, clips))}

    def _similarity(self, encoder: SpeakerEncoder, clips: Sequence[Float[Tensor, "S"]]) -> float:
        """Mean cosine of the voices to those of the prompts; silence counts as 0."""
        sample_rate = self._streams.tokenizer.config.sample_rate
        total = 0.0
        for clip, voice in zip(clips, self._streams.voices, strict=True):
            try:
                total += (encoder.embed(clip, sample_rate) @ encoder.embed(voice, sample_rate)).item()
            except Unscorable:
                continue
        return total / len(clips)
