"""What training a speech tokenizer of any kind has in common: likeness of the sounds, and a pull on the bottleneck.

    waveforms ─the tokenizer's training pass▶ reconstructions, regularizer
    tokenizer:      w_m mel(x̂, x) [+ w_s STFT(x̂, x)] [+ w_w |x̂ - x|] [+ w_a adversarial(x̂) + w_f features(x̂, x)]
                    + beta · regularizer
    discriminator:  least squares or hinge (real x, fake x̂), on x̂ cut off from the tokenizer

The weights are units, as in DAC, or, with a balancer, shares of the gradient, as in Encodec. A tokenizer brings its
training pass, its ways of giving clips back, and its report; `speech_tokenizer.py` and `speech_codec.py`.

Padding behind a short clip is silence, and must come back as such.

Shapes: B batch, S samples.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from latentlm.data.audio import AudioDataConfig, AudioMixtureConfig, WordStringConfig
from latentlm.data.audio.writing import pcm_bytes, wav_header
from latentlm.nn.keyed_noise import combine_keys
from latentlm.nn.pitch import PitchTracker
from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoder, SpeechAutoencoderConfig
from latentlm.tokenizers.speech.harmonic import HarmonicSynthesis, SpokenFrames
from latentlm.training.losses.balancer import BalancerConfig, LossBalancer
from latentlm.training.losses.envelope import EnvelopeDistance
from latentlm.training.losses.pitch import pitch_distance
from latentlm.training.losses.spectral import (
    MelLossConfig,
    MultiScaleMelDistance,
    MultiScaleSTFTDistance,
    STFTLossConfig,
    si_sdr,
    waveform_distance,
)
from latentlm.training.losses.waveform_adversarial import (
    Judgement,
    WaveformAdversarialConfig,
    WaveformDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from latentlm.training.objective import Objective
from latentlm.training.objectives.reconstruction import Report, publish_with_report
from latentlm.training.optim import OptimConfig, OptimizerGroups, parameter_groups
from latentlm.training.random_state import seeded_weights
from latentlm.training.spectrograms import spectrogram_grid
from latentlm.training.speech_clips import MEASURE_BATCH_SIZE, ClipSources, open_clips
from latentlm.training.trainer import TrainerConfig

NUM_EVALUATED_CLIPS = 128
"""Held-out clips on which a run in progress is measured."""

_HELD_OUT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class SpeechLossConfig:
    """Which losses, and their weights."""

    beta: float = 1.0
    """Of the regularizer: Eq. 6's mean mu², the VAE's KL per element, or the commitment to the codebooks. It is seen
    against the weights below; with a balancer, against its `total_norm`."""
    mel: MelLossConfig | None = field(default_factory=MelLossConfig)
    """Multi-scale log-mel distance."""
    stft: STFTLossConfig | None = None
    """Multi-scale STFT distance."""
    waveform_weight: float = 0.0
    """Of the mean absolute difference of samples, which alone fixes the phase where nobody judges."""
    pitch_weight: float = 5.0
    """Of the distance between the pitch of a decoder that speaks by one and the recording's, octaves."""
    envelope_weight: float = 0.0
    """Of the distance between the spectra that the frames of such a decoder are to have and the recording's, nats."""
    adversarial: WaveformAdversarialConfig | None = None
    """Discriminators; they need `discriminator_optim`."""
    balancer: BalancerConfig | None = None
    """Takes the weights for shares of the gradient; null takes them for units."""

    def __post_init__(self) -> None:
        if min(self.beta, self.waveform_weight, self.pitch_weight, self.envelope_weight) < 0:
            raise ValueError("beta and waveform, pitch and envelope_weight are weights, and cannot be negative")
        if self.mel is None and self.stft is None and self.waveform_weight == 0:
            raise ValueError("nothing compares the sounds: give losses.mel, losses.stft or a losses.waveform_weight")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss of the reconstructions that takes part, by its name in the log."""
        weights = {}
        if self.mel is not None:
            weights["mel"] = self.mel.weight
        if self.stft is not None:
            weights["stft"] = self.stft.weight
        if self.waveform_weight > 0:
            weights["waveform"] = self.waveform_weight
        if self.adversarial is not None:
            weights["adversarial"] = self.adversarial.weight
            weights["feature_matching"] = self.adversarial.feature_weight
        return weights


@dataclass(frozen=True, kw_only=True)
class SpeechReconstructionRecipe:
    """A tokenizer trained to give sounds back; the recipe of each tokenizer narrows `tokenizer`."""

    kind: str
    """Which tokenizer."""
    data: AudioDataConfig | None = None
    """The recordings; texts and speakers are not used."""
    mixture: AudioMixtureConfig | None = None
    """Several groups of recordings by weight, instead of `data`."""
    words: WordStringConfig | None = None
    """Join the recordings of `data`, single words, into utterances and cut the crops from those: words that are met
    alone only teach what silence sounds like. Of a mixture, see its own `words`."""
    tokenizer: SpeechAutoencoderConfig
    """Sample rate, design, sizes, bottleneck."""
    losses: SpeechLossConfig = field(default_factory=SpeechLossConfig)
    """What is minimised."""
    optim: OptimConfig
    """AdamW of encoder and decoder."""
    discriminator_optim: OptimConfig | None = None
    """AdamW of the discriminators; given exactly if there are any."""
    trainer: TrainerConfig
    """Steps, batch, precision, checkpoints."""

    def __post_init__(self) -> None:
        for group in self.groups.groups.values():
            if group.sample_rate != self.tokenizer.sample_rate:
                raise ValueError(
                    f"the recordings are read at {group.sample_rate} Hz but tokenizer.sample_rate is "
                    f"{self.tokenizer.sample_rate}; set both alike"
                )
            if group.crop_seconds is None:
                raise ValueError("clips of one batch must have one length: give crop_seconds, for example 1.0")
        if self.words is not None and self.data is None:
            raise ValueError(
                "words are joined from the recordings of data; a mixture has its own: mixture.words, by group"
            )
        if (self.losses.adversarial is None) != (self.discriminator_optim is None):
            raise ValueError("losses.adversarial and discriminator_optim belong together: give both or neither")

    @property
    def groups(self) -> AudioMixtureConfig:
        """The recordings as a mixture, of one group if they are `data`.

        Raises:
            ValueError: If there are neither `data` nor `mixture`, or both.
        """
        if self.data is not None and self.mixture is None:
            words = {} if self.words is None else {"data": self.words}
            return AudioMixtureConfig(groups={"data": self.data}, words=words)
        if self.data is None and self.mixture is not None:
            return self.mixture
        raise ValueError("give the recordings as data (one set) or as mixture (several groups), one of the two")


class SpeechTrainingPass(NamedTuple):
    """What a tokenizer makes of a batch."""

    reconstructions: Float[Tensor, "B padded"]
    """Not clipped; as long as the waveforms or longer."""
    regularizer: Float[Tensor, "B"]
    """What beta multiplies."""
    statistics: dict[str, Float[Tensor, ""]]
    """Further numbers for the log, by name; means over the batch."""
    frames: SpokenFrames | None = None
    """What the decoder's frames were to be; None of one that does not speak by a pitch."""


