"""A corpus of spoken text in many synthetic voices, made on this machine, as Parquet.

    texts ─hash▶ split, voices ─hash▶ split; plan: which voice says which text how fast ─speak▶ shards of Parquet

Neither a voice nor a text of one split is in another, so that a judge trained on `train` knows nothing of `test`. The
plan is a pure function of (texts, voices, seed); shards appear whole, and a run that is started again makes those that
are missing. Rows are synthesised, not recorded, and say so by their columns `engine` and `voice`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.data.audio.decoding import decode_audio, read_header, sound_library
from latentlm.data.audio.synthetic_voices import (
    ENGINES,
    SplitKind,
    SyntheticVoice,
    list_voices,
    require_engine,
    speak,
    split_of_name,
)
from latentlm.data.records import BadRecord, DataError
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform
from latentlm.storage import read_json, write_file_atomically

METADATA_NAME = "corpus.json"
SPLITS: tuple[SplitKind, ...] = ("train", "validation", "test")

_STREAM = 0x5EA6
_MAX_TEXT_BYTES = 2**30
_MAX_SECONDS = 120.0
_ROW_GROUP_ROWS = 32
"""Rows that a reader decodes together: about 10 MB."""
_MAX_FAILED_RATIO = 0.02
"""Some sentences hold nothing to say; more failures than this mean that a program does not work."""


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    engines: list[str] = field(default_factory=lambda: list(ENGINES))
    """Of espeak-ng and flite."""
    language: str = "en"
    """Of espeak-ng: all accents of it."""
    pitches: list[int] = field(default_factory=lambda: [35, 50, 65])
    """Of espeak-ng, 0 to 99: every variant speaks in each."""
    flite_ratio: float = 0.1
    """Share of utterances that flite speaks, which has four voices against hundreds. Only where both are used."""
    min_words_per_minute: int = 140
    max_words_per_minute: int = 200
    utterances_per_text: int = 1
    """How many voices say each text."""
    limit: int | None = None
    """At most so many utterances, splits included; None for all."""
    sample_rate: int = 24000
    """Hz. The engines speak at 22,050 (espeak-ng) and 16,000 (flite), so that nothing lies above 11 and 8 kHz."""
    codec: str = "flac"
    """`flac` or `wav`, both 16 bits and lossless."""
    shard_rows: int = 500
    """Utterances of a file, which is also what an interrupted run can lose."""
    seed: int = 0
    """Of who says what, and how fast."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.engines) - set(ENGINES))
        if unknown or not self.engines:
            raise ValueError(f"engines are {self.engines}, expected some of {', '.join(ENGINES)}")
        if not self.pitches or not all(0 <= pitch <= 99 for pitch in self.pitches):
            raise ValueError(f"pitches are {self.pitches}, must be in [0, 99]")
        if not 0 <= self.flite_ratio <= 1:
            raise ValueError(f"flite_ratio is {self.flite_ratio}, must be in [0, 1]")
        if not 80 <= self.min_words_per_minute <= self.max_words_per_minute <= 450:
            raise ValueError(
                f"need 80 <= min_words_per_minute={self.min_words_per_minute} <= {self.max_words_per_minute} <= 450"
            )
        if min(self.utterances_per_text, self.shard_rows, 1 if self.limit is None else self.limit) < 1:
            raise ValueError("utterances_per_text, shard_rows and limit must be at least 1")
        if self.codec not in ("flac", "wav"):
            raise ValueError(f"codec is {self.codec!r}, must be 'flac' or 'wav'")


@dataclass(frozen=True)
class PlannedUtterance:
    """Who says what, how fast."""

    id: str
    text: str
    voice: SyntheticVoice
    words_per_minute: int


