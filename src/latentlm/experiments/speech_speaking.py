"""A trained model that says trials: by batches, under settings of the options, with what it takes.

Settings are fields of `SpeakingConfig` ({cfg_scale: 4.0, length_guard: false}) or, behind `sampling.`, of how a model
of this kind draws its tokens ({sampling.top_p: 0.9}).

Shapes: n utterances.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentlm.config import to_mapping, with_changes
from latentlm.evaluation.cost import parameters_by_part
from latentlm.evaluation.speech.tts_protocol import Spoken
from latentlm.evaluation.speech.tts_trials import Trial
from latentlm.generation.speaker import Speaker, SpeakingConfig
from latentlm.generation.speech import SPEECH, as_speaker

_OF_SAMPLING = "sampling."
_NUM_COSTED = 50
"""Utterances whose cost is counted; the others are like them."""


@dataclass(frozen=True, eq=False)
class Said:
    """What a model said to some trials, in their order.

    Attributes:
        waveforms: Without the voices.
        ended: Whether the model ended each by itself.
        num_draws: Of each; the last one is heard.
        seconds: Wall time of all together.
    """

    waveforms: list[Tensor]
    ended: list[bool]
    num_draws: list[int]
    seconds: float

    @property
    def num_samples(self) -> int:
        """Of all waveforms."""
        return sum(map(len, self.waveforms))

    def as_spoken(self) -> list[Spoken]:
        """For the judges; every utterance took an equal share of the time."""
        each = self.seconds / len(self.waveforms)
        return [
            Spoken(waveform=waveform, ended=ended, wall_seconds=each)
            for waveform, ended in zip(self.waveforms, self.ended, strict=True)
        ]

    def as_tensors(self) -> dict[str, Tensor]:
        """To be stored."""
        return {
            "samples": torch.cat(self.waveforms),
            "lengths": torch.tensor([len(waveform) for waveform in self.waveforms]),
            "ended": torch.tensor(self.ended),
            "num_draws": torch.tensor(self.num_draws),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Said":
        """What `as_tensors` stored."""
        return Said(
            waveforms=list(tensors["samples"].split(tensors["lengths"].tolist())),
            ended=tensors["ended"].tolist(),
            num_draws=tensors["num_draws"].tolist(),
            seconds=float(tensors["seconds"]),
        )

    @staticmethod
    def joined(parts: Sequence["Said"]) -> "Said":
        """One after the other."""
        return Said(
            waveforms=[waveform for part in parts for waveform in part.waveforms],
            ended=[ended for part in parts for ended in part.ended],
            num_draws=[count for part in parts for count in part.num_draws],
            seconds=sum(part.seconds for part in parts),
        )


class TrialSpeaker:
    """A loaded model, of whatever kind, that speaks.

    Args:
        model: From `latentlm.load`.
        name: For messages.
        base: Settings of everything that is said.

    Raises:
        ValueError: If it does not speak, or the settings are not its own.
    """

    def __init__(self, model: Any, *, name: str, base: Mapping[str, Any]) -> None:
        self._model, self._base = model, base
        self._speaker: Speaker = as_speaker(model, name=name)

    @property
    def tokenizer(self) -> Any:
        """What its tokens are decoded with; a codec language model has nothing but its codec."""
        tokenizers = getattr(self._model, "tokenizers", None)
        return self._model.codec if tokenizers is None else tokenizers[SPEECH]

    @property
    def num_parameters(self) -> int:
        """Without the tokenizer's."""
        return sum(parameters_by_part(self._model.model).values())

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides how it speaks under some changes, for a record."""
        config, sampling = self._resolved(changes)
        return {"speaking": to_mapping(config), "sampling": to_mapping(sampling)}

    def say(self, trials: Sequence[Trial], changes: Mapping[str, Any]) -> Said:
        """Say trials side by side. Voices are read before the clock starts.

        Args:
            trials: One batch.
            changes: Settings over those of everything.

        Raises:
            ValueError: If a setting is not the model's, or what it draws is not finite.
        """
        with self._under(changes) as config:
            voices = [self._speaker.make_voice(trial.prompt, text=trial.prompt_text) for trial in trials]
            start = time.perf_counter()
            said = self._speaker.speak(
                [trial.text for trial in trials], voices, config=config, seeds=[trial.seed for trial in trials]
            )
            seconds = time.perf_counter() - start
        return Said(
            waveforms=[one.waveform.float().cpu() for one in said],
            ended=[one.ended_by_itself for one in said],
            num_draws=[len(one.seeds) for one in said],
            seconds=seconds,
        )

    def costs(self, trials: Sequence[Trial], said: Said, changes: Mapping[str, Any]) -> dict[str, float | int | None]:
        """Wall time, steps, network evaluations and FLOPs per second of sound, draws that were thrown away included.

        Those are taken to be as long as the ones that were kept. Only the wall time includes the tokenizer's decoder.
        Nothing is known of a model that said nothing.
        """
        rate = self._speaker.sample_rate
        totals = {"steps_per_second": 0.0, "evaluations_per_second": 0.0, "flops_per_second": 0.0}
        rows = list(zip(trials, said.waveforms, said.num_draws, strict=True))[:_NUM_COSTED]
        with self._under(changes) as config:
            for trial, waveform, num_draws in rows:
                cost = self._speaker.speaking_cost(
                    len(waveform) / rate,
                    text=f"{trial.prompt_text} {trial.text}",
                    voice_seconds=len(trial.prompt) / rate,
                    config=config,
                )
                totals["steps_per_second"] += num_draws * cost.num_steps
                totals["evaluations_per_second"] += num_draws * cost.num_evaluations
                totals["flops_per_second"] += num_draws * cost.flops
        seconds = sum(len(waveform) for _, waveform, _ in rows) / rate
        return {
            "num_counted": len(rows),
            "seconds_per_second": said.seconds * rate / said.num_samples if said.num_samples else None,
            **{name: total / seconds if seconds else None for name, total in totals.items()},
        }

    @contextmanager
    def _under(self, changes: Mapping[str, Any]) -> Iterator[SpeakingConfig]:
        config, sampling = self._resolved(changes)
        own = self._sampling
        self._sampling = sampling
        try:
            yield config
        finally:
            self._sampling = own

    @property
    def _sampling(self) -> Any:
        """How the model draws its tokens: by modality, or of the only one."""
        sampling = self._model.sampling
        return sampling[SPEECH] if isinstance(sampling, dict) else sampling

    @_sampling.setter
    def _sampling(self, sampling: Any) -> None:
        if isinstance(self._model.sampling, dict):
            self._model.sampling[SPEECH] = sampling
        else:
            self._model.sampling = sampling

    def _resolved(self, changes: Mapping[str, Any]) -> tuple[SpeakingConfig, Any]:
        settings = {**self._base, **changes}
        of_sampling = {k.removeprefix(_OF_SAMPLING): v for k, v in settings.items() if k.startswith(_OF_SAMPLING)}
        of_speaking = {k: v for k, v in settings.items() if not k.startswith(_OF_SAMPLING)}
        own = f"sampling of a '{self._speaker.kind}'"
        sampling = with_changes(self._sampling, of_sampling, where=own)
        return with_changes(SpeakingConfig(), of_speaking, where="speaking"), sampling