class SpeechReconstructionObjective(Objective, ABC):
    """The losses above, for one or two optimizers.

    Args:
        tokenizer: What is trained.
        losses: Which, and their weights.
        optim: For the tokenizer.
        clips: For samples, evaluations, statistics and the report.
        discriminator_optim: For the discriminators, if `losses` has any.
    """

    tokenizer: SpeechAutoencoder

    def __init__(
        self,
        tokenizer: SpeechAutoencoder,
        *,
        losses: SpeechLossConfig,
        optim: OptimConfig,
        clips: ClipSources,
        discriminator_optim: OptimConfig | None = None,
    ) -> None:
        super().__init__()
        self.kind = tokenizer.kind
        self.tokenizer = tokenizer
        self.loss_config = losses
        self.optim = optim
        self.clips = clips
        self.discriminator_optim = discriminator_optim
        sample_rate = tokenizer.config.sample_rate
        # Measured in every run, whatever is minimised.
        self.mel_distance = MultiScaleMelDistance(losses.mel or MelLossConfig(), sample_rate=sample_rate)
        self.stft_distance = MultiScaleSTFTDistance(losses.stft) if losses.stft is not None else None
        self.envelope_distance = _envelope_distance(tokenizer) if losses.envelope_weight > 0 else None
        self.discriminator = WaveformDiscriminator(losses.adversarial) if losses.adversarial is not None else None
        self.balancer = LossBalancer(losses.balancer, losses.weights) if losses.balancer is not None else None

    @abstractmethod
    def training_pass(self, batch: Mapping[str, Any]) -> SpeechTrainingPass:
        """Encode and decode a batch from `prepare` as in training."""

    @abstractmethod
    def copies(
        self, waveforms: Float[Tensor, "B S"], keys: Int[Tensor, "B"], *, seed: int
    ) -> dict[str, Float[Tensor, "B S"]]:
        """The ways in which the tokenizer gives clips back, by name; noise depends on (seed, key) alone."""

    @abstractmethod
    def report(self) -> Report:
        """Measure the tokenizer on `clips.held_out`; called without gradients."""

    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        """AdamW over encoder and decoder; another over the discriminators."""
        owned = {"tokenizer": OptimizerGroups(self.optim, parameter_groups([self.tokenizer], self.optim))}
        if self.discriminator is not None:
            assert self.discriminator_optim is not None
            groups = parameter_groups([self.discriminator], self.discriminator_optim)
            owned["discriminator"] = OptimizerGroups(self.discriminator_optim, groups)
        return owned

    def ema_modules(self) -> dict[str, nn.Module]:
        """Encoder and decoder."""
        return {"tokenizer": self.tokenizer}

    def enable_activation_checkpointing(self) -> None:
        """Recompute the stages of encoder and decoder in the backward pass."""
        self.tokenizer.encoder.activation_checkpointing = True
        self.tokenizer.decoder.activation_checkpointing = True

    def prepare(self, raw_batch: Mapping[str, Any], *, step: int, seed: int) -> dict[str, Any]:
        """`audio` [B, S] and `key` [B] on the device, and `noise_seed` for the bottleneck.

        Args:
            raw_batch: From the loader.
            step: From 0.
            seed: The run's.
        """
        audio, key = raw_batch["audio"].to(self.device), raw_batch["key"].to(self.device)
        return {"audio": audio, "key": key, "noise_seed": int(combine_keys(seed, step))}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Clips; every loss is a mean over them."""
        return {"clips": float(len(batch["audio"]))}

    def losses(
        self, batch: Mapping[str, Any], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        """All losses from one reconstruction.

        `tokenizer`: total; every loss before its weight (mel, stft, waveform, adversarial, feature_matching, as far as
        they take part); the octaves that the decoder's pitch is off, and the nats of its spectra, if it speaks by a
        pitch; regularizer (before beta); the
        statistics of the training pass; with a balancer the average gradient norm of each loss. With a balancer the
        total's gradient is the balanced one and no longer that of its value. `discriminator`: total, and the mean
        verdicts on real and fake clips; from `start_step` on.
        """
        waveforms, num_clips = batch["audio"], totals["clips"]
        # Logged values are summed over micro-batches, so a mean over this one brings in its share alone.
        share = len(waveforms) / num_clips
        made = self.training_pass(batch)
        reconstructions = made.reconstructions[:, : waveforms.shape[1]].float()

        likeness = self._likeness(reconstructions, waveforms)
        results: dict[str, dict[str, Tensor]] = {"tokenizer": {}}
        adversarial = self.loss_config.adversarial
        if self.discriminator is not None and adversarial is not None and step >= adversarial.start_step:
            real, judged = self.discriminator(waveforms), self.discriminator.judge(reconstructions)
            likeness["adversarial"] = generator_loss(judged, adversarial.loss)
            likeness["feature_matching"] = feature_matching_loss(real, judged)
            fake = self.discriminator(reconstructions.detach())
            results["discriminator"] = self._discriminator_losses(real, fake, adversarial, num_clips)

        named = results["tokenizer"]
        named |= {name: values.sum() / num_clips for name, values in likeness.items()}
        regularizer = made.regularizer.sum() / num_clips
        if self.balancer is None:
            pull = torch.stack([self.loss_config.weights[name] * named[name] for name in likeness]).sum()
        else:
            pull = self.balancer(likeness, reconstructions, num_clips=num_clips, step=step)
            norms = self.balancer.average_norms()
            named |= {f"norm_{name}": norms[name] * share for name in likeness}
        if made.frames is not None:
            # Beside the balancer: they hang on what the decoder means to say and not on the sound.
            named["pitch"] = self._pitch_distance(made.frames.pitch, waveforms).sum() / num_clips
            pull = pull + self.loss_config.pitch_weight * named["pitch"]
            if self.envelope_distance is not None:
                named["envelope"] = self.envelope_distance(made.frames.power, waveforms).sum() / num_clips
                pull = pull + self.loss_config.envelope_weight * named["envelope"]
        named["regularizer"] = regularizer
        named |= {name: value * share for name, value in made.statistics.items()}
        named["total"] = pull + self.loss_config.beta * regularizer
        return results

    def _pitch_distance(self, pitch: Float[Tensor, "B T"], waveforms: Float[Tensor, "B S"]) -> Float[Tensor, "B"]:
        spectrum = self.tokenizer.config.spectrum
        assert spectrum is not None
        assert spectrum.pitch_range is not None
        tracker = PitchTracker(self.tokenizer.config.sample_rate, spectrum.pitch_range)
        track = tracker.of_clips(waveforms, hop_length=spectrum.hop_length)
        # The last frames may lie behind the end of a clip that whole latents do not fill.
        return pitch_distance(pitch[:, : track.pitch.shape[1]], track)

    def _likeness(self, reconstructions: Tensor, waveforms: Tensor) -> dict[str, Float[Tensor, "B"]]:
        likeness = {}
        if self.loss_config.mel is not None:
            likeness["mel"] = self.mel_distance(reconstructions, waveforms)
        if self.stft_distance is not None:
            likeness["stft"] = self.stft_distance(reconstructions, waveforms)
        if self.loss_config.waveform_weight > 0:
            likeness["waveform"] = waveform_distance(reconstructions, waveforms)
        return likeness

    def _discriminator_losses(
        self,
        real: Sequence[Judgement],
        fake: Sequence[Judgement],
        adversarial: WaveformAdversarialConfig,
        num_clips: Tensor | float,
    ) -> dict[str, Tensor]:
        return {
            "total": discriminator_loss(real, fake, adversarial.loss).sum() / num_clips,
            "verdict_real": _mean_verdicts(real).sum() / num_clips,
            "verdict_fake": _mean_verdicts(fake).sum() / num_clips,
        }

    def evaluations(self) -> Sequence[Callable[[Objective, int], Mapping[str, float | int]]]:
        """Mel distance (by the scales of the loss) and SI-SDR of held-out clips, for every way of giving them back."""
        return (self._held_out_likeness,)

    @torch.no_grad()
    def _held_out_likeness(self, objective: Objective, step: int) -> dict[str, float]:
        sums: dict[str, float] = {}
        num_clips = 0
        num_batches = -(-NUM_EVALUATED_CLIPS // MEASURE_BATCH_SIZE)
        for waveforms, keys in itertools.islice(self.clips.held_out(), num_batches):
            waveforms = waveforms.to(self.device)
            for name, copies in self.copies(waveforms, keys.to(self.device), seed=_HELD_OUT_SEED).items():
                measured = {"mel_distance": self.mel_distance(copies, waveforms), "si_sdr": si_sdr(copies, waveforms)}
                for measure, values in measured.items():
                    label = f"{measure}_{name}"
                    sums[label] = sums.get(label, 0.0) + float(values.sum())
            num_clips += len(waveforms)
        return {label: total / num_clips for label, total in sums.items()}

    @torch.no_grad()
    def sample_grid(self, *, seed: int) -> UInt8[Tensor, "3 height width"]:
        """Log-mel spectrograms, low frequencies below: the originals over each way of giving them back."""
        originals, copies = self._preview(seed)
        return spectrogram_grid(originals, list(copies.values()), sample_rate=self.tokenizer.config.sample_rate)

    @torch.no_grad()
    def sample_files(self, *, seed: int) -> dict[str, bytes]:
        """The sounds of `sample_grid` as WAV files, by name."""
        originals, copies = self._preview(seed)
        sample_rate = self.tokenizer.config.sample_rate
        return {
            f"{number}_{name}.wav": wav_header(sample_rate, len(sound)) + pcm_bytes(sound)
            for name, sounds in {"original": originals, **copies}.items()
            for number, sound in enumerate(sounds)
        }

    def _preview(self, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        originals = self.clips.preview.to(self.device)
        keys = torch.arange(len(originals), device=self.device)
        return originals, self.copies(originals, keys, seed=seed)

    @torch.no_grad()
    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer and its report (JSON and Markdown)."""
        publish_with_report(folder, self.tokenizer, self.report())