def read_texts(path: Path) -> list[tuple[str, str]]:
    """Names and texts: one text a line, named by its number, or tab-separated columns `id` and `text`.

    A table begins with a line of column names; of `text_normalized` and `text` the former is taken, in which numbers
    are written out.

    Raises:
        DataError: If it is no UTF-8 text, too large, holds nothing, or a line has not the columns of the first.
    """
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise DataError(f"{path}: larger than {_MAX_TEXT_BYTES // 2**20} MiB")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text file in UTF-8") from error
    names = lines[0].rstrip("\r").split("\t")
    if "id" in names and {"text", "text_normalized"} & set(names):
        texts = _table(path, names, lines[1:])
    else:
        texts = [(str(number), line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not texts:
        raise DataError(f"{path}: holds no text")
    return texts


def plan_corpus(
    texts: Sequence[tuple[str, str]], voices: Sequence[SyntheticVoice], config: SynthesisConfig
) -> dict[SplitKind, list[PlannedUtterance]]:
    """Who says what: a text of a split goes to voices of that split.

    Args:
        texts: Name and text; in which split one is, its text decides.
        voices: In which split one is, `SyntheticVoice.split_kind` decides.
        config: How many, how fast.

    Raises:
        DataError: If a split has texts but no voice.
    """
    plan: dict[SplitKind, list[PlannedUtterance]] = {split: [] for split in SPLITS}
    by_engine = {
        split: {
            engine: [voice for voice in voices if voice.split_kind == split and voice.engine == engine]
            for engine in config.engines
        }
        for split in SPLITS
    }
    order = torch.argsort(combine_keys(_STREAM, config.seed, torch.arange(len(texts))), stable=True).tolist()
    span = config.max_words_per_minute - config.min_words_per_minute
    total = 0
    for copy in range(config.utterances_per_text):
        keys = combine_keys(config.seed, torch.arange(len(texts)), copy)
        draws = keyed_uniform(0, keys, (3,), stream=_STREAM).double().tolist()
        for index in order:
            if config.limit is not None and total == config.limit:
                return plan
            name, text = texts[index]
            split = split_of_name(text)
            engine_draw, voice_draw, rate_draw = draws[index]
            flite, espeak = by_engine[split].get("flite", []), by_engine[split].get("espeak-ng", [])
            pool = flite if flite and (not espeak or engine_draw < config.flite_ratio) else espeak
            if not pool:
                raise DataError(f"none of the {len(voices)} voices belongs to the split {split!r}; allow more of them")
            plan[split].append(
                PlannedUtterance(
                    id=f"{name}-{copy}",
                    text=text,
                    voice=pool[int(voice_draw * len(pool))],
                    words_per_minute=config.min_words_per_minute + round(rate_draw * span),
                )
            )
            total += 1
    return plan


def synthesize(
    texts: Sequence[tuple[str, str]],
    out: Path,
    config: SynthesisConfig,
    *,
    jobs: int = 1,
    on_progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Render a corpus into a folder: `train-00000.parquet`, ..., `validation-...`, `test-...`, and `corpus.json`.

    Columns: audio, id, text, speaker, engine, voice, words_per_minute, sample_rate, num_samples, native_sample_rate,
    split_kind. Shards that are there already stay.

    Args:
        texts: Name and text, from `read_texts`.
        out: Is created; may hold a part of the same corpus.
        config: Voices, rates, sizes.
        jobs: Programs that speak at a time.
        on_progress: Called with the number of utterances of each shard that is done, or was there.

    Returns:
        What `corpus.json` holds.

    Raises:
        DataError: If a program is missing or does not work, or `out` holds another corpus.
        ImportError: If an extra is not installed; the message names it.
        StorageError: If the disk refuses.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, must be at least 1")
    for require in (sound_library, _parquet):  # before minutes of work
        require()
    versions = {engine: require_engine(engine) for engine in ENGINES if engine in config.engines}
    voices = [
        voice
        for engine in ENGINES
        if engine in config.engines
        for voice in list_voices(engine, language=config.language, pitches=tuple(config.pitches))
    ]
    plan = plan_corpus(texts, voices, config)
    description = _describe(plan, versions, config)
    failed = _claim_folder(out, description)
    num_done = 0
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for path, split, utterances in _shards(plan, config, out):
            if not path.exists():
                rows = _speak_all(pool, utterances, split, config, failed)
                num_done += len(utterances)
                if len(failed) > max(3.0, _MAX_FAILED_RATIO * num_done):
                    raise DataError(f"{len(failed)} of {num_done} utterances failed; the last: {failed[-1]}")
                write_file_atomically(path, _parquet_bytes(rows))
                _write_metadata(out, {**description, "failed": failed})
            if on_progress is not None:
                on_progress(len(utterances))
    return {**description, "failed": failed}


def _speak_all(
    pool: ThreadPoolExecutor,
    utterances: Sequence[PlannedUtterance],
    split: SplitKind,
    config: SynthesisConfig,
    failed: list[str],
) -> list[dict[str, Any]]:
    futures: list[Future[dict[str, Any]]] = [pool.submit(_row, utterance, split, config) for utterance in utterances]
    rows = []
    for future in futures:
        try:
            rows.append(future.result())
        except BadRecord as error:
            failed.append(str(error))
    return rows


def _row(utterance: PlannedUtterance, split: SplitKind, config: SynthesisConfig) -> dict[str, Any]:
    voice = utterance.voice
    spoken = speak(utterance.text, voice, words_per_minute=utterance.words_per_minute, name=utterance.id)
    native_rate = read_header(spoken, utterance.id).sample_rate
    waveform = decode_audio(spoken, utterance.id, sample_rate=config.sample_rate, max_seconds=_MAX_SECONDS)
    if not np.abs(waveform).max() > 0:
        raise BadRecord(utterance.id, f"{voice.speaker} said nothing of {utterance.text[:40]!r}")
    buffer = io.BytesIO()
    sound_library().write(buffer, waveform, config.sample_rate, format=config.codec.upper(), subtype="PCM_16")
    return {
        "audio": buffer.getvalue(),
        "id": utterance.id,
        "text": utterance.text,
        "speaker": voice.speaker,
        "engine": voice.engine,
        "voice": f"{voice.name}+{voice.variant}" if voice.variant else voice.name,
        "words_per_minute": utterance.words_per_minute,
        "sample_rate": config.sample_rate,
        "num_samples": len(waveform),
        "native_sample_rate": native_rate,
        "split_kind": split,
    }


def _shards(
    plan: dict[SplitKind, list[PlannedUtterance]], config: SynthesisConfig, out: Path
) -> Iterator[tuple[Path, SplitKind, list[PlannedUtterance]]]:
    for split, utterances in plan.items():
        for number, start in enumerate(range(0, len(utterances), config.shard_rows)):
            yield out / f"{split}-{number:05d}.parquet", split, utterances[start : start + config.shard_rows]


def _parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa

    schema = pa.schema(
        [("audio", pa.binary())]
        + [(name, pa.string()) for name in ("id", "text", "speaker", "engine", "voice")]
        + [(name, pa.int64()) for name in ("words_per_minute", "sample_rate", "num_samples", "native_sample_rate")]
        + [("split_kind", pa.string())]
    )
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema)
    # Sound does not compress any further, and its row groups stay readable one by one.
    _parquet().write_table(table, buffer, row_group_size=_ROW_GROUP_ROWS, compression="none")
    return buffer.getvalue()


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("a corpus is a set of Parquet files: pip install 'latentlm[data]'") from error
    return pyarrow.parquet


def _describe(
    plan: dict[SplitKind, list[PlannedUtterance]], versions: dict[str, str], config: SynthesisConfig
) -> dict[str, Any]:
    said = [[u.id, u.text, u.voice.speaker, u.words_per_minute] for split in SPLITS for u in plan[split]]
    fingerprint = hashlib.sha256(json.dumps([said, versions, config.sample_rate, config.codec]).encode()).hexdigest()
    return {
        "what": "synthesised speech: text spoken by programs, no recordings",
        "fingerprint": fingerprint,
        "programs": versions,
        "config": asdict(config),
        "split_rule": "a tenth of timbres and of texts are test, a tenth validation, by SHA-256",
        "splits": {
            split: {"utterances": len(plan[split]), "voices": sorted({u.voice.speaker for u in plan[split]})}
            for split in SPLITS
        },
    }


def _claim_folder(out: Path, description: dict[str, Any]) -> list[str]:
    """Refuse to mix two corpora in one folder; returns what failed in the shards that are there."""
    metadata = out / METADATA_NAME
    if metadata.exists():
        content = read_json(metadata)
        if not isinstance(content, dict) or content.get("fingerprint") != description["fingerprint"]:
            raise DataError(f"{out} holds another corpus (other texts, voices or settings); choose another folder")
        return list(content.get("failed", []))
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and holds no {METADATA_NAME}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_metadata(out, {**description, "failed": []})
    return []


def _write_metadata(out: Path, content: dict[str, Any]) -> None:
    data = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_file_atomically(out / METADATA_NAME, data.encode())


def _table(path: Path, names: Sequence[str], lines: Sequence[str]) -> list[tuple[str, str]]:
    text_column = names.index("text_normalized" if "text_normalized" in names else "text")
    texts = []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(names):
            raise DataError(f"{path}:{number}: {len(fields)} columns, expected {len(names)} ({', '.join(names)})")
        if fields[text_column].strip():
            texts.append((fields[names.index("id")], fields[text_column].strip()))
    return texts
