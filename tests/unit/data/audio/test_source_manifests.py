"""Manifests from strangers: only files below the root are read, and every broken entry is named."""

import gzip
import json
from pathlib import Path

import pytest

from latentlm.data.audio import AudioDataConfig, open_audio
from latentlm.data.audio.sources.manifests import AudioManifest
from latentlm.data.records import BadRecord, DataError


def manifest(path: Path, *entries: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))
    return path


def lhotse(source: dict, **fields: object) -> dict:
    return {"start": 0, "recording": {"sources": [source]}, "supervisions": [{"text": "a", "speaker": 7}], **fields}


OUTSIDE = ["/etc/hostname", "../secret.wav", "a/../../secret.wav", "link.wav", "x" * 5000, "a\0b", "."]


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_what_is_no_file_below_the_root_is_refused(tmp_path, name):
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.wav").symlink_to(tmp_path / "secret.wav")
    path = manifest(tmp_path / "set" / "list.jsonl", {"audio_filepath": name})
    dataset = open_audio(AudioDataConfig(path=str(path), validation_ratio=0.0), part="train")
    reasons = "refused: only files below|cannot be looked for|File name too long|not a regular file"
    with pytest.raises(BadRecord, match=reasons):
        dataset[0]


def test_an_audio_root_may_be_named_and_absolute_names_below_it_are_read(tmp_path, write, tone, encoded):
    sound = write(tmp_path / "sound" / "a.wav", encoded(tone(440, 0.1)))
    path = manifest(tmp_path / "lists" / "list.jsonl", {"audio_filepath": str(sound)}, {"audio_filepath": "a.wav"})
    config = AudioDataConfig(path=str(path), audio_root=str(sound.parent), validation_ratio=0.0, sample_rate=8000)
    dataset = open_audio(config, part="train")
    assert [dataset[index]["num_samples"] for index in range(2)] == [800, 800]
    with pytest.raises(DataError, match="audio_root goes with manifests"):
        open_audio(AudioDataConfig(path=str(sound.parent), audio_root=str(tmp_path)), part="train")


def test_commands_and_urls_are_refused(tmp_path):
    entries = [
        lhotse({"type": "command", "source": "touch /tmp/owned"}),
        lhotse({"type": "url", "source": "http://example.org/a.wav"}),
        lhotse({"type": "file", "source": "a.wav"}),
    ]
    source = AudioManifest(manifest(tmp_path / "cuts.jsonl", *entries), "train", {})
    assert len(source) == 1
    assert (source.column("text"), source.column("speaker")) == (["a"], ["7"])
    assert all("commands and URLs are not followed" in bad.reason for bad in source.rejected)


BROKEN = [
    '{"audio_filepath": ',
    "[1, 2]",
    "{}",
    '{"audio_filepath": 3}',
    '{"audio_filepath": ""}',
    '{"audio_filepath": "a", "duration": "long"}',
    '{"audio_filepath": "a", "duration": -1}',
    '{"audio_filepath": "a", "offset": NaN}',
    '{"audio_filepath": "a", "offset": true}',
    f'{{"audio_filepath": "a", "offset": 1{"0" * 400}}}',
    '{"audio_filepath": "a", "text": {"a": 1}}',
    '{"audio_filepath": "\\ud800"}',
    '{"recording": 1}',
    '{"recording": {"sources": []}}',
    '{"recording": {"sources": [{"type": "file", "source": "a", "channels": [0, 1]}]}}',
    '{"recording": {"sources": [{"type": "file", "source": "a"}]}, "supervisions": [3]}',
    "[" * 5000,
]


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_entry_is_rejected_by_its_line_and_the_others_kept(tmp_path, line):
    path = manifest(tmp_path / "list.jsonl", {"audio_filepath": "a.wav"}, "", line, {"audio_filepath": "b.wav"})
    source = AudioManifest(path, "train", {})
    assert len(source) == 2
    assert [bad.name for bad in source.rejected] == [f"{path}:3"]


def test_columns_rename_flat_entries(tmp_path):
    path = manifest(tmp_path / "list.jsonl", {"path": "a.wav", "said": "hello", "who": "x"})
    source = AudioManifest(path, "train", {"audio": "path", "text": "said", "speaker": "who"})
    assert (source[0].text, source[0].speaker) == ("hello", "x")


def test_a_gzip_that_is_cut_or_damaged_keeps_what_was_read(tmp_path):
    lines = "\n".join(json.dumps({"audio_filepath": f"{n}.wav"}) for n in range(2000)).encode()
    data = gzip.compress(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    source = AudioManifest(tmp_path / "a.jsonl.gz", "train", {})
    assert 0 < len(source) < 2000
    assert "cannot be read beyond line" in source.rejected[-1].reason
    (tmp_path / "b.jsonl.gz").write_bytes(lines)
    with pytest.raises(DataError, match="no usable entry"):
        AudioManifest(tmp_path / "b.jsonl.gz", "train", {})


def test_an_endless_line_and_a_file_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"x" * 3_000_000)
    with pytest.raises(DataError, match="a line of more than 1,048,576 bytes"):
        AudioManifest(tmp_path / "a.jsonl", "train", {})
    (tmp_path / "b.jsonl").write_text("no manifest\n" * 2000)
    with pytest.raises(DataError, match="more than 1,000 unusable entries"):
        AudioManifest(tmp_path / "b.jsonl", "train", {})


def test_a_folder_of_manifests_has_splits(tmp_path):
    for split in ("train", "test"):
        manifest(tmp_path / f"{split}.jsonl", {"audio_filepath": f"{split}.wav"})
    (tmp_path / "test.wav").write_bytes(b"")
    assert AudioManifest(tmp_path, "test", {})[0].audio == tmp_path.resolve() / "test.wav"


def test_only_the_stretch_of_a_long_file_is_decoded(tmp_path, write, tone, encoded):
    write(tmp_path / "long.flac", encoded(tone(440, 120.0)))
    path = manifest(tmp_path / "list.jsonl", {"audio_filepath": "long.flac", "offset": 100, "duration": 1.5})
    config = AudioDataConfig(path=str(path), sample_rate=8000, max_seconds=2.0, validation_ratio=0.0)
    assert open_audio(config, part="train")[0]["num_samples"] == 12000
