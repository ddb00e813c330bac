"""How tokenizers of speech are measured (paper Table 5, and the left half of Table 6): rates, likeness, words.

    test recordings ─joined where they are single words▶ utterances, of speakers met in training and of others
      ─tokenizer▶ copies ─▶ mel distance, SI-SDR, PESQ, STOI, DNSMOS, the voice; does each word still say what it said?

Sigma-VAEs are measured by the mean of their latents and by a sample, which is what models see; codecs with as many
codes as the options say. A codec that others trained is measured in a cell without a run, from its weights.

Shapes: S samples.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.config import from_mapping
from latentlm.data.audio import AudioDataset, WordStringConfig, WordStrings
from latentlm.data.records import DataError
from latentlm.evaluation.cost import parameters_by_part
from latentlm.evaluation.intervals import bootstrap_ratio
from latentlm.evaluation.speech.codecs import Codec, open_codec
from latentlm.evaluation.speech.dnsmos import Dnsmos
from latentlm.evaluation.speech.interfaces import PairScorer
from latentlm.evaluation.speech.reconstruction import pair_scorers, score_reconstructions
from latentlm.evaluation.speech.speakers import VoiceLikeness
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.speech_codecs import codecs_of, device_of, reconstruct
from latentlm.experiments.speech_data import SpeechData, as_recordings, readable, subset
from latentlm.experiments.speech_judges import SpeechJudges, SpeechJudgesConfig
from latentlm.tokenizers.report import TokenizerReport, report_tokenizer
from latentlm.tokenizers.residual_code_report import ResidualCodeReport, report_residual_codes
from latentlm.tokenizers.speech import SpeechCodec

SEEN, UNSEEN, ALL = "seen", "unseen", "all"
"""Groups of speakers: of the training recordings; others; and everybody together."""

MEASURES = {
    "mel distance ↓": "mel_distance",
    "SI-SDR, dB ↑": "si_sdr",
    "PESQ-WB ↑": "pesq_wb",
    "PESQ-NB ↑": "pesq_nb",
    "STOI ↑": "stoi",
    "ESTOI ↑": "estoi",
    "DNSMOS, not UTMOS ↑": "dnsmos",
    "DNSMOS P.808, not UTMOS ↑": "dnsmos_p808",
    "voice ↑": "voice",
}
"""Titles of measures, and their names in results, which tables reach by dotted paths."""


@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerOptions:
    """What is measured of a tokenizer."""

    num_utterances: int = 100
    """Of each group of speakers; where words are joined, drawn, and else the first ones."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the recordings' config, written over the recipe's; for a cell without a run all that is known."""
    words: WordStringConfig | None = None
    """How single words are joined, instead of the recipe's way."""
    by_speaker: bool = True
    """Score speakers that were heard in training apart from others; if not, or where the data do not say who speaks,
    all test recordings are one group."""
    num_quantizers: int | None = None
    """Codes per frame of a codec; None is all."""
    max_frequency: float | None = None
    """The corpus's bandwidth, Hz; nothing above it counts. None is half the sample rate."""
    folder: str | None = None
    """Of a codec that others trained, for a cell without a run: Encodec, DAC or Mimi as transformers writes them, or
    the file of a WavTokenizer."""
    dnsmos: bool = True
    """Score DNSMOS (not UTMOS) too."""
    judges: SpeechJudgesConfig = field(default_factory=SpeechJudgesConfig)
    seed: int = 0
    """Of the utterances and of the latents' noise."""

    def __post_init__(self) -> None:
        if self.num_utterances < 2:
            raise ValueError(f"num_utterances is {self.num_utterances}; a standard error needs two at least")


@dataclass(frozen=True, eq=False)
class Utterances:
    """Utterances of a group of speakers.

    Attributes:
        clips: In [-1, 1].
        words: Of each, where its words begin and end (samples), and what they are; none where nothing was joined.
        speakers: Of each; empty where the data do not tell.
    """

    clips: list[Float[Tensor, "_"]]
    words: list[list[tuple[int, int, str]]]
    speakers: list[str]


