"""How models that speak are measured (paper Table 4, right half of Table 6, Figure 10): voices they never heard.

    validation strings ─trials of settings▶ word errors of a recogniser that judges nothing ─▶ the chosen setting
    left-out speakers  ─reference, continuation▶ trials ─rows of settings▶ speech
      ─▶ errors of recognisers, similarity to the prompt, ends, lengths, costs
         beside the real recordings, and beside those through the model's tokenizer

LatentLM, codec language models and models of mel frames speak through one interface (`generation/speaker.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from latentlm.config import from_mapping
from latentlm.data.audio import AudioDataset, WordStringConfig
from latentlm.evaluation.image_protocol import Weights
from latentlm.evaluation.speech.interfaces import Clips
from latentlm.evaluation.speech.speakers import MIN_SECONDS, MIN_TRIALS, SpeakerCalibration, SpeakerJudge
from latentlm.evaluation.speech.tts_protocol import GROUND_TRUTH, Spoken, TtsJudges, evaluate_tts
from latentlm.evaluation.speech.tts_scores import RecognitionScores, TtsScores
from latentlm.evaluation.speech.tts_trials import Origin, Protocol, TrialSet
from latentlm.evaluation.speech.word_errors import word_errors
from latentlm.experiments.image_protocols import MODEL_FOLDERS
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.speech_codecs import codec_for_models, device_of, reconstruct
from latentlm.experiments.speech_data import SpeechData, as_recordings, is_for_judges, joined, subset
from latentlm.experiments.speech_judges import SpeechJudges, SpeechJudgesConfig
from latentlm.experiments.speech_speaking import Said, TrialSpeaker
from latentlm.experiments.speech_trials import TrialShape, make_trials, real_speech
from latentlm.experiments.training_cost import Build, training_flops
from latentlm.pictures import save_picture
from latentlm.training.spectrograms import spectrogram_grid

REAL, RECONSTRUCTION = "ground_truth", "reconstruction"
"""Rows of the real recordings, and of those through the model's tokenizer."""

