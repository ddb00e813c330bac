"""Text in, speech out: a `MelAR` with its vocoder and its text tokenizer, as a `Speaker`.

    voice's text + text ─▶ ids; voice's frames ─▶ prefix ─draw_utterances▶ coarse frames ─post-net▶ ─vocoder▶ waveform

Shapes: S samples, N frames of an utterance, M num_mels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.baselines.mel_ar.features import newest_groups, ungroup_frames
from latentlm.baselines.mel_ar.generator import MelAnswer, MelRequest, MelSamplingConfig, draw_groups
from latentlm.baselines.mel_ar.model import SPEECH, MelAR
from latentlm.baselines.mel_ar.vocoder import MelVocoder
from latentlm.generation.pipeline_folder import TEXT, StoredPipeline
from latentlm.generation.speaker import (
    SpeakingConfig,
    SpeakingCost,
    Utterance,
    draw_utterances,
    length_bounds,
    said_with,
)
from latentlm.generation.speech import decode_after
from latentlm.generation.voices import Voice, make_voice, read_voice
from latentlm.nn.flops import count_flops
from latentlm.nn.precision import autocast
from latentlm.sequence import Document, SequenceBuilder, TextPart
from latentlm.tokenizers.fingerprint import refuse_other_tokenizer
from latentlm.tokenizers.text import StoredTextTokenizer


def check_vocoder(model: MelAR, vocoder: MelVocoder) -> None:
    """Refuse a vocoder that the model was not trained with.

    Raises:
        ValueError: If it has another number of filters, or another fingerprint.
    """
    if vocoder.latent_dim != model.config.num_mels:
        raise ValueError(
            f"the vocoder speaks frames of {vocoder.latent_dim} filters but the model was built for "
            f"num_mels={model.config.num_mels}; was it trained with another vocoder?"
        )
    refuse_other_tokenizer(vocoder, model.config.vocoder_fingerprint, name="speech")


class MelARPipeline(StoredPipeline):
    """A trained model as people use it; satisfies `Speaker`.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: "speech", the vocoder, and "text".
        sampling: Defaults under "speech"; None takes those of the class.

    Raises:
        ValueError: If model and tokenizers do not belong together.
    """

    kind = MelAR.kind
    model_class = MelAR
    tokenizer_names = (SPEECH, TEXT)
    tokenizer_classes = MappingProxyType({MelVocoder.kind: MelVocoder})
    sampling_classes = MappingProxyType({SPEECH: MelSamplingConfig})

    def __init__(
        self,
        model: MelAR,
        tokenizers: Mapping[str, Any],
        sampling: Mapping[str, MelSamplingConfig] | None = None,
    ) -> None:
        super().__init__(model, tokenizers, sampling)
        check_vocoder(model, tokenizers[SPEECH])
        self.vocoder: MelVocoder = tokenizers[SPEECH]
        self.text_tokenizer: StoredTextTokenizer = tokenizers[TEXT]
        self.builder = SequenceBuilder(model.config.vocabulary, (SPEECH,), self.text_tokenizer)

    @property
    def sample_rate(self) -> int:
        """Of recordings and utterances, Hz."""
        return self.vocoder.config.sample_rate

    @property
    def step_rate(self) -> float:
        """Autoregressive steps a second of sound, Hz."""
        return self.vocoder.config.frame_rate / self.model.config.reduction_factor

    def make_voice(self, waveform: Float[Tensor, "S"], *, text: str | None = None) -> Voice:
        """See `Speaker`; its `mean` holds log mel frames, whatever the reduction factor."""
        return make_voice(self.vocoder, waveform, text=text)

    def read_voice(self, path: Path, *, text: str | None = None) -> Voice:
        """See `Speaker`."""
        return read_voice(path, self.vocoder, text=text)

    def speak(
        self,
        texts: Sequence[str],
        voices: Sequence[Voice | None],
        *,
        config: SpeakingConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Utterance]:
        """Speak texts, as one batch.

        Args:
            texts: What to say.
            voices: Whose voice each goes on in; None leaves it to the model.
            config: Guards and precision; guidance, solver steps and a drawn end are refused.
            seeds: One per text; None counts from 0.

        Raises:
            ValueError: If a text is empty, a voice is another vocoder's, or an option is not the model's.
        """
        config = config or SpeakingConfig()
        _refuse_foreign_options(config)

        def draw(numbers: list[int], own_seeds: list[int]) -> list[Utterance]:
            requests = [
                self._request(texts[number], voices[number], config, seed)
                for number, seed in zip(numbers, own_seeds, strict=True)
            ]
            with autocast(self.model.device, config.precision):
                answers = draw_groups(self.model, requests, self.sampling[SPEECH])
            return [self._utterance(*pair) for pair in zip(requests, answers, strict=True)]

        return draw_utterances(draw, texts, voices, seeds, num_retries=config.num_retries)

    def stream(
        self, text: str, voice: Voice | None = None, *, config: SpeakingConfig | None = None, seed: int = 0
    ) -> Iterator[Float[Tensor, "_samples"]]:
        """The whole sound as one chunk: the post-net looks at an utterance from both ends."""
        config = replace(config or SpeakingConfig(), num_retries=0)
        (said,) = self.speak([text], [voice], config=config, seeds=[seed])
        yield said.waveform

    def speaking_cost(
        self, seconds: float, *, text: str = "", voice_seconds: float = 0.0, config: SpeakingConfig | None = None
    ) -> SpeakingCost:
        """One step per group of frames, a pass of the sampler at each, and the post-net once; see `Speaker`."""
        model, device = self.model, self.model.device
        num_groups, of_voice = (math.ceil(time * self.step_rate) for time in (seconds, voice_seconds))
        num_positions = 2 + len(self.text_tokenizer.encode(text)) + of_voice + num_groups  # with both begins
        sequence = torch.zeros(1, num_positions, model.config.transformer.hidden_size, device=device)
        flops = count_flops(model.transformer, sequence, torch.arange(num_positions, device=device)[None])
        groups = torch.zeros(of_voice + num_groups, model.config.group_dim, device=device)
        flops += count_flops(model.pre_net, groups, 0, torch.arange(len(groups), device=device))
        drawn, states = groups[:num_groups], sequence[0, :num_groups]
        flops += count_flops(model.sampler, states, drawn) + count_flops(model.stop_logits, states)
        frames = ungroup_frames(drawn, model.config.reduction_factor)[None]
        is_real = torch.ones(frames.shape[:2], dtype=torch.bool, device=device)
        flops += count_flops(model.post_net, frames, is_real)
        return SpeakingCost(num_steps=num_groups, num_evaluations=2 * num_groups + 1, flops=flops)

    def _request(self, text: str, voice: Voice | None, config: SpeakingConfig, seed: int) -> MelRequest:
        prompt = self.builder.build(Document((TextPart(said_with(text, voice)),)), open_ended=True)
        begin = self.model.config.vocabulary.begin_id(SPEECH)
        prefix = torch.zeros(0, self.model.config.group_dim)
        if voice is not None:
            frames = voice.latents(self.vocoder, seed=seed, sample=False)
            prefix = newest_groups(frames, self.model.config.reduction_factor)
        least, most = length_bounds(text, voice, config, self.step_rate)
        return MelRequest(
            ids=torch.cat([prompt.input_ids, torch.tensor([begin])]),
            prefix=prefix,
            min_groups=least,
            max_groups=most,
            seed=seed,
        )

    @torch.no_grad()
    def _utterance(self, request: MelRequest, answer: MelAnswer) -> Utterance:
        reduction_factor = self.model.config.reduction_factor
        prefix = ungroup_frames(request.prefix.to(self.model.device), reduction_factor)
        # The voice's frames stand before the coarse ones, so that the first of those have neighbours too.
        frames = torch.cat([prefix, ungroup_frames(answer.coarse, reduction_factor)])[None]
        is_real = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        refined = self.model.post_net(frames, is_real)[0, len(prefix) :]
        return Utterance(
            waveform=decode_after(self.vocoder, refined, prefix),
            sample_rate=self.sample_rate,
            tokens=refined.cpu(),
            ended_by_itself=answer.ended,
            seeds=(request.seed,),
        )


def _refuse_foreign_options(config: SpeakingConfig) -> None:
    """Options of other speakers, which would silently do nothing."""
    foreign = {
        "cfg_scale": config.cfg_scale is not None,
        "num_inference_steps": config.num_inference_steps is not None,
        "end_temperature": config.end_temperature != 0,
        "guide_voice": not config.guide_voice,
    }
    if given := [name for name, is_given in foreign.items() if is_given]:
        raise ValueError(
            f"a '{MelAR.kind}' has no guidance and no solver, and its stop layer decides alone: leave {given[0]} out"
        )
