"""A small recogniser as judge: characters by connectionist temporal classification (Graves et al. 2006).

    clips, joined ─degradations─▶ log-mel, 10 ms ─convolution, 20 ms▶ ─dilated convolutions▶ characters or blank

For digit strings, and for synthetic voices, which recognisers of people's speech cannot read. It is trained on given
voices and texts alone: whoever judges with it keeps the voices and texts of the test out of them. Never part of a
training loss; nothing is chosen by it.

Shapes: B clips, S samples, M mel bands, T frames (20 ms), D hidden_size, A characters and the blank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from latentlm.evaluation.speech.ctc_decoding import WordGraph, greedy_text
from latentlm.evaluation.speech.degradations import add_noise_floor, change_speed, degrade_randomly
from latentlm.evaluation.speech.interfaces import Clips, resample
from latentlm.evaluation.speech.log_mel import LogMel
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.evaluation.speech.trained_judges import judge_fingerprint, load_or_train
from latentlm.evaluation.speech.word_errors import DIGIT_WORDS, normalize_text

FORMAT_VERSION = 1
"""Part of the cached folder's name: raised whenever code here, or of the degradations, changes what is trained."""

ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"
"""Class 0 is the blank, class 1 the first of these."""
_KERNEL_SIZE = 5
_MAX_GRADIENT_NORM = 5.0


@dataclass(frozen=True, kw_only=True)
class CtcRecogniserConfig:
    """The judge's size and training; one setting for all models that are compared."""

    sample_rate: int = 8000
    """Hz. Clips of other rates are resampled; nothing above half of it is heard."""
    num_mels: int = 40
    hidden_size: int = 128
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)
    """Frames of 20 ms between the taps of each residual convolution: half a second to either side is heard. Recurrent
    layers, which hear everything, long prefer to write all at the end of a clip when they learn from few words."""
    dropout: float = 0.2
    num_steps: int = 1500
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 0.01
    max_joined: int = 1
    """Training clips are joined from one to this many recordings of one speaker: strings from single words."""
    max_gap_seconds: float = 0.3
    """Longest silence between joined recordings."""
    clean_ratio: float = 0.3
    """Share of the training clips that no degradation is put on."""
    max_speed_change: float = 0.15
    """Augmentation: recordings are played up to this much faster or slower, which moves pitch and formants too."""
    seed: int = 0


