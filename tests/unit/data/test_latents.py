"""The cache of latents: whole or absent shards, resuming, and refusing what does not belong together."""

import json
import pickle

import pytest
import torch

from latentlm.data.latents import LatentDataset, LatentWriter
from latentlm.data.loader import make_loader
from latentlm.data.records import DataError

LABEL_NAMES = ("cat", "dog")


def batch_at(start: int, size: int = 4, *, log_std: bool = False) -> dict:
    generator = torch.Generator().manual_seed(start)
    batch = {
        "latent_mean": torch.randn(size, 3, 2, generator=generator),
        "label": torch.arange(start, start + size) % 2,
        "key": torch.arange(start, start + size),
        "position": start + size,
    }
    if log_std:
        batch["latent_log_std"] = torch.randn(size, 3, 2, generator=generator)
    return batch


def writer_of(folder, *, fingerprint: str = "abc", shard_size: int = 8) -> LatentWriter:
    return LatentWriter(folder, tokenizer_fingerprint=fingerprint, label_names=LABEL_NAMES, shard_size=shard_size)


def write_all(folder, *, log_std: bool = False) -> None:
    writer = writer_of(folder)
    for start in range(0, 20, 4):
        writer.append(**batch_at(start, log_std=log_std))
    writer.close()


@pytest.mark.parametrize("log_std", [False, True])
def test_what_is_written_is_read_again(tmp_path, log_std):
    write_all(tmp_path, log_std=log_std)
    dataset = LatentDataset(tmp_path, tokenizer_fingerprint="abc")
    assert len(dataset) == 20
    assert dataset.label_names == LABEL_NAMES
    assert dataset.num_classes == 2
    assert tuple(dataset.latent_shape) == (3, 2)
    for index in range(20):
        written = batch_at(index // 4 * 4, log_std=log_std)
        example = dataset[index]
        assert (example["key"], example["label"]) == (index, index % 2)
        assert ("latent_log_std" in example) == log_std
        for name in example.keys() & {"latent_mean", "latent_log_std"}:
            assert torch.equal(example[name], written[name][index % 4])
    with pytest.raises(IndexError):
        dataset[20]


def test_batches_of_latents_equal_their_examples_with_and_without_workers(tmp_path):
    write_all(tmp_path)
    dataset = LatentDataset(tmp_path)
    for num_workers in (0, 1):
        loader = make_loader(dataset, batch_size=7, seed=1, num_workers=num_workers)
        batch = next(loader)
        for row, key in enumerate(batch["key"].tolist()):
            assert torch.equal(batch["latent_mean"][row], dataset[key]["latent_mean"])
            assert int(batch["label"][row]) == dataset[key]["label"]
        loader.close()


def test_half_precision_on_disk_is_float32_in_the_batch(tmp_path):
    writer = writer_of(tmp_path)
    batch = batch_at(0)
    writer.append(**{**batch, "latent_mean": batch["latent_mean"].bfloat16()})
    writer.close()
    latent = LatentDataset(tmp_path)[1]["latent_mean"]
    assert torch.equal(latent, batch["latent_mean"][1].bfloat16().float())


def test_an_interrupted_writer_goes_on_after_its_last_whole_shard(tmp_path):
    interrupted = writer_of(tmp_path / "resumed")
    for start in range(0, 12, 4):
        interrupted.append(**batch_at(start))  # two batches make a shard, the third stays in memory and is lost
    (tmp_path / "resumed" / ".latents-00001.safetensors.partial").write_bytes(b"cut short by a kill")
    (tmp_path / "resumed" / "latents-00001.safetensors").write_bytes(b"renamed, but not yet in the index")
    with pytest.raises(DataError, match="not complete"):
        LatentDataset(tmp_path / "resumed")
    resumed = writer_of(tmp_path / "resumed")
    assert resumed.position == 8
    for start in range(resumed.position, 20, 4):
        resumed.append(**batch_at(start))
    resumed.close()
    write_all(tmp_path / "whole")
    found, expected = LatentDataset(tmp_path / "resumed"), LatentDataset(tmp_path / "whole")
    assert torch.equal(found.take(range(20))["latent_mean"], expected.take(range(20))["latent_mean"])
    assert not list((tmp_path / "resumed").glob(".*.partial"))


def test_a_cache_of_another_tokenizer_is_refused(tmp_path):
    write_all(tmp_path / "whole")
    with pytest.raises(DataError, match="latents of the tokenizer abc, not of xyz"):
        LatentDataset(tmp_path / "whole", tokenizer_fingerprint="xyz")
    writer_of(tmp_path / "begun").append(**batch_at(0, 8))
    with pytest.raises(DataError, match="another tokenizer_fingerprint"):
        writer_of(tmp_path / "begun", fingerprint="xyz")
    with pytest.raises(DataError, match="already complete"):
        writer_of(tmp_path / "whole")


def test_a_cache_survives_pickling(tmp_path):
    write_all(tmp_path)
    dataset = LatentDataset(tmp_path)
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert torch.equal(copy.take([3, 15])["latent_mean"], dataset.take([3, 15])["latent_mean"])


def edit_index(folder, **changes) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 2}, "format version 1"),
        ({"label_names": None}, "label_names is missing"),
        ({"shards": ["x"]}, "list of shards is damaged"),
        ({"shards": []}, "is empty"),
        ({"shards": [{"file": "../a", "num_records": 1, "latent_shape": [3, 2], "fields": []}]}, "not in this folder"),
        (
            {"shards": [{"file": "a", "num_records": 1, "latent_shape": [3, 2], "fields": ["key"]}]},
            "damaged or missing",
        ),
    ],
)
def test_a_damaged_index_is_refused_with_its_fault(tmp_path, changes, reason):
    write_all(tmp_path)
    edit_index(tmp_path, **changes)
    with pytest.raises(DataError, match=reason):
        LatentDataset(tmp_path)


def test_a_damaged_or_missing_shard_is_refused_at_opening(tmp_path):
    write_all(tmp_path)
    shard = tmp_path / "latents-00001.safetensors"
    good = shard.read_bytes()
    shard.write_bytes(good[:-5])
    with pytest.raises(DataError, match=r"00001\.safetensors: damaged or missing"):
        LatentDataset(tmp_path)
    shard.write_bytes((tmp_path / "latents-00002.safetensors").read_bytes())
    with pytest.raises(DataError, match="the index says"):
        LatentDataset(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match="damaged or missing"):
        LatentDataset(tmp_path)


def test_a_folder_without_an_index_is_no_cache(tmp_path):
    with pytest.raises(DataError, match="no cache of latents"):
        LatentDataset(tmp_path)
