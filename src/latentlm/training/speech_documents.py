"""Recordings as documents of a model: encoded once, kept as posteriors or codes, spoken and written by templates.

    recordings (or utterances joined from single words) ─augment▶ waveforms ─speech tokenizer▶ posteriors, or codes
      ─cache on disk, or memory▶ clips ─templates▶ RawDocument("three one four", StoredLatents or StoredCodes)

`"{text}{speech}"` is text-to-speech, `"{speech}{text}"` recognition, `"{speech}"` continuation of a voice without a
text (paper Section 3.3; the last two are ours).

Shapes: S samples, n latents of a clip, C latent_dim.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from latentlm.config import to_mapping
from latentlm.data.audio import AudioDataConfig, AudioExamples, WordStringConfig, WordStrings, open_audio
from latentlm.data.datasets import Part, resolve_path
from latentlm.data.documents.opening import digest_of_files
from latentlm.data.documents.stored import LatentDocuments
from latentlm.data.latent_sequences import Clip, CodeClip, LatentClip, LatentSequences, LatentSequenceWriter
from latentlm.data.loader import TooManyBadRecords
from latentlm.data.records import BadRecord
from latentlm.storage import waiting_lock
from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer

_ENCODING_VERSION = 1  # counted up when the same recordings would come out otherwise

_log = logging.getLogger(__name__)

AnySpeechTokenizer = SpeechTokenizer | SpeechCodec
"""Encodes recordings as posteriors, or as codes."""


@dataclass(frozen=True, kw_only=True)
class SpeechSourceConfig:
    """Recordings that a model reads and speaks."""

    recordings: AudioDataConfig
    """The files. Crops make no sense here: a text belongs to a whole recording."""
    words: WordStringConfig | None = None
    """Join recordings of single words into utterances; `num_utterances` of them are encoded."""
    num_held_out_utterances: int = 200
    """Joined utterances of the parts `validation` and `test`, each."""
    num_augmented_copies: int = 0
    """Further copies of each training clip, changed as `recordings.augmentation` says (its voice, above all): a corpus
    of few speakers becomes one of many. The clip itself stays as it was recorded."""
    templates: list[str] = field(default_factory=lambda: ["{text}{speech}", "{speech}"])
    """What documents are made of a recording: all of those that it has the fields for."""
    cache: str | None = None
    """Folder that keeps the latents or codes for the next run. None encodes at every start and keeps them in memory."""

    def __post_init__(self) -> None:
        if self.recordings.crop_seconds is not None:
            raise ValueError("recordings.crop_seconds cuts recordings off their texts; leave it out")
        if self.num_held_out_utterances < 1 or self.num_augmented_copies < 0:
            raise ValueError("num_held_out_utterances must be at least 1, num_augmented_copies 0 or more")
        if self.num_augmented_copies and not self.recordings.augmentation.changes_anything:
            raise ValueError("num_augmented_copies copies recordings unchanged: give recordings.augmentation")
        if not self.templates:
            raise ValueError('templates is empty: give one, such as "{text}{speech}"')

    @property
    def validation_ratio(self) -> float:
        """Share of the recordings that is held out."""
        return self.recordings.validation_ratio

    @property
    def max_bad_records(self) -> int:
        """Recordings that may be unreadable."""
        return self.recordings.max_bad_records


def open_speech_documents(
    config: SpeechSourceConfig,
    tokenizer: AnySpeechTokenizer,
    *,
    part: Part,
    progress: str | None = None,
    device: str | torch.device = "cpu",
) -> LatentDocuments:
    """Encode one part of the recordings, or find it in the cache, and make documents of it.

    Args:
        config: Which recordings.
        tokenizer: The model's.
        part: Of the recordings.
        progress: Name of a progress bar; None for none.
        device: Where to encode.

    Raises:
        DataError: If the recordings cannot be opened, too many are bad, or the cache is another one's.
        ValueError: If the tokenizer takes another sample rate.
    """
    if config.recordings.sample_rate != tokenizer.config.sample_rate:
        raise ValueError(
            f"the speech tokenizer was trained at {tokenizer.config.sample_rate} Hz but the recordings are to be read "
            f"at {config.recordings.sample_rate}; pass recordings.sample_rate: {tokenizer.config.sample_rate}"
        )
    fingerprint = _source_fingerprint(config, part)
    if config.cache is None:
        clips: list[Clip] = []
        encode_recordings(config, tokenizer, part, lambda clip, _: clips.append(clip), progress=progress, device=device)
    else:
        clips = _cached(config, config.cache, tokenizer, part, fingerprint, progress, device).clips
    return LatentDocuments(clips, modality=tokenizer.modality, templates=config.templates, fingerprint=fingerprint)


def encode_recordings(
    config: SpeechSourceConfig,
    tokenizer: AnySpeechTokenizer,
    part: Part,
    keep: Callable[[Clip, int], None],
    *,
    start: int = 0,
    progress: str | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Encode recordings one by one, in order; a bad one is named in the log and left out.

    Args:
        config: Which recordings.
        tokenizer: Encodes them.
        part: Of the recordings.
        keep: Takes each clip, and how many places of the order are done with it.
        start: Places to leave out, which an interrupted run has done.
        progress: Name of a progress bar; None for none.
        device: Where to encode.

    Raises:
        DataError: If the recordings cannot be opened, or too many are bad.
    """
    examples = open_examples(config, part=part)
    num_copies = 1 + (config.num_augmented_copies if part == "train" else 0)
    num_bad = 0
    tokenizer = tokenizer.to(device).eval()
    places = tqdm(
        range(start, len(examples) * num_copies),
        desc=progress,
        unit="clip",
        disable=progress is None,
        initial=start,
        total=len(examples) * num_copies,
    )
    for place in places:
        index, copy = divmod(place, num_copies)
        try:
            example = examples[index]
        except BadRecord as error:
            num_bad += 1
            _log.warning("left out: %s", error)
            if num_bad > config.max_bad_records:
                raise TooManyBadRecords(f"{num_bad} recordings cannot be read; the last one: {error}") from error
            continue
        keep(_encode(example, copy, index * num_copies + copy, examples, tokenizer, device), place + 1)


