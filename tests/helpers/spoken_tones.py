"""A corpus of single words on disk, tones by three voices, and a model that can say them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_speech import tiny_speech_tokenizer
from torch import Tensor, nn
from toy_speech import RATE, TONES, word

from latentlm.config import from_mapping
from latentlm.data.audio import AudioDataConfig, WordStringConfig, write_wav
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.generation.speaker import SomeVoice, SpeakingConfig, SpeakingCost, Utterance
from latentlm.generation.voices import Voice

LETTERS = {"a": "zero", "b": "one", "c": "two"}
"""Words of the corpus, and the tones that are heard."""
WORDS = WordStringConfig(min_words=2, max_words=3, min_gap_seconds=0.2, max_gap_seconds=0.25)

# What the judges of tones are; the recogniser of letters learns nothing in so few steps, and says so.
TONE_JUDGES: dict[str, Any] = {
    "classifier": {
        "seconds": 0.5,
        "num_mels": 16,
        "width": 8,
        "num_steps": 40,
        "batch_size": 24,
        "max_speed_change": 0.03,
        "lr": 1e-2,
    },
    "ctc": {"num_mels": 8, "hidden_size": 8, "dilations": [1], "num_steps": 2, "batch_size": 2, "max_joined": 2},
    "pocketsphinx": False,
    "speaker_encoder": "mfcc",
}


def write_spoken_tones(folder: Path) -> AudioDataConfig:
    """Train: speakers low and high, 24 words each. Test: 9 more of each, and 36 of a speaker who is new."""
    generator = torch.Generator().manual_seed(0)
    for part, counts in {"train": {"low": 24, "high": 24}, "test": {"low": 9, "high": 9, "new": 36}}.items():
        for speaker, count in counts.items():
            for number in range(count):
                text = list(LETTERS)[number % len(LETTERS)]
                path = folder / part / speaker / f"{number:02d}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_wav(path, word(LETTERS[text], generator=generator).clamp(-1, 1), RATE)
                path.with_suffix(".txt").write_text(text)
    mapping = {"path": str(folder), "format": "audio_folder", "sample_rate": RATE, "validation_ratio": 0.4}
    return from_mapping(AudioDataConfig, mapping)


class ToneSpeaker:
    """Says words of the corpus in no voice, but reads them right only at cfg_scale 2.

    Every third text does not end by itself, unless guards are on and draw it again.
    """

    kind = "tones"
    sample_rate = RATE

    def __init__(self) -> None:
        self.model = nn.Linear(2, 3, bias=False)
        self.tokenizers = {"speech": tiny_speech_tokenizer(sample_rate=RATE)}
        self.sampling: dict[str, Any] = {"speech": LatentSamplingConfig()}
        self.said: list[tuple[str, float | None, float]] = []
        """Text, cfg_scale of the config, and of the model's own sampling."""

    def make_voice(self, waveform: Tensor, *, text: str | None = None) -> SomeVoice:
        return Voice(waveform[None], None, text, "tones", len(waveform) / RATE)

    def read_voice(self, path: Path, *, text: str | None = None) -> SomeVoice:
        raise NotImplementedError

    def speak(
        self,
        texts: Sequence[str],
        voices: Sequence[Any],
        *,
        config: SpeakingConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Utterance]:
        assert config is not None
        assert seeds is not None
        said = []
        for text, voice, seed in zip(texts, voices, seeds, strict=True):
            assert voice.text
            self.said.append((text, config.cfg_scale, self.sampling["speech"].cfg_scale))
            heard = text.split() if config.cfg_scale == 2.0 else ["a"] * len(text.split())
            generator = torch.Generator().manual_seed(seed)
            pieces = [p for letter in heard for p in (torch.zeros(1800), word(LETTERS[letter], generator=generator))]
            num_draws = 1 + (seed % 3 == 0) * config.num_retries
            ended = seed % 3 != 0 or num_draws > 1
            said.append(Utterance(torch.cat(pieces), RATE, torch.zeros(1, 1), ended, tuple(range(num_draws))))
        return said

    def stream(
        self, text: str, voice: Any = None, *, config: SpeakingConfig | None = None, seed: int = 0
    ) -> Iterator[Tensor]:
        raise NotImplementedError

    def speaking_cost(
        self, seconds: float, *, text: str = "", voice_seconds: float = 0.0, config: SpeakingConfig | None = None
    ) -> SpeakingCost:
        """Steps of a tenth of a second, evaluations by cfg_scale, no computation but one per step."""
        scale = self.sampling["speech"].cfg_scale
        num_steps = round(10 * seconds)
        return SpeakingCost(num_steps=num_steps, num_evaluations=round(scale * num_steps), flops=num_steps)


assert set(LETTERS.values()) == set(TONES)
