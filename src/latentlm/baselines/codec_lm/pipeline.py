"""Text in, sound out: a codec language model together with its codec, as a `Speaker`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.baselines.codec_lm.autoregressive import AutoregressiveNetwork
from latentlm.baselines.codec_lm.generator import CodeRequest, draw_codes
from latentlm.baselines.codec_lm.model import CodecLM
from latentlm.baselines.codec_lm.non_autoregressive import NonAutoregressiveNetwork
from latentlm.baselines.codec_lm.rows import CodecUtterance, PackedRows, non_autoregressive_tokens, pack
from latentlm.baselines.codec_lm.sampling import CodecSamplingConfig
from latentlm.generation.pipeline_folder import TEXT, StoredPipeline
from latentlm.generation.speaker import (
    SpeakingConfig,
    SpeakingCost,
    Utterance,
    draw_utterances,
    length_bounds,
    said_with,
)
from latentlm.generation.speech import SPEECH
from latentlm.generation.voices import CodeVoice, make_code_voice, read_code_voice
from latentlm.nn.flops import count_flops
from latentlm.nn.precision import autocast
from latentlm.tokenizers.fingerprint import refuse_other_tokenizer
from latentlm.tokenizers.speech import SpeechCodec
from latentlm.tokenizers.text import StoredTextTokenizer


def check_codec(model: CodecLM, codec: Any) -> None:
    """Refuse a speech tokenizer that the model was not trained with.

    Raises:
        ValueError: If it gives no codes, others than the model's, or has another fingerprint.
    """
    if not isinstance(codec, SpeechCodec):
        raise ValueError(f"a '{model.kind}' models codes, but the speech tokenizer is a '{codec.kind}'")
    config = model.config
    if (codec.num_codes, codec.num_quantizers) != (config.num_codes, config.num_quantizers):
        raise ValueError(
            f"the codec has {codec.num_quantizers} codebooks of {codec.num_codes} codes but the model was built for "
            f"{config.num_quantizers} of {config.num_codes}; was it trained with another codec?"
        )
    refuse_other_tokenizer(codec, config.tokenizer_fingerprint, name="speech")


class CodecLMPipeline(StoredPipeline):
    """A trained model as people use it; a `generation.speaker.Speaker`.

    Args:
        model: The model; it is switched to evaluation mode.
        tokenizers: "speech", the codec, and "text".
        sampling: Defaults under "speech"; None takes those of the class.

    Raises:
        ValueError: If model and tokenizers do not belong together.
    """

    kind = CodecLM.kind
    model_class = CodecLM
    tokenizer_names = (SPEECH, TEXT)
    sampling_classes = MappingProxyType({SPEECH: CodecSamplingConfig})

    def __init__(
        self,
        model: CodecLM,
        tokenizers: Mapping[str, Any],
        sampling: Mapping[str, CodecSamplingConfig] | None = None,
    ) -> None:
        super().__init__(model, tokenizers, sampling)
        check_codec(model, tokenizers[SPEECH])
        text_tokenizer: StoredTextTokenizer = tokenizers[TEXT]
        if text_tokenizer.num_ids != model.config.num_text_ids:
            raise ValueError(
                f"the text tokenizer has {text_tokenizer.num_ids} ids but the model was built for "
                f"{model.config.num_text_ids}; was it trained with another tokenizer?"
            )
        self.codec: SpeechCodec = tokenizers[SPEECH]
        self.text_tokenizer = text_tokenizer

    @property
    def sample_rate(self) -> int:
        """Of recordings and utterances, Hz."""
        return self.codec.config.sample_rate

    def make_voice(self, waveform: Float[Tensor, "S"], *, text: str | None = None) -> CodeVoice:
        """See `Speaker.make_voice`."""
        return make_code_voice(self.codec, waveform, text=text)

    def read_voice(self, path: Path, *, text: str | None = None) -> CodeVoice:
        """See `Speaker.read_voice`."""
        return read_code_voice(path, self.codec, text=text)

    def speak(
        self,
        texts: Sequence[str],
        voices: Sequence[CodeVoice | None],
        *,
        config: SpeakingConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Utterance]:
        """Speak texts, as one batch.

        Args:
            texts: What to say.
            voices: Whose voice each goes on in; None leaves it to the model.
            config: Guidance, guards and precision; solver steps and an end of its own temperature are refused.
            seeds: One per text; None counts from 0.

        Raises:
            ValueError: If a text is empty, a voice is another codec's, or an option is not the model's.
        """
        config = config or SpeakingConfig()
        if config.num_inference_steps is not None or config.end_temperature != 0 or not config.guide_voice:
            raise ValueError(
                f"a '{self.kind}' denoises nothing, draws its end among the codes, and guides by text and voice: leave "
                "num_inference_steps, end_temperature and guide_voice out"
            )
        sampling = self._sampling(config)

        def draw(numbers: list[int], own_seeds: list[int]) -> list[Utterance]:
            requests = [
                self.request(texts[number], voices[number], config, seed)
                for number, seed in zip(numbers, own_seeds, strict=True)
            ]
            with autocast(self.model.device, config.precision):
                drawn = draw_codes(self.model, requests, sampling)
            return [
                Utterance(
                    waveform=self._decode_after(one.codes, request.prompt),
                    sample_rate=self.sample_rate,
                    tokens=one.codes,
                    ended_by_itself=one.ended,
                    seeds=(request.seed,),
                )
                for request, one in zip(requests, drawn, strict=True)
            ]

        return draw_utterances(draw, texts, voices, seeds, num_retries=config.num_retries)

    def stream(
        self, text: str, voice: CodeVoice | None = None, *, config: SpeakingConfig | None = None, seed: int = 0
    ) -> Iterator[Float[Tensor, "_samples"]]:
        """One chunk, when all is drawn: the codes of a frame but the first depend on the frames behind it."""
        config = replace(config or SpeakingConfig(), num_retries=0)
        (said,) = self.speak([text], [voice], config=config, seeds=[seed])
        yield said.waveform

    def request(self, text: str, voice: CodeVoice | None, config: SpeakingConfig, seed: int) -> CodeRequest:
        """What the generator is asked for.

        Raises:
            ValueError: As in `speak`.
        """
        tokenizer = self.text_tokenizer
        least, most = length_bounds(text, voice, config, self.codec.config.frame_rate)
        no_voice = torch.zeros(0, self.codec.num_quantizers, dtype=torch.long)
        return CodeRequest(
            text_ids=[tokenizer.bos_id, *tokenizer.encode(said_with(text, voice))],
            prompt=no_voice if voice is None else voice.codes(self.codec),
            unprompted_ids=[tokenizer.bos_id],
            min_frames=least,
            max_frames=most,
            seed=seed,
        )

    def speaking_cost(
        self, seconds: float, *, text: str = "", voice_seconds: float = 0.0, config: SpeakingConfig | None = None
    ) -> SpeakingCost:
        """One step per group of frames, and one pass over all frames per further code; see `Speaker.speaking_cost`."""
        model, sampling = self.model, self._sampling(config or SpeakingConfig())
        group_size, num_levels = model.config.group_size, model.config.num_quantizers - 1
        frame_rate = self.codec.config.frame_rate
        num_frames, of_voice = (math.ceil(time * frame_rate) for time in (seconds, voice_seconds))
        num_steps = math.ceil(num_frames / group_size)
        text_ids = [self.text_tokenizer.bos_id, *self.text_tokenizer.encode(text)]
        lengths = [len(text_ids) + 1 + of_voice // group_size + num_steps]
        if sampling.cfg_scale != 1:
            lengths.append(2 + num_steps)  # the unconditional stream reads begin of text and of sound alone
        stepping = sum(count_flops(_read_and_predict, model.autoregressive, length, num_steps) for length in lengths)
        utterance = CodecUtterance(text_ids, torch.zeros(of_voice + num_frames, num_levels + 1, dtype=torch.long))
        tokens = non_autoregressive_tokens(utterance, num_prompt_frames=of_voice, level=1, begin_id=model.begin_id)
        rows = pack([[tokens]], num_codes=num_levels + 1, num_targets=1, length=len(tokens.text_ids)).to(model.device)
        filling = num_levels * count_flops(_fill, model.non_autoregressive, rows)
        return SpeakingCost(
            num_steps=num_steps,
            num_evaluations=len(lengths) * num_steps + num_levels,
            flops=stepping + filling,
        )

    def _sampling(self, config: SpeakingConfig) -> CodecSamplingConfig:
        sampling = self.sampling[SPEECH]
        return sampling if config.cfg_scale is None else replace(sampling, cfg_scale=config.cfg_scale)

    @torch.no_grad()
    def _decode_after(self, codes: Tensor, prompt: Tensor) -> Float[Tensor, "S"]:
        """Sound of codes that follow others, without the sound of those, on the CPU."""
        device = next(self.codec.parameters()).device
        _, state = self.codec.decode_step(prompt[None].to(device), self.codec.decoder_state(1))
        waveform, _ = self.codec.decode_step(codes[None].to(device), state)
        return waveform[0].cpu()


def _read_and_predict(network: AutoregressiveNetwork, length: int, num_steps: int) -> None:
    """All that steps compute, at once: the cache keeps them from reading a position twice."""
    text_ids = torch.zeros(1, length, dtype=torch.long, device=network.embed_text.weight.device)
    codes = text_ids[..., None].expand(1, length, network.group_size)
    positions = torch.arange(length, device=text_ids.device)[None]
    hidden_states = network.transformer(network.embed(text_ids, codes), positions)
    network.logits(hidden_states[:, -num_steps:])


def _fill(network: NonAutoregressiveNetwork, rows: PackedRows) -> None:
    """One level of all frames."""
    hidden_states = network.hidden_states(rows).flatten(0, 1)[rows.target_positions]
    network.logits(hidden_states, rows.levels.flatten()[rows.target_positions])
