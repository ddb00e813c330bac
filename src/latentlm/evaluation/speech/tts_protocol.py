"""Zero-shot speech synthesis, scored: words, voices, ends and costs, beside ground truth and tokenizer.

    trials ─speak▶ clips ─recognisers▶ word errors, beside the judge's own on real speech
                         ─speaker encoder, prompts▶ similarity, beside one and two speakers of real speech
                         ─▶ ended by itself? length against the real recording, steps, evaluations, seconds

Guards against bad cases (minimum and maximum length, retries) are part of `speak`: with and without them are two
systems, and both are rows.

Shapes: S samples.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latentlm.evaluation.intervals import bootstrap_ratio
from latentlm.evaluation.speech.codecs import Codec
from latentlm.evaluation.speech.interfaces import Recogniser
from latentlm.evaluation.speech.speakers import SpeakerCalibration, SpeakerJudge
from latentlm.evaluation.speech.tts_scores import (
    LONGEST,
    SHORTEST,
    Costs,
    RecognitionScores,
    TtsReport,
    TtsScores,
    per_second,
)
from latentlm.evaluation.speech.tts_trials import TrialSet
from latentlm.evaluation.speech.word_errors import WordErrors, word_errors

GROUND_TRUTH = "ground truth"


@dataclass(frozen=True, kw_only=True, eq=False)
class Spoken:
    """What a system made of a trial.

    Attributes:
        waveform: Without the prompt; may be empty.
        ended: Whether the model ended it by itself, not a bound on its length.
        num_steps: Autoregressive steps.
        num_evaluations: Network evaluations: head steps times guidance, non-autoregressive passes.
        flops: Floating-point operations.
        wall_seconds: Time that it took.
    """

    waveform: Float[Tensor, " S"]
    ended: bool = True
    num_steps: int | None = None
    num_evaluations: int | None = None
    flops: float | None = None
    wall_seconds: float | None = None


@runtime_checkable
class Speak(Protocol):
    """A system under test."""

    def __call__(self, text: str, prompt_waveform: Float[Tensor, " S"], prompt_text: str, seed: int) -> Spoken:
        """Say the text in the voice of the prompt, at the trials' sample rate; the same for the same seed."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TtsJudges:
    """Who judges.

    Attributes:
        recognisers: With different labels; two independent ones at least, for a claim.
        voices: Speaker encoders under their rules, each with what it says of real speech of the corpus.
        spell_digits: Texts are digit strings; see `word_errors.normalize_text`.
    """

    recognisers: Sequence[Recogniser]
    voices: Sequence[tuple[SpeakerJudge, SpeakerCalibration]] = ()
    spell_digits: bool = False

    def __post_init__(self) -> None:
        labels = [recogniser.label for recogniser in self.recognisers]
        if len(set(labels)) != len(labels) or not labels:
            raise ValueError(f"recognisers need different labels, and there must be one; got {labels}")


def speak_all(speak: Speak, trials: TrialSet, *, progress: bool = False) -> list[Spoken]:
    """Let a system say everything, one trial after the other; wall time is added where it does not give its own.

    Args:
        speak: The system.
        trials: What to say.
        progress: Show a progress bar.
    """
    spoken = []
    for trial in tqdm(trials.trials, desc="speaking", unit="clip", disable=not progress):
        began = time.perf_counter()
        one = speak(trial.text, trial.prompt, trial.prompt_text, trial.seed)
        took = time.perf_counter() - began
        spoken.append(one if one.wall_seconds is not None else replace(one, wall_seconds=took))
    return spoken


def ground_truth(trials: TrialSet) -> list[Spoken]:
    """The real recordings, as if a system had said them."""
    return [Spoken(waveform=trial.target) for trial in trials.trials]


def reconstructed(trials: TrialSet, codec: Codec, *, num_quantizers: int | None = None) -> list[Spoken]:
    """The real recordings through a tokenizer: what a perfect model of its latents would say."""
    return [
        Spoken(waveform=codec.reconstruct(trial.target[None], trials.sample_rate, num_quantizers)[0])
        for trial in trials.trials
    ]


def evaluate_tts(trials: TrialSet, systems: Mapping[str, Sequence[Spoken]], judges: TtsJudges) -> TtsReport:
    """Score systems on one set of trials; the real recordings are the first row.

    Args:
        trials: What was asked for.
        systems: What each system said, in the order of the trials.
        judges: Who judges.

    Raises:
        ValueError: If a system is called like the first row, has not as many clips as there are trials, or there are
            too few trials to judge voices.
    """
    if GROUND_TRUTH in systems:
        raise ValueError(f"the row {GROUND_TRUTH!r} is made of the trials themselves; call the system otherwise")
    for name, spoken in systems.items():
        if len(spoken) != len(trials):
            raise ValueError(f"{name} said {len(spoken)} clips, but there are {len(trials)} trials")
    real = ground_truth(trials)
    own = _recognise(trials, real, judges)
    rows = {GROUND_TRUTH: _score(trials, real, judges, own, own)}
    for name, spoken in systems.items():
        rows[name] = _score(trials, spoken, judges, _recognise(trials, spoken, judges), own)
    return TtsReport(
        protocol=trials.protocol,
        origin=trials.origin,
        num_trials=len(trials),
        num_speakers=len({trial.speaker for trial in trials.trials}),
        systems=rows,
    )


def _recognise(trials: TrialSet, spoken: Sequence[Spoken], judges: TtsJudges) -> dict[str, WordErrors]:
    texts = [trial.text for trial in trials.trials]
    clips = [one.waveform for one in spoken]
    return {
        recogniser.label: word_errors(
            texts, recogniser.transcribe(clips, trials.sample_rate), spell_digits=judges.spell_digits
        )
        for recogniser in judges.recognisers
    }


def _score(
    trials: TrialSet,
    spoken: Sequence[Spoken],
    judges: TtsJudges,
    errors: Mapping[str, WordErrors],
    own: Mapping[str, WordErrors],
) -> TtsScores:
    lengths = [len(one.waveform) for one in spoken]
    expected = [len(trial.target) for trial in trials.trials]
    in_time = [
        one.ended and SHORTEST * wanted <= length <= LONGEST * wanted
        for one, length, wanted in zip(spoken, lengths, expected, strict=True)
    ]
    seconds = sum(lengths) / trials.sample_rate
    return TtsScores(
        recognition={label: RecognitionScores(errors=errors[label], own=own[label]) for label in errors},
        similarity=tuple(
            judge.compare(
                [one.waveform for one in spoken],
                [trial.prompt for trial in trials.trials],
                [trial.speaker for trial in trials.trials],
                trials.sample_rate,
                calibration=calibration,
            )
            for judge, calibration in judges.voices
        ),
        ended=bootstrap_ratio([one.ended for one in spoken]),
        ended_in_time=bootstrap_ratio(in_time),
        length_ratio=bootstrap_ratio(lengths, expected),
        costs=Costs(
            seconds_per_second=per_second([one.wall_seconds for one in spoken], seconds),
            steps_per_second=per_second([one.num_steps for one in spoken], seconds),
            evaluations_per_second=per_second([one.num_evaluations for one in spoken], seconds),
            flops_per_second=per_second([one.flops for one in spoken], seconds),
        ),
    )
