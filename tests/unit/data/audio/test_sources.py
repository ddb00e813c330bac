"""Laws that every source of recordings obeys: the same six clips are written in each format."""

import contextlib
import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentlm.data.audio import AudioDataConfig, open_audio
from latentlm.data.audio.datasets import open_audio_source
from latentlm.data.audio.sources import AUDIO_OPENERS
from latentlm.data.records import DataError

SPEAKERS = ("ann", "ann", "bob", "bob", "cy", "cy")
TEXTS = ("one", "two", "three", "four", "five", "six")
HERTZ = (200, 300, 400, 500, 600, 700)


@pytest.fixture
def clips(tone, encoded) -> list[bytes]:
    """Six FLAC files at 8 kHz, 0.2 to 0.7 s long."""
    return [encoded(tone(hertz, hertz / 1000)) for hertz in HERTZ]


def write_folder(root: Path, clips: list[bytes]) -> None:
    for number, (speaker, text, clip) in enumerate(zip(SPEAKERS, TEXTS, clips, strict=True)):
        (root / speaker).mkdir(parents=True, exist_ok=True)
        (root / speaker / f"{number}.flac").write_bytes(clip)
        (root / speaker / f"{number}.txt").write_text(f"{text}\n")


def write_parquet(root: Path, clips: list[bytes]) -> None:
    root.mkdir()
    lengths = [hertz * 8 for hertz in HERTZ]
    columns = {"audio": clips, "text": TEXTS, "speaker": SPEAKERS, "num_samples": lengths, "sample_rate": [8000] * 6}
    pq.write_table(pa.table(columns), root / "train.parquet", row_group_size=2)


def write_hf_dataset(root: Path, clips: list[bytes]) -> None:
    root.mkdir()
    cells = [{"bytes": clip, "path": "a.flac"} for clip in clips]
    table = pa.table({"audio": cells, "text": TEXTS, "speaker": SPEAKERS})
    with pa.ipc.new_stream(root / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


def write_webdataset(root: Path, clips: list[bytes]) -> None:
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as tar:
        for number, (text, clip) in enumerate(zip(TEXTS, clips, strict=True)):
            for extension, data in (("flac", clip), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_long_file(root: Path, clips: list[bytes]) -> list[tuple[float, float]]:
    """All clips in one file; returns offset and duration of each."""
    import soundfile

    root.mkdir(parents=True)
    waveforms = [soundfile.read(io.BytesIO(clip), dtype="int16")[0] for clip in clips]
    soundfile.write(root / "long.flac", np.concatenate(waveforms), 8000)
    starts = np.cumsum([0, *map(len, waveforms)])
    return [(start / 8000, len(w) / 8000) for start, w in zip(starts.tolist(), waveforms, strict=False)]


def write_nemo(root: Path, clips: list[bytes]) -> None:
    places = write_long_file(root / "sound", clips)
    lines = [
        {"audio_filepath": "sound/long.flac", "offset": offset, "duration": duration, "text": text, "speaker": speaker}
        for (offset, duration), text, speaker in zip(places, TEXTS, SPEAKERS, strict=True)
    ]
    (root / "list.json").write_text("\n".join(map(json.dumps, lines)))


def write_lhotse(root: Path, clips: list[bytes]) -> None:
    """As Libriheavy writes its cuts: gzipped, two texts of which the first is the book's."""
    places = write_long_file(root / "sound", clips)
    lines = [
        {
            "id": f"cut{number}",
            "start": offset,
            "duration": duration,
            "channel": 0,
            "supervisions": [{"speaker": speaker, "custom": {"texts": [text, text.upper()], "pre_texts": ["", ""]}}],
            "recording": {"sources": [{"type": "file", "channels": [0], "source": "sound/long.flac"}]},
            "type": "MonoCut",
        }
        for number, ((offset, duration), text, speaker) in enumerate(zip(places, TEXTS, SPEAKERS, strict=True))
    ]
    (root / "cuts.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))


FORMATS: dict[str, tuple[str, str, Callable[[Path, list[bytes]], None]]] = {
    "audio_folder": ("audio_folder", "", write_folder),
    "parquet": ("parquet", "", write_parquet),
    "hf_dataset": ("hf_dataset", "", write_hf_dataset),
    "webdataset": ("webdataset", "", write_webdataset),
    "NeMo manifest": ("manifest", "list.json", write_nemo),
    "Lhotse manifest": ("manifest", "cuts.jsonl.gz", write_lhotse),
}


@pytest.fixture(params=FORMATS)
def config(request, tmp_path, clips) -> AudioDataConfig:
    name, file, write = FORMATS[request.param]
    write(tmp_path / "set", clips)
    return AudioDataConfig(path=str(tmp_path / "set" / file), format=name, sample_rate=8000, validation_ratio=0.0)


def test_every_format_of_the_table_is_tested():
    assert {name for name, _, _ in FORMATS.values()} == set(AUDIO_OPENERS)


def test_every_format_gives_the_clips_that_were_written(config, clips, tone):
    dataset = open_audio(config, part="train")
    assert len(dataset) == 6
    for index, hertz in enumerate(HERTZ):
        example = dataset[index]
        assert example["num_samples"] == hertz * 8
        # A step of 16 bits.
        np.testing.assert_allclose(example["audio"], tone(hertz, hertz / 1000), atol=1 / 32768)
        assert example["text"] == TEXTS[index]
        assert example["key"] == index
        assert example["speaker"] == ("" if config.format == "webdataset" else SPEAKERS[index])


def test_auto_finds_the_format(config):
    detected = AudioDataConfig(path=config.path, sample_rate=8000)
    source = open_audio_source(detected, config.path, "train")
    assert type(source) is type(open_audio_source(config, config.path, "train"))


def test_a_source_survives_pickling(config):
    source = open_audio_source(config, config.path, "train")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert [copy[index] for index in range(6)] == [source[index] for index in range(6)]


def test_columns_and_lengths_agree_with_the_records(config):
    source = open_audio_source(config, config.path, "train")
    for name in sorted(source.column_names & {"text", "speaker"}):
        assert list(source.column(name)) == [getattr(source[index], name) for index in range(6)]
    seconds = source.seconds()
    if seconds is not None:
        np.testing.assert_allclose(seconds, np.array(HERTZ) / 1000)
    with pytest.raises(DataError, match=r"has no column 'mood'"):
        source.column("mood")


def test_an_unknown_split_is_refused_by_name(config):
    with pytest.raises(DataError, match="autumn"):
        open_audio_source(config, config.path, "autumn")


def test_a_damaged_set_is_an_error_of_ours_at_every_byte(config, tmp_path):
    """One bit flipped, or the end cut off, at many places: a set opens or refuses, but never fails otherwise."""
    files = sorted(path for path in (tmp_path / "set").rglob("*") if path.is_file())
    generator = np.random.Generator(np.random.PCG64(0))
    for trial in range(24):
        path = files[trial % len(files)]
        good = path.read_bytes()
        place = int(generator.integers(len(good)))
        flipped = bytes([good[place] ^ (1 << int(generator.integers(8)))])
        path.write_bytes(good[:place] if trial % 3 == 0 else good[:place] + flipped + good[place + 1 :])
        try:
            dataset = open_audio(config, part="train")
        except DataError:
            path.write_bytes(good)
            continue
        for index in range(len(dataset)):
            with contextlib.suppress(DataError):  # any other exception fails the test
                dataset[index]
        path.write_bytes(good)