def speech_tokenizer(context: MeasureContext) -> dict[str, Any]:
    """Measure a tokenizer of sound: a sigma-VAE, a codec, a vocoder, or what others trained.

    Returns:
        `rate`: `CodecRate`, with the codes that were asked for; `rows`: `mean` and `sample`, or `codes`, or `frames`,
        and of each by group of speakers (`seen`, `unseen`; or `all`) every measure by its name in `MEASURES` and
        `words`, the share that the judge reads right; `as_models_see`: the one of these rows that models are trained
        on; `real`: DNSMOS and `words` of the recordings themselves; `judge`: its accuracy on single recorded words by
        group, clean and degraded; `tokens`: the report on the latents or codes; `speakers`: by group; `parameters`;
        `seconds_per_second`: of encoding and decoding.

    Raises:
        ValueError: If there is neither a run nor a folder, or the data have no test recordings.
    """
    options = from_mapping(SpeechTokenizerOptions, context.options, where=f"options of {context.cell}")
    data = SpeechData.of(context.recipe, options.data, options.words)
    recordings = recordings_by_group(data) if options.by_speaker else {ALL: data.test()}
    groups = utterances_by_group(recordings, data.words, options.num_utterances, seed=options.seed)
    measured = _Measured(context, options, data, recordings, groups)
    codecs = measured.codecs()
    rows = {name: {group: measured.row(name, codec, group) for group in groups} for name, codec in codecs.items()}
    report = measured.report
    return {
        "rate": list(codecs.values())[-1].rate(options.num_quantizers).as_json(),
        "rows": rows,
        "as_models_see": list(rows.values())[-1],
        "real": {group: measured.real(group) for group in groups},
        "judge": measured.judge(),
        "tokens": None if report is None else report.as_json(),
        "speakers": {group: sorted(set(one.speakers)) for group, one in groups.items()},
        "parameters": None if measured.tokenizer is None else sum(parameters_by_part(measured.tokenizer).values()),
        "seconds_per_second": measured.seconds / measured.sound,
    }


def recordings_by_group(data: SpeechData) -> dict[str, AudioDataset]:
    """Test recordings by group of speakers; groups without any are left out."""
    test, heard = data.test(), data.heard_speakers
    try:
        is_seen = np.array([speaker in heard for speaker in test.speakers])
    except DataError:
        return {ALL: test}
    if not heard:
        return {ALL: test}
    return {group: subset(test, keep) for group, keep in ((SEEN, is_seen), (UNSEEN, ~is_seen)) if keep.any()}


def utterances_by_group(
    recordings: Mapping[str, AudioDataset], words: WordStringConfig | None, count: int, *, seed: int
) -> dict[str, Utterances]:
    """Test utterances by group of speakers.

    Args:
        recordings: By group.
        words: How they are joined; None where they are utterances.
        count: Of each group, at most.
        seed: Of the draws, where utterances are joined.
    """
    groups = {}
    for group, examples in recordings.items():
        if words is not None:
            examples = WordStrings(examples, replace(words, num_utterances=count, seed=seed))
        taken = [example for _, example in zip(range(count), readable(examples), strict=False)]
        groups[group] = Utterances(
            clips=[example["audio"][: example["num_samples"]].float() for example in taken],
            words=[_words_of(example) for example in taken],
            speakers=[example["speaker"] for example in taken if example["speaker"]],
        )
    return groups