_VALIDATION_SEED = 1_000_000
"""Added to the seed of test trials, so that no draw is shared."""
_NUM_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class TextToSpeechOptions:
    """What is asked of a model that speaks.

    Settings are as `speech_speaking.py` has them.
    """

    speakers: list[str] = field(default_factory=list)
    """Whose voices are imitated. Empty: everybody of the test recordings whom the run has not heard."""
    protocols: list[str] = field(default_factory=lambda: list(get_args(Protocol)))
    """`reference`, `continuation`."""
    num_trials: int = 500
    """Of each protocol. Short ones are joined for similarity, which wants 200 of 3 s a side."""
    shape: TrialShape = field(default_factory=TrialShape)
    weights: Weights = "ema"
    speaking: dict[str, Any] = field(default_factory=dict)
    """Settings of everything that is said: {max_seconds: 10.0}."""
    trials: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    """Settings to choose from: [{cfg_scale: 2.0}, {cfg_scale: 4.0}]; as many for every method that is compared."""
    tried_with: dict[str, Any] = field(default_factory=lambda: {"length_guard": False})
    """Settings written over each of them while they are tried."""
    num_validation_trials: int = 100
    """Of each of them: reference trials of speakers that the run has heard, on recordings that it has not."""
    rows: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"free": {"length_guard": False}, "guarded": {"num_retries": 3}}
    )
    """What is judged, by name: settings written over the chosen ones. By default without guards, and with all."""
    batch_size: int = 50
    """Texts that are spoken side by side; the rows' wall time is that of such batches."""
    num_timed: int = 10
    """Trials that are spoken one after the other, for the wall time of a single voice; 0 for none."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the recordings' config, written over the recipe's."""
    words: WordStringConfig | None = None
    """How single words are joined, instead of the recipe's way."""
    origin: Origin = "recorded"
    """Whether the real clips are recordings or synthesised."""
    max_real_word_error_rate: float | None = None
    """Voices whose real clips the CTC recogniser reads worse than this are left out, and named: for synthetic voices,
    some of which nobody understands. None keeps all."""
    max_frequency: float | None = None
    """Bandwidth at which voices are compared, Hz; None is half the sample rate."""
    voice_seconds: float = MIN_SECONDS
    """Of speech on either side of a trial of similarity."""
    min_voice_trials: int = MIN_TRIALS
    """Fewer trials of similarity are refused."""
    judges: SpeechJudgesConfig = field(default_factory=SpeechJudgesConfig)
    seed: int = 0
    """Of trials and draws."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.protocols) - set(get_args(Protocol))):
            raise ValueError(f"protocols names {', '.join(unknown)}, but there are {', '.join(get_args(Protocol))}")
        if not (self.protocols and self.trials and self.rows):
            raise ValueError("protocols, trials and rows need one entry at least")
        if {GROUND_TRUTH, REAL, RECONSTRUCTION} & set(self.rows):
            raise ValueError(f"rows called {REAL} and {RECONSTRUCTION} are there anyway; call yours otherwise")
        if self.num_timed < 0 or min(self.num_trials, self.num_validation_trials, self.batch_size) < 1:
            raise ValueError("num_trials, num_validation_trials and batch_size must be at least 1, num_timed 0 or more")


def text_to_speech(context: MeasureContext, *, build: Build | None = None) -> dict[str, Any]:
    """Choose a model's settings on validation strings, then let it speak as people it never heard, and judge it.

    Args:
        context: Of the cell.
        build: Makes the objective and the batches of a recipe, to count what the training took; None counts nothing.

    Returns:
        `speakers`, those whose voices were imitated, `misread`, those that were left out, with the judge's word error
        rate, and `heard`, those of training; `judges`: each recogniser's
        accuracy on real speech of the former, clean and degraded; `voices`: similarities between real recordings, and
        their midpoint; `trials` of settings and the `chosen` one; by protocol `num_trials`, `num_speakers`, `origin`,
        `seed` and `rows`: `ground_truth`, `reconstruction` and the options' own, with errors by recogniser,
        `similarity`, `ended`, `ended_in_time`, `length_ratio`, and of the latter `settings` and `costs`; `one_by_one`:
        wall time of single voices; `parameters`; `trained`: `steps` and `flops`, or None.

    Raises:
        ValueError: If the model does not speak, has heard a speaker that is to be imitated, or the trials are too few.
    """
    options = from_mapping(TextToSpeechOptions, context.options, where=f"options of {context.cell}")
    trained = None if build is None else _trained(context, build)
    measured = _Measured(context, options)
    chosen = measured.choose()
    by_protocol = {name: measured.protocol(name, chosen) for name in options.protocols}
    return {
        "speakers": measured.speakers,
        "misread": measured.misread,
        "heard": sorted(measured.data.heard_speakers),
        "judges": measured.judges.report_recognisers(real_speech(measured.trials_of(options.protocols[0]))),
        "voices": None if measured.calibration is None else measured.calibration.as_json(),
        "trials": measured.tried,
        "chosen": chosen,
        **by_protocol,
        "one_by_one": measured.one_by_one(chosen),
        "parameters": measured.speaker.num_parameters,
        "trained": trained,
    }


def _trained(context: MeasureContext, build: Build) -> dict[str, Any]:
    recipe = context.recipe
    flops = remembered(context.scratch_dir, "training_flops", lambda: {"flops": training_flops(recipe, build)})
    return {"steps": recipe.trainer.num_steps, **flops}


class _Measured:
    """A run's model, its judges and its trials."""

    def __init__(self, context: MeasureContext, options: TextToSpeechOptions) -> None:
        assert context.run_dir is not None
        self._context, self._options = context, options
        self.data = SpeechData.of(context.recipe, options.data, options.words)
        self.speakers = options.speakers or self._unheard_speakers()
        self._recordings = [self._for_trials(name) for name in self.speakers]
        self.judges = SpeechJudges(context, self.data, options.judges, measured=tuple(self.speakers))
        self.misread = self._leave_out_misread_voices()
        model = context.load(context.run_dir / MODEL_FOLDERS[options.weights])
        self.speaker = TrialSpeaker(model, name=str(context.run_dir), base=options.speaking)
        self._voices = self._calibrated_judge()
        self._trials: dict[str, TrialSet] = {}
        self.tried: list[dict[str, Any]] = []

    @property
    def calibration(self) -> SpeakerCalibration | None:
        """Similarities between real recordings; None if voices are not compared."""
        return None if self._voices is None else self._voices[1]

    def _unheard_speakers(self) -> list[str]:
        unheard = sorted(set(self.data.test().speakers) - self.data.heard_speakers)
        if not unheard:
            raise ValueError(
                "the run has heard everybody who speaks in the test recordings; leave a speaker out of training "
                "(exclude_speakers), of the tokenizer's too, and name them: speakers: [...]"
            )
        return unheard

    def _for_trials(self, speaker: str) -> AudioDataset:
        """Recordings of a speaker from which no judge has learned."""
        recordings, is_train_file = self.data.of_speaker(speaker)
        judges = self._options.judges
        if not (is_train_file and judges.know_speakers):
            return recordings
        return subset(recordings, ~is_for_judges(recordings, judges.ratio))

    def _leave_out_misread_voices(self) -> dict[str, float]:
        """Speakers that no judge could judge, by the word error rate of their real clips."""
        limit = self._options.max_real_word_error_rate
        if limit is None:
            return {}
        judge = self.judges.recognisers["ctc"]
        rates: dict[str, float] = {}
        for name, clips in zip(self.speakers, self._recordings, strict=True):
            real = as_recordings(clips)
            heard = judge.transcribe(real.waveforms, real.sample_rate)
            rates[name] = word_errors(real.texts, heard, spell_digits=self.judges.spell_digits).rate
        if min(rates.values()) > limit:
            raise ValueError(
                f"the CTC recogniser misreads every voice's real clips: {min(rates.values()):.0%} of the words of the "
                "clearest are wrong. Train it longer (judges.ctc.num_steps) or on more recordings (judges.ratio)"
            )
        kept = [pair for pair in zip(self.speakers, self._recordings, strict=True) if rates[pair[0]] <= limit]
        self.speakers, self._recordings = [name for name, _ in kept], [clips for _, clips in kept]
        return {name: rate for name, rate in rates.items() if rate > limit}

    def _calibrated_judge(self) -> tuple[SpeakerJudge, SpeakerCalibration] | None:
        """On recordings of those that the run has heard and of those that it has not."""
        encoder, options = self.judges.speaker_encoder, self._options
        if encoder is None:
            return None
        judge = SpeakerJudge(
            encoder,
            max_frequency=options.max_frequency or self.data.sample_rate / 2,
            min_seconds=options.voice_seconds,
            min_trials=options.min_voice_trials,
        )
        real = joined([as_recordings(one) for one in (self.data.training(), *self._recordings)])
        return judge, judge.calibrate(real, seed=options.seed)

    # -- settings ------------------------------------------------------------------------------------------------------

    def choose(self) -> dict[str, Any]:
        """The setting with the fewest word errors on validation strings, by the recogniser that judges nothing.

        Raises:
            ValueError: If not one setting could be drawn.
        """
        options = self._options
        if len(options.trials) == 1:
            return dict(options.trials[0])
        for number, changes in enumerate(options.trials):
            key = f"trial{number}"
            self.tried.append(remembered(self._context.scratch_dir, key, lambda k=key, c=changes: self._try(k, c)))
        drawn = [trial for trial in self.tried if trial["word_error_rate"] is not None]
        if not drawn:
            raise ValueError(f"not one setting of {self._context.cell} could be drawn: {self.tried[0]['failure']}")
        return dict(min(drawn, key=lambda trial: trial["word_error_rate"])["changes"])

    def _try(self, key: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        options = self._options
        trials = make_trials(
            "reference",
            [self.data.validation()],
            self.data.words,
            options.shape,
            num_trials=options.num_validation_trials,
            origin=options.origin,
            seed=options.seed + _VALIDATION_SEED,
        )
        try:
            said = self._say(f"{key}_said", trials, {**changes, **options.tried_with})
        except ValueError as error:  # latents that are not finite: a setting that does not work, not a broken cell
            return {"changes": dict(changes), "word_error_rate": None, "failure": str(error)}
        heard = self.judges.selector.transcribe(said.waveforms, trials.sample_rate)
        texts = [trial.text for trial in trials.trials]
        return {
            "changes": dict(changes),
            "word_error_rate": word_errors(texts, heard, spell_digits=self.judges.spell_digits).rate,
            "ended": sum(said.ended) / len(said.ended),
            "num_trials": len(trials),
        }

    # -- protocols -----------------------------------------------------------------------------------------------------

    def trials_of(self, protocol: str) -> TrialSet:
        """Of the measured speakers."""
        if protocol not in self._trials:
            self._trials[protocol] = make_trials(
                protocol,  # pyright: ignore[reportArgumentType] - the options know these two alone
                self._recordings,
                self.data.words,
                self._options.shape,
                num_trials=self._options.num_trials,
                origin=self._options.origin,
                seed=self._options.seed,
            )
        return self._trials[protocol]

    def protocol(self, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """All rows of a protocol."""
        return remembered(self._context.scratch_dir, f"protocol_{name}", lambda: self._protocol(name, chosen))

    def _protocol(self, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        trials, own_rows = self.trials_of(name), self._options.rows
        settings = {row: {**chosen, **changes} for row, changes in own_rows.items()}
        said = {row: self._say(f"{name}_{row}", trials, changes) for row, changes in settings.items()}
        codec, device = codec_for_models(self.speaker.tokenizer), device_of(self.speaker.tokenizer)
        copies = [
            Spoken(waveform=reconstruct(codec, trial.target, trials.sample_rate, device=device))
            for trial in trials.trials
        ]
        recognisers = self.judges.recognisers
        report = evaluate_tts(
            trials,
            {RECONSTRUCTION: copies, **{row: one.as_spoken() for row, one in said.items()}},
            TtsJudges(recognisers=list(recognisers.values()), spell_digits=self.judges.spell_digits),
        )
        labels = {recogniser.label: short for short, recogniser in recognisers.items()}
        rows = {REAL if row == GROUND_TRUTH else row: _row(one, labels) for row, one in report.systems.items()}
        heard = {REAL: [trial.target for trial in trials.trials], RECONSTRUCTION: [one.waveform for one in copies]}
        heard |= {row: one.waveforms for row, one in said.items()}
        for row, clips in heard.items():
            rows[row]["similarity"] = self._similarity(trials, clips, may_fail=row in said)
        for row, one in said.items():
            rows[row]["settings"] = self.speaker.settings(settings[row])
            rows[row]["costs"] = self.speaker.costs(trials.trials, one, settings[row])
        self._show(name, trials, said)
        return {
            "num_trials": report.num_trials,
            "num_speakers": report.num_speakers,
            "origin": report.origin,
            "seed": self._options.seed,
            "rows": rows,
        }

    def one_by_one(self, chosen: Mapping[str, Any]) -> dict[str, Any] | None:
        """Wall time of single voices, with the first row's settings."""
        options = self._options
        if options.num_timed == 0:
            return None

        def measure() -> dict[str, Any]:
            trials = self.trials_of(options.protocols[0])
            changes = {**chosen, **next(iter(options.rows.values()))}
            said = Said.joined([self.speaker.say([trial], changes) for trial in trials.trials[: options.num_timed]])
            costs = self.speaker.costs(trials.trials[: options.num_timed], said, changes)
            return {"num_trials": len(said.waveforms), "seconds_per_second": costs["seconds_per_second"]}

        return remembered(self._context.scratch_dir, "one_by_one", measure)

    def _say(self, key: str, trials: TrialSet, changes: Mapping[str, Any]) -> Said:
        """All trials, by batches that are remembered."""
        parts = []
        for start in range(0, len(trials), self._options.batch_size):
            batch = trials.trials[start : start + self._options.batch_size]
            stored = remembered(
                self._context.scratch_dir,
                f"{key}_{start}",
                lambda batch=batch: self.speaker.say(batch, changes).as_tensors(),
            )
            parts.append(Said.from_tensors(stored))
        return Said.joined(parts)

    def _similarity(self, trials: TrialSet, clips: Clips, *, may_fail: bool) -> dict[str, Any] | None:
        """Of clips to their prompts; None if voices are not compared, no estimate where hardly anything was said."""
        if self._voices is None:
            return None
        judge, calibration = self._voices
        prompts = [trial.prompt for trial in trials.trials]
        speakers = [trial.speaker for trial in trials.trials]
        try:
            scores = judge.compare(clips, prompts, speakers, trials.sample_rate, calibration=calibration)
        except ValueError as error:  # a model that ends too soon: a result about it, not a broken measurement
            if not may_fail:
                raise
            return {"estimate": None, "failure": str(error)}
        return {
            **scores.similarity.as_json(),
            "num_voiceless": scores.num_voiceless,
            "is_above_midpoint": scores.is_above_midpoint,
        }

    def _show(self, name: str, trials: TrialSet, said: Mapping[str, Said]) -> None:
        """Spectrograms of the first trials: real ones above, a line per row below."""
        lines = [[trial.target for trial in trials.trials[:_NUM_SHOWN]]]
        lines += [one.waveforms[:_NUM_SHOWN] for one in said.values()]
        padded = torch.nn.utils.rnn.pad_sequence([clip for line in lines for clip in line], batch_first=True)
        originals, *copies = padded.split(len(lines[0]))
        save_picture(
            self._context.picture_path(name), spectrogram_grid(originals, copies, sample_rate=trials.sample_rate)
        )


def _row(scores: TtsScores, names: Mapping[str, str]) -> dict[str, Any]:
    """Scores under names that tables reach by dotted paths.

    Args:
        scores: Of a system.
        names: Label of a recogniser to its short name.
    """
    row: dict[str, Any] = {names[label]: _errors(one) for label, one in scores.recognition.items()}
    for name in ("ended", "ended_in_time", "length_ratio"):
        row[name] = getattr(scores, name).as_json()
    return row


def _errors(heard: RecognitionScores) -> dict[str, Any]:
    return {
        **heard.errors.as_json(),
        "accuracy": heard.errors.accuracy,
        "relative_accuracy": heard.relative_accuracy,
        "judge_is_fit": heard.is_fit,
        "passes": heard.passes,
    }