def open_examples(config: SpeechSourceConfig, *, part: Part) -> AudioExamples:
    """Whole recordings of one part, or utterances joined from them. Errors as in `data.audio.open_audio`."""
    recordings = open_audio(config.recordings, part=part)
    if config.words is None:
        return recordings
    words = config.words
    return WordStrings(
        recordings, words if part == "train" else replace(words, num_utterances=config.num_held_out_utterances)
    )


@torch.no_grad()
def _encode(
    example: dict[str, Any],
    copy: int,
    key: int,
    examples: AudioExamples,
    tokenizer: AnySpeechTokenizer,
    device: str | torch.device,
) -> Clip:
    audio = example["audio"][None]  # (1, S)
    if copy:
        batch = {"audio": audio, "num_samples": torch.tensor([audio.shape[1]]), "key": torch.tensor([example["key"]])}
        audio = examples.augment(batch, seed=0, epochs=torch.tensor([copy]))["audio"]
    fields = {name: example[name] for name in ("text", "speaker") if example.get(name)}
    fields |= {"num_samples": audio.shape[1], "copy": copy, "name": f"clip {example['key']}, copy {copy}"}
    if isinstance(tokenizer, SpeechCodec):
        return CodeClip(tokenizer.encode(audio.to(device))[0].int().cpu(), key, fields)
    posterior = tokenizer.posterior(audio.to(device))
    log_std = None if posterior.log_std is None else posterior.log_std[0].float().cpu()
    return LatentClip(posterior.mean[0].float().cpu(), log_std, key, fields)


def _cached(
    config: SpeechSourceConfig,
    cache: str,
    tokenizer: AnySpeechTokenizer,
    part: Part,
    fingerprint: str,
    progress: str | None,
    device: str | torch.device,
) -> LatentSequences:
    of_tokenizer = tokenizer.fingerprint()
    folder = Path(cache) / f"{part}-{fingerprint[:12]}-{of_tokenizer[:12]}"
    with waiting_lock(folder.with_name(f"{folder.name}.lock")):  # of another run that encodes the same
        if not is_complete(folder):
            writer = LatentSequenceWriter(
                folder,
                modality=tokenizer.modality,
                tokenizer_fingerprint=of_tokenizer,
                source_fingerprint=fingerprint,
            )
            encode_recordings(
                config,
                tokenizer,
                part,
                lambda clip, position: writer.append(clip, position=position),
                start=writer.position,
                progress=progress,
                device=device,
            )
            writer.close()
    return LatentSequences(folder, tokenizer_fingerprint=of_tokenizer, source_fingerprint=fingerprint)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a finished cache (of whatever clips)."""
    index = folder / "index.json"
    return index.exists() and json.loads(index.read_bytes()).get("complete") is True


def _source_fingerprint(config: SpeechSourceConfig, part: Part) -> str:
    """SHA-256, as hex, over all that decides which clips come out, templates and cache aside."""
    settings = to_mapping(replace(config, templates=["{speech}"], cache=None))
    paths = [config.recordings.path, *([config.recordings.test_path] if config.recordings.test_path else [])]
    files = digest_of_files([resolve_path(path) for path in paths])
    return hashlib.sha256(json.dumps([_ENCODING_VERSION, settings, part, files], sort_keys=True).encode()).hexdigest()