def _words_of(example: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    boundaries = example["boundaries"].tolist() if "boundaries" in example else []
    return [(start, end, word) for (start, end), word in zip(boundaries, example.get("words", []), strict=True)]


class _Measured:
    """What is measured, and what it took."""

    def __init__(
        self,
        context: MeasureContext,
        options: SpeechTokenizerOptions,
        data: SpeechData,
        recordings: Mapping[str, AudioDataset],
        groups: Mapping[str, Utterances],
    ) -> None:
        self._context, self._options, self._data = context, options, data
        self._recordings, self._groups = recordings, groups
        # What others trained stays on the CPU.
        self.tokenizer: Any = None if context.run_dir is None else context.load(context.run_dir / "model")
        self._device = torch.device("cpu") if self.tokenizer is None else device_of(self.tokenizer)
        self.report = None if self.tokenizer is None else self._report(self.tokenizer)
        self._judges = SpeechJudges(context, data, options.judges)
        self._speech_scorers = [Dnsmos()] if options.dnsmos else []
        encoder = self._judges.speaker_encoder
        self._pair_scorers = [*pair_scorers(self._bandwidth()), *([] if encoder is None else [VoiceLikeness(encoder)])]
        self.seconds = self.sound = 0.0

    def codecs(self) -> dict[str, Codec]:
        options = self._options
        if self.tokenizer is not None:
            return codecs_of(self.tokenizer, bits_per_frame=_bits_per_frame(self.report), seed=options.seed)
        if options.folder is None:
            raise ValueError(f"{self._context.cell} has neither a run nor weights (folder): nothing to measure")
        return {"codes": open_codec(Path(options.folder))}

    def row(self, name: str, codec: Codec, group: str) -> dict[str, Any]:
        """Copies of a group's utterances, scored."""
        copies = remembered(self._context.scratch_dir, f"{name}_{group}", lambda: self._copy(codec, group))
        clips = self._groups[group].clips
        self.seconds += float(copies["seconds"])
        self.sound += sum(map(len, clips)) / self._data.sample_rate
        return self._score([copies[str(place)] for place in range(len(clips))], group, self._pair_scorers)

    def real(self, group: str) -> dict[str, Any]:
        """The recordings themselves, by what needs no comparison."""
        return self._score(self._groups[group].clips, group, [])

    def judge(self) -> dict[str, Any] | None:
        """The classifier's accuracy on single recorded words, by group."""
        if self._data.words is None:
            return None
        return {
            group: self._judges.report_classifier(as_recordings(words)) for group, words in self._recordings.items()
        }

    def _copy(self, codec: Codec, group: str) -> dict[str, Tensor]:
        start = time.perf_counter()
        clips = {
            str(place): reconstruct(
                codec,
                clip,
                self._data.sample_rate,
                num_quantizers=self._options.num_quantizers,
                device=self._device,
            ).contiguous()
            for place, clip in enumerate(self._groups[group].clips)
        }
        return {**clips, "seconds": torch.tensor(time.perf_counter() - start)}

    def _score(self, copies: Sequence[Float[Tensor, "_"]], group: str, scorers: Sequence[PairScorer]) -> dict[str, Any]:
        utterances = self._groups[group]
        scores = score_reconstructions(
            utterances.clips,
            copies,
            self._data.sample_rate,
            max_frequency=self._bandwidth(),
            scorers=scorers,
            speech_scorers=self._speech_scorers,
            progress=self._context.progress,
        )
        result = {MEASURES[title]: measure.as_json() for title, measure in scores.measures.items()}
        facts = {"num_clips": scores.num_clips, "seconds": scores.seconds, "max_frequency": scores.max_frequency}
        return {**facts, **result, "words": self._words(copies, utterances)}

    def _words(self, copies: Sequence[Float[Tensor, "_"]], utterances: Utterances) -> dict[str, Any] | None:
        """Words that the judge reads right, each cut out where it was put."""
        if self._data.words is None:
            return None
        cut = [copy[a:b] for copy, words in zip(copies, utterances.words, strict=True) for a, b, _ in words]
        said = [word for words in utterances.words for _, _, word in words]
        heard = self._judges.classifier.transcribe(cut, self._data.sample_rate)
        return bootstrap_ratio([ours == theirs for ours, theirs in zip(heard, said, strict=True)]).as_json()

    def _bandwidth(self) -> float:
        return min(self._data.sample_rate / 2, self._options.max_frequency or self._data.sample_rate)

    @torch.no_grad()
    def _report(self, tokenizer: Any) -> TokenizerReport | ResidualCodeReport:
        """On the measured utterances, whole."""
        beta = self._context.recipe.losses.beta
        clips = [clip[None].to(self._device) for group in self._groups.values() for clip in group.clips]
        if isinstance(tokenizer, SpeechCodec):
            # Counted as one clip, for it takes clips of one length.
            codes = torch.cat([tokenizer.encode(clip) for clip in clips], dim=1)
            return report_residual_codes(
                [codes], num_codes=tokenizer.num_codes, beta=beta, frame_rate=tokenizer.config.frame_rate
            )
        return report_tokenizer(
            (tokenizer.posterior(clip) for clip in clips),
            tokenizer.bottleneck.config,
            beta=beta,
            frame_rate=tokenizer.config.frame_rate,
        )


def _bits_per_frame(report: TokenizerReport | ResidualCodeReport | None) -> float | None:
    """Of latents with noise; codes count their own, and latents without noise have no end of them."""
    if not isinstance(report, TokenizerReport):
        return None
    bits = sum(channel.bits for channel in report.channels)
    return bits if math.isfinite(bits) else None
