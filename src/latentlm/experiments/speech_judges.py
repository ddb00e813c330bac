"""Who judges speech in experiments: recognisers trained once per file of recordings, pocketsphinx, speaker encoders.

Synthesized speech is judged by a CTC recogniser, by pocketsphinx and, if it is a string of digits, by a classifier of
words that are told apart by their energy: pocketsphinx reads some voices too badly to decide anything. Settings are
chosen by a smaller CTC recogniser that learned from the other recordings and judges nothing. Tokenizers are judged by
the classifier.

Judges learn from a share of the training file, of speakers too that the measured run left out: a judge who has never
heard a voice may read less of it than a judge must. No trial uses a recording from which judges learned.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from latentlm.evaluation.speech.ctc_recogniser import CtcRecogniser, CtcRecogniserConfig, load_ctc_recogniser
from latentlm.evaluation.speech.digit_classifier import (
    DigitClassifier,
    DigitClassifierConfig,
    DigitStringReader,
    load_digit_classifier,
)
from latentlm.evaluation.speech.interfaces import Recogniser, SpeakerEncoder
from latentlm.evaluation.speech.judge_report import report_judge
from latentlm.evaluation.speech.pocketsphinx_recogniser import PocketsphinxRecogniser
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.evaluation.speech.remembered import RememberingRecogniser
from latentlm.evaluation.speech.speakers import MfccStatistics, Resemblyzer
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.speech_data import SpeechData, as_recordings
from latentlm.storage import waiting_lock


@dataclass(frozen=True, kw_only=True)
class SpeechJudgesConfig:
    """What the judges are and learn from; one setting for all models that are compared."""

    ratio: float = 0.5
    """Share of the training file that judges learn from. The rest is for trials, where a speaker of that file was left
    out of a run."""
    know_speakers: bool = True
    """Whether judges hear, within their share, the speakers that are measured. A speaker of the test file is never
    heard."""
    classifier: DigitClassifierConfig = field(default_factory=DigitClassifierConfig)
    ctc: CtcRecogniserConfig = field(default_factory=lambda: CtcRecogniserConfig(num_steps=3000, max_joined=6))
    """6: strings of words. Recordings of sentences are not joined whatever it says."""
    pocketsphinx: bool = True
    """Another judge of synthesized speech, which learned elsewhere; of strings of digits by a grammar."""
    speaker_encoder: str = "resemblyzer"
    """`resemblyzer`, `mfcc` (for tests), or `none`."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"judges.ratio is {self.ratio}; it must lie in (0, 1]")
        if self.speaker_encoder not in ("resemblyzer", "mfcc", "none"):
            raise ValueError(f"judges.speaker_encoder is {self.speaker_encoder!r}: resemblyzer, mfcc or none")


class SpeechJudges:
    """The judges of one file of recordings, each trained or opened when it is first needed.

    Args:
        context: Of a cell: its cache keeps them, for other cells too.
        data: Whose training file they learn from.
        config: See there.
        measured: Speakers whose voices are judged.
    """

    def __init__(
        self, context: MeasureContext, data: SpeechData, config: SpeechJudgesConfig, *, measured: tuple[str, ...] = ()
    ) -> None:
        self._context, self._data, self._config = context, data, config
        self._measured = measured
        self._unknown = () if config.know_speakers else measured

    @cached_property
    def training(self) -> Recordings:
        """What they learn from."""
        return as_recordings(self._data.for_judges(self._config.ratio, without=self._unknown))

    @property
    def spell_digits(self) -> bool:
        """Whether texts are strings of digits."""
        return self._data.words is not None

    @cached_property
    def _classifier(self) -> tuple[DigitClassifier, str]:
        with self._lock("classifier"):
            return load_digit_classifier(
                self.training, cache_dir=self._cache, config=self._config.classifier, progress=self._context.progress
            )

    @cached_property
    def _ctc(self) -> tuple[CtcRecogniser, str]:
        return self._load_ctc(self._config.ctc, self.training)

    @property
    def classifier(self) -> DigitClassifier:
        """Of single words."""
        return self._classifier[0]

    @cached_property
    def recognisers(self) -> dict[str, Recogniser]:
        """Judges of synthesized speech, by the short names of results."""
        found: dict[str, Recogniser] = {"ctc": self._ctc[0]}
        if self.spell_digits:
            found["classifier"] = DigitStringReader(self.classifier)
        if self._config.pocketsphinx:
            judge = PocketsphinxRecogniser() if self.spell_digits else PocketsphinxRecogniser(None)
            # Half a second for a noisy string, and the real ones are read beside every model.
            found["pocketsphinx"] = RememberingRecogniser(
                judge, self._cache / "texts.sqlite", fingerprint=judge.fingerprint()
            )
        return found

    @cached_property
    def selector(self) -> Recogniser:
        """Chooses settings, and judges nothing: it has learned from other recordings, and is smaller."""
        if self._config.ratio == 1:
            raise ValueError("judges.ratio is 1: nothing is left for those who choose settings to learn from")
        recordings = as_recordings(self._data.for_selectors(self._config.ratio, without=self._measured))
        config = self._config.ctc
        smaller = replace(
            config,
            seed=config.seed + 1,
            hidden_size=max(1, 3 * config.hidden_size // 4),
            num_steps=max(1, config.num_steps // 2),
        )
        return self._load_ctc(smaller, recordings)[0]

    @cached_property
    def speaker_encoder(self) -> SpeakerEncoder | None:
        """Compares voices; None if nobody is to."""
        match self._config.speaker_encoder:
            case "resemblyzer":
                return Resemblyzer()
            case "mfcc":
                return MfccStatistics(sample_rate=self._data.sample_rate)
            case _:
                return None

    def fingerprint_of_classifier(self) -> str:
        """SHA-256 over all that the classifier depends on."""
        return self._classifier[1]

    def report_classifier(self, real: Recordings) -> dict[str, Any]:
        """Its accuracy on single words that it never heard, clean and degraded, and its fingerprint."""
        report = report_judge(self.classifier, real, train=self.training, spell_digits=self.spell_digits)
        return {**report.as_json(), "fingerprint": self.fingerprint_of_classifier()}

    def report_recognisers(self, real: Recordings) -> dict[str, dict[str, Any]]:
        """Accuracy of the recognisers on utterances that they never heard, clean and degraded, by short name.

        Args:
            real: Joined from words, or recorded, of the voices that are judged.
        """
        fingerprints = {"ctc": self._ctc[1]}
        if self.spell_digits:
            fingerprints["classifier"] = self.fingerprint_of_classifier()
        return {
            name: {
                **report_judge(recogniser, real, spell_digits=self.spell_digits).as_json(),
                "fingerprint": fingerprints.get(name),
            }
            for name, recogniser in self.recognisers.items()
        }

    def _load_ctc(self, config: CtcRecogniserConfig, recordings: Recordings) -> tuple[CtcRecogniser, str]:
        with self._lock("ctc"):
            return load_ctc_recogniser(
                recordings,
                cache_dir=self._cache,
                config=config if self.spell_digits else replace(config, max_joined=1),
                progress=self._context.progress,
            )

    @property
    def _cache(self) -> Path:
        return self._context.cache_dir / "speech_judges"

    def _lock(self, name: str) -> AbstractContextManager[None]:
        return waiting_lock(self._context.cache_dir / f"speech_judge_{name}.lock")