class CtcRecogniser(nn.Module):
    """Residual convolutions over log-mel frames, and a linear layer. A `Recogniser`."""

    label = "CTC WER"

    def __init__(self, config: CtcRecogniserConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.log_mel = LogMel(sample_rate=config.sample_rate, num_mels=config.num_mels)
        self.in_proj = nn.Conv1d(config.num_mels, size, _KERNEL_SIZE, padding=_KERNEL_SIZE // 2)
        self.downsample = nn.Conv1d(size, size, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in config.dilations)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(size, size, _KERNEL_SIZE, dilation=dilation, padding=_KERNEL_SIZE // 2 * dilation)
            for dilation in config.dilations
        )
        self.dropout = nn.Dropout(config.dropout)
        self.out_norm = nn.LayerNorm(size)
        self.out_proj = nn.Linear(size, 1 + len(ALPHABET))

    def forward(
        self, waveforms: Float[Tensor, "B S"], num_samples: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T A"], Int[Tensor, " B"]]:
        """Log-probabilities per frame, and how many frames each clip has.

        Args:
            waveforms: At the config's rate, padded at the end with anything.
            num_samples: Real ones of each clip.
        """
        # Frame by frame of each clip alone: what pads a clip must not change its level or its frames.
        clips = [self.log_mel(wave[None, :count])[0].mT for wave, count in zip(waveforms, num_samples, strict=True)]
        num_frames = torch.tensor([len(clip) for clip in clips])
        frames = nn.utils.rnn.pad_sequence(clips, batch_first=True)  # (B, 10 ms, M)
        # Zeros beyond the end of a clip, as a convolution has them beyond the edge.
        x = F.gelu(self.in_proj(frames.mT).mT) * _mask(num_frames)
        num_frames = (num_frames + 1) // 2
        valid = _mask(num_frames)
        x = self.downsample(x.mT).mT * valid  # (B, T, D)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = x + self.dropout(convolution((F.gelu(norm(x)) * valid).mT).mT)
        return self.out_proj(F.gelu(self.out_norm(x))).log_softmax(dim=-1), num_frames

    @torch.no_grad()
    def scores(self, clip: Float[Tensor, " S"], sample_rate: int) -> Float[Tensor, "T A"]:
        """Log-probabilities of one clip."""
        heard = resample(clip, sample_rate, self.config.sample_rate)
        if len(heard) == 0:
            return torch.zeros(0, 1 + len(ALPHABET))
        return self(heard[None], torch.tensor([len(heard)]))[0][0]

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """Greedy decoding, one clip at a time."""
        return [greedy_text(self.scores(clip, sample_rate), ALPHABET) for clip in clips]


class CtcWordReader:
    """A `Recogniser` that holds a CTC network to strings of a few words, such as digits.

    Args:
        recogniser: Trained on such strings.
        words: The only words there are.

    Raises:
        ValueError: If the recogniser cannot write a word.
    """

    label = "CTC WER, known words"

    def __init__(self, recogniser: CtcRecogniser, words: Sequence[str] = DIGIT_WORDS) -> None:
        self._recogniser = recogniser
        self._graph = WordGraph(words, ALPHABET)

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """The likeliest string of words of each clip."""
        return [self._graph.likeliest_text(self._recogniser.scores(clip, sample_rate)) for clip in clips]


def train_ctc_recogniser(
    config: CtcRecogniserConfig, recordings: Recordings, *, progress: bool = False
) -> CtcRecogniser:
    """Train the judge, the same way every time for the same config and recordings.

    Args:
        config: Size and training.
        recordings: Of the part `train` only; texts in words.
        progress: Show a progress bar.

    Returns:
        The recogniser in evaluation mode.

    Raises:
        ValueError: If there are no recordings, or a text has no letter or a character outside `ALPHABET`.
    """
    targets = [_encode(text) for text in recordings.texts]
    if not targets:
        raise ValueError("a recogniser learns from recordings, but there are none")
    clips = [resample(clip, recordings.sample_rate, config.sample_rate) for clip in recordings.waveforms]
    of_speaker: dict[str, list[int]] = {}
    for index, speaker in enumerate(recordings.speakers):
        of_speaker.setdefault(speaker, []).append(index)
    same_speaker = [of_speaker[speaker] for speaker in recordings.speakers]
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # initial weights and dropout; the caller's random state is restored after
        recogniser = CtcRecogniser(config).train()
        optimizer = torch.optim.AdamW(recogniser.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=config.num_steps)
        for _ in tqdm(range(config.num_steps), desc="CTC recogniser", unit="step", disable=not progress):
            first = torch.randint(len(clips), (config.batch_size,), generator=generator).tolist()
            drawn = [_draw_joined(same_speaker[index], index, config, generator) for index in first]
            waves = [_join([clips[index] for index in chosen], config, generator) for chosen in drawn]
            num_samples = torch.tensor([len(wave) for wave in waves])
            batch = nn.utils.rnn.pad_sequence(waves, batch_first=True)
            batch = degrade_randomly(
                add_noise_floor(batch, generator), config.sample_rate, generator, clean_ratio=config.clean_ratio
            )
            texts = [_join_targets([targets[index] for index in chosen]) for chosen in drawn]
            scores, num_frames = recogniser(batch, num_samples)
            loss = F.ctc_loss(
                scores.transpose(0, 1),
                torch.cat(texts),
                num_frames,
                torch.tensor([len(text) for text in texts]),
                zero_infinity=True,  # a text that is longer than its fast copy has frames teaches nothing
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(recogniser.parameters(), _MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
    return recogniser.eval()


def load_ctc_recogniser(
    recordings: Recordings, *, cache_dir: Path, config: CtcRecogniserConfig | None = None, progress: bool = False
) -> tuple[CtcRecogniser, str]:
    """Read the judge of these recordings from the cache, or train it and put it there (minutes).

    Args:
        recordings: See `train_ctc_recogniser`.
        cache_dir: Holds a folder per set of recordings and config.
        config: None is the default.
        progress: Show a progress bar.

    Returns:
        The recogniser, and the SHA-256 over config and recordings.

    Raises:
        ValueError: If the recordings cannot be trained on.
        StorageError: If a cached folder is damaged, or the disk refuses.
    """
    config = config or CtcRecogniserConfig()
    fingerprint = judge_fingerprint("ctc_recogniser", FORMAT_VERSION, config, recordings)
    recogniser = load_or_train(
        cache_dir,
        "ctc_recogniser",
        fingerprint,
        build=lambda: CtcRecogniser(config),
        train=lambda: train_ctc_recogniser(config, recordings, progress=progress),
    )
    return recogniser, fingerprint


def _encode(text: str) -> Int[Tensor, " L"]:
    words = normalize_text(text)
    if not words or (strange := set(words) - set(ALPHABET)):
        raise ValueError(
            f"a recogniser of letters cannot learn {text!r}: " + (f"it holds {sorted(strange)}" if words else "no word")
        )
    return torch.tensor([1 + ALPHABET.index(character) for character in words])


def _mask(num_frames: Tensor) -> Float[Tensor, "B T 1"]:
    return (torch.arange(int(num_frames.max())) < num_frames[:, None]).float()[..., None]


def _draw_joined(
    same_speaker: list[int], first: int, config: CtcRecogniserConfig, generator: torch.Generator
) -> list[int]:
    count = int(torch.randint(config.max_joined, (), generator=generator))
    others = torch.randint(len(same_speaker), (count,), generator=generator).tolist()
    return [first, *(same_speaker[place] for place in others)]


def _join(clips: list[Tensor], config: CtcRecogniserConfig, generator: torch.Generator) -> Tensor:
    """Clips with silence before, between and after them."""
    gaps = torch.rand(len(clips) + 1, generator=generator) * config.max_gap_seconds * config.sample_rate
    parts = [torch.zeros(int(gaps[0]))]
    for clip, gap in zip(clips, gaps[1:].tolist(), strict=True):
        parts += [change_speed(clip, config.max_speed_change, generator), torch.zeros(int(gap))]
    return torch.cat(parts)


def _join_targets(texts: list[Tensor]) -> Tensor:
    space = torch.tensor([1 + ALPHABET.index(" ")])
    parts = [part for text in texts for part in (space, text)]
    return torch.cat(parts[1:])
