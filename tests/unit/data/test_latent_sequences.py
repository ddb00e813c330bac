"""The cache of clips' latents: any length, whole or absent shards, resuming, refusing what does not belong together."""

import json

import pytest
import torch

from latentlm.data.latent_sequences import CodeClip, LatentClip, LatentSequences, LatentSequenceWriter
from latentlm.data.records import DataError


def clip(number: int, *, log_std: bool = False) -> LatentClip:
    generator = torch.Generator().manual_seed(number)
    mean = torch.randn(1 + number % 4, 2, generator=generator)
    return LatentClip(
        mean, mean.abs() if log_std else None, 100 + number, {"text": f"clip {number}", "speaker": "anna"}
    )


def writer_of(folder, **changes: str) -> LatentSequenceWriter:
    names = {"modality": "speech", "tokenizer_fingerprint": "abc", "source_fingerprint": "files"}
    return LatentSequenceWriter(folder, **(names | changes), shard_size=3)


def write_all(folder, *, log_std: bool = False, count: int = 8) -> None:
    writer = writer_of(folder)
    for number in range(writer.position, count):
        writer.append(clip(number, log_std=log_std), position=number + 1)
    writer.close()


@pytest.mark.parametrize("log_std", [False, True])
def test_clips_of_any_length_come_back_with_their_words(tmp_path, log_std: bool) -> None:
    write_all(tmp_path / "cache", log_std=log_std)
    cache = LatentSequences(tmp_path / "cache", tokenizer_fingerprint="abc", source_fingerprint="files")
    assert cache.modality == "speech"
    assert cache.lengths.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    for number in range(8):
        expected, found = clip(number, log_std=log_std), cache[number]
        assert torch.equal(found.mean, expected.mean)
        assert (found.log_std is None) == (not log_std)
        assert (found.key, dict(found.fields)) == (expected.key, dict(expected.fields))


def test_codes_come_back_as_codes(tmp_path) -> None:
    clips = [
        CodeClip(torch.arange(3 * length, dtype=torch.int32).view(length, 3), 7 + length, {"text": "one"})
        for length in (2, 1, 4, 3)
    ]
    writer = writer_of(tmp_path)
    for position, one in enumerate(clips, start=1):
        writer.append(one, position=position)
    writer.close()
    cache = LatentSequences(tmp_path)
    assert cache.lengths.tolist() == [2, 1, 4, 3]
    for found, expected in zip(cache.clips, clips, strict=True):
        assert isinstance(found, CodeClip)
        assert found.codes.dtype == torch.int32
        assert torch.equal(found.codes, expected.codes)
        assert (found.key, found.fields) == (expected.key, expected.fields)


def test_an_interrupted_encoding_goes_on_after_the_last_whole_shard(tmp_path) -> None:
    writer = writer_of(tmp_path)
    for number in range(5):
        writer.append(clip(number), position=number + 1)
    with pytest.raises(DataError, match="not complete"):
        LatentSequences(tmp_path)
    assert writer_of(tmp_path).position == 3
    write_all(tmp_path)
    write_all(tmp_path / "at_once")
    again, at_once = LatentSequences(tmp_path), LatentSequences(tmp_path / "at_once")
    assert len(again) == len(at_once) == 8
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(again.clips, at_once.clips, strict=True))


@pytest.mark.parametrize("name", ["modality", "tokenizer_fingerprint", "source_fingerprint"])
def test_what_belongs_to_something_else_is_refused(tmp_path, name: str) -> None:
    writer = writer_of(tmp_path)
    writer.append(clip(0), position=1)
    writer._write_shard()
    with pytest.raises(DataError, match=f"another {name}"):
        writer_of(tmp_path, **{name: "other"})
    write_all(tmp_path)
    with pytest.raises(DataError, match="already complete"):
        writer_of(tmp_path)
    if name != "modality":
        with pytest.raises(DataError, match=f"another {name}"):
            LatentSequences(tmp_path, **{name: "other"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "latents-00001.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
        lambda folder: (folder / "latents-00000.safetensors").unlink(),
        lambda folder: (folder / "records-00000.json").write_text("[]"),
        lambda folder: (folder / "index.json").write_text("{"),
        lambda folder: (folder / "index.json").write_text("[1]"),
    ],
)
def test_damaged_caches_are_refused(tmp_path, damage) -> None:
    write_all(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError):
        LatentSequences(tmp_path)


def test_files_outside_the_folder_are_not_read(tmp_path) -> None:
    write_all(tmp_path / "cache")
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    index["shards"][0]["file"] = "../secret.safetensors"
    (tmp_path / "cache" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="not in this folder"):
        LatentSequences(tmp_path / "cache")