RecipeT = TypeVar("RecipeT", bound=SpeechReconstructionRecipe)
ObjectiveT = TypeVar("ObjectiveT", bound=SpeechReconstructionObjective)


def build_speech_reconstruction(
    recipe: RecipeT,
    tokenizer_class: Callable[[Any], SpeechAutoencoder],
    objective_class: Callable[..., ObjectiveT],
) -> tuple[ObjectiveT, Callable[[int], Iterator[Mapping[str, Any]]], RecipeT]:
    """Open the data and build what the recipe trains.

    Args:
        recipe: The recipe.
        tokenizer_class: What `recipe.tokenizer` configures.
        objective_class: A `SpeechReconstructionObjective`.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe.

    Raises:
        ValueError: If the data cannot be used, or the losses do not fit the sample rate.
        ImportError: If an audio library is missing; the message names the extra.
    """
    clips, make_batches = open_clips(recipe.groups, recipe.trainer)
    with seeded_weights(recipe.trainer.seed):
        objective = objective_class(
            tokenizer_class(recipe.tokenizer),
            losses=recipe.losses,
            optim=recipe.optim,
            clips=clips,
            discriminator_optim=recipe.discriminator_optim,
        )
    return objective, make_batches, recipe


def _envelope_distance(tokenizer: SpeechAutoencoder) -> EnvelopeDistance:
    end = tokenizer.decoder.last
    if not isinstance(end, HarmonicSynthesis):
        raise ValueError(
            "losses.envelope_weight compares frames of a decoder that speaks by a pitch; give "
            "tokenizer.spectrum.pitch_range, such as [60, 400], or leave the weight out"
        )
    config = tokenizer.config
    return EnvelopeDistance(
        end.analysis_window.clone(), sample_rate=config.sample_rate, hop_length=end.config.hop_length
    )


def _mean_verdicts(judgements: Sequence[Judgement]) -> Float[Tensor, "B"]:
    """Mean verdict on each clip, over all that the sub-discriminators see and then over them."""
    return torch.stack([judgement.verdicts.float().flatten(1).mean(dim=1) for judgement in judgements]).mean(dim=0)
