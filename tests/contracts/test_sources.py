"""Laws that every source obeys, whatever its format: the same twelve pictures are written in each of them."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from latentlm.data import ImageDataConfig, make_loader, open_images
from latentlm.data.datasets import open_source
from latentlm.data.images import load_image
from latentlm.data.records import RECORD_NAMES, DataError, Source
from latentlm.data.sources import OPENERS

NUM_TRAIN, NUM_TEST, HEIGHT, WIDTH = 12, 3, 5, 6
CLASSES = ("bird", "cat", "dog")


def pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Random grey pictures and their labels: ordered by class, so that all formats agree on the order."""
    count = NUM_TRAIN if split == "train" else NUM_TEST
    generator = np.random.Generator(np.random.PCG64(count))
    images = generator.integers(0, 256, (count, HEIGHT, WIDTH), dtype=np.uint8)
    return images, np.arange(count) * len(CLASSES) // count


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_class_folder(root: Path) -> Path:
    for split in ("train", "test"):
        for i, (image, label) in enumerate(zip(*pictures(split), strict=True)):
            path = root / split / CLASSES[label] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
    return root


def write_image_folder(root: Path) -> Path:
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for i, image in enumerate(pictures(split)[0]):
            (root / split / f"{i:03d}.png").write_bytes(png(image))
    return root


def write_idx(root: Path, *, zipped: bool = False) -> Path:
    root.mkdir()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = pictures(split)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            path = root / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return root


def write_npz(root: Path) -> Path:
    root.mkdir()
    (x_train, y_train), (x_test, y_test) = pictures("train"), pictures("test")
    np.savez_compressed(root / "set.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return root / "set.npz"


def write_parquet(root: Path) -> Path:
    """As hubs lay it out: files named for their split in `data`, images as structs, class names in the schema."""
    (root / "data").mkdir(parents=True)
    for split in ("train", "test"):
        images, labels = pictures(split)
        table = pa.table({"image": [{"bytes": png(image), "path": "x.png"} for image in images], "label": labels})
        pq.write_table(with_class_names(table), root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return root


def with_class_names(table: pa.Table) -> pa.Table:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet_of_arrays(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    for split in ("train", "test"):
        images, labels = pictures(split)
        table = pa.table({"img": images.tolist(), "label": [CLASSES[label] for label in labels]})
        pq.write_table(table, root / "data" / f"{split}.parquet")
    return root


def write_webdataset(root: Path) -> Path:
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        images, labels = pictures(split)
        for shard, rows in enumerate(np.array_split(np.arange(len(images)), 2)):
            with tarfile.open(root / split / f"{shard:04d}.tar", "w") as tar:
                for row in rows:
                    for extension, data in (("png", png(images[row])), ("cls", CLASSES[labels[row]].encode())):
                        member = tarfile.TarInfo(f"{row:06d}.{extension}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return root


def write_hf_dataset(root: Path) -> Path:
    """What `datasets.DatasetDict.save_to_disk` leaves."""
    root.mkdir()
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    for split in ("train", "test"):
        (root / split).mkdir()
        images, labels = pictures(split)
        files = []
        for shard, rows in enumerate(np.array_split(np.arange(len(images)), 2)):
            cells = [{"bytes": png(images[row]), "path": None} for row in rows]
            table = with_class_names(pa.table({"image": cells, "label": labels[rows]}))
            files.append({"filename": f"data-{shard:05d}-of-00002.arrow"})
            with pa.ipc.new_stream(root / split / files[-1]["filename"], table.schema) as writer:
                writer.write_table(table)
        (root / split / "state.json").write_text(json.dumps({"_data_files": files}))
    return root


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "class_folder": ("class_folder", write_class_folder),
    "image_folder": ("image_folder", write_image_folder),
    "idx": ("idx", write_idx),
    "idx gzipped": ("idx", lambda root: write_idx(root, zipped=True)),
    "npz": ("npz", write_npz),
    "parquet": ("parquet", write_parquet),
    "parquet of arrays": ("parquet", write_parquet_of_arrays),
    "webdataset": ("webdataset", write_webdataset),
    "hf_dataset": ("hf_dataset", write_hf_dataset),
}


@pytest.fixture(params=FORMATS)
def config(request, tmp_path) -> ImageDataConfig:
    name, write = FORMATS[request.param]
    return ImageDataConfig(path=str(write(tmp_path / "set")), source=name, image_size=WIDTH, num_channels=1)


def same_records(first: Source, second: Source) -> bool:
    def comparable(source: Source) -> list[dict]:
        records = [source[i] for i in range(len(source))]
        return [
            {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in r.items()}
            for r in records
        ]

    return comparable(first) == comparable(second)


def test_every_format_of_the_table_is_tested():
    assert {name for name, _ in FORMATS.values()} == set(OPENERS)


@pytest.mark.parametrize(("split", "count"), [("train", NUM_TRAIN), ("test", NUM_TEST)])
def test_a_source_yields_the_pictures_that_were_written_in_their_order(config, split, count):
    source = open_source(config, split=split)
    assert len(source) == count
    for index, expected in enumerate(pictures(split)[0]):
        stretched = load_image(expected, "expected", image_size=WIDTH, num_channels=1, resize="stretch")
        found = load_image(source[index]["image"], "found", image_size=WIDTH, num_channels=1, resize="stretch")
        np.testing.assert_array_equal(found, stretched)


def test_a_record_has_the_contracts_names_a_key_and_a_name(config):
    source = open_source(config, split="train")
    for index in range(len(source)):
        record = source[index]
        assert record.keys() == source.fields | {"key", "name"}
        assert source.fields <= set(RECORD_NAMES)
        assert isinstance(record["name"], str)
        assert type(record["key"]) is int
        assert isinstance(record["image"], bytes | np.ndarray)
        assert record.get("label", 0) == source.labels[index]
    assert len({source[index]["key"] for index in range(len(source))}) == len(source)
    indices = np.arange(len(source))
    assert source.keys(indices).tolist() == [source[index]["key"] for index in indices.tolist()]


def test_labels_number_the_sorted_class_names(config):
    source = open_source(config, split="train")
    assert source.labels.dtype == np.int64
    if "label" in source.fields:
        assert source.labels.tolist() == pictures("train")[1].tolist()
        assert source.label_names in (CLASSES, ("0", "1", "2"))
    else:
        assert source.labels.tolist() == [0] * NUM_TRAIN
        assert source.label_names == ("unlabelled",)


def test_opening_twice_gives_the_same_records(config):
    assert same_records(open_source(config, split="train"), open_source(config, split="train"))


def test_a_source_survives_pickling_before_and_after_use(config):
    source = open_source(config, split="train")
    unused = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert same_records(source, unused)
    assert same_records(source, pickle.loads(pickle.dumps(source)))  # noqa: S301


def test_auto_finds_the_format(config):
    detected = ImageDataConfig(path=config.path, image_size=WIDTH)
    assert type(open_source(detected, split="train")) is type(open_source(config, split="train"))
    assert same_records(open_source(detected, split="test"), open_source(config, split="test"))


def test_an_unknown_split_is_refused_by_name(config):
    with pytest.raises(DataError, match="autumn"):
        open_source(config, split="autumn")


def test_a_column_that_is_not_there_is_refused_by_name(config):
    mapped = ImageDataConfig(path=config.path, source=config.source, image_size=WIDTH, columns={"image": "pixels"})
    with pytest.raises(DataError, match=r"pixels|columns|no records"):
        open_source(mapped, split="train")


def test_train_and_validation_divide_the_split_between_them(config):
    parts = {part: open_images(config, part=part) for part in ("train", "validation", "test")}
    keys = {part: [dataset[i]["key"] for i in range(len(dataset))] for part, dataset in parts.items()}
    assert sorted(keys["train"] + keys["validation"]) == list(range(NUM_TRAIN))
    assert len(keys["validation"]) == 1
    assert len(keys["test"]) == NUM_TEST


def test_batches_agree_with_single_examples(config):
    dataset = open_images(config, part="train")
    batch = next(make_loader(dataset, batch_size=5, seed=3))
    by_key = {dataset[i]["key"]: dataset[i] for i in range(len(dataset))}
    assert batch["image"].shape == (5, 1, WIDTH, WIDTH)
    for image, label, key in zip(batch["image"], batch["label"], batch["key"], strict=True):
        torch.testing.assert_close(image, by_key[int(key)]["image"], rtol=0, atol=0)
        assert int(label) == by_key[int(key)]["label"]


def test_a_damaged_file_is_an_error_of_ours_at_every_byte(config, tmp_path):
    """One bit flipped, or the end cut off, at many places: a source opens or refuses, but never fails otherwise."""
    files = sorted(path for path in (tmp_path / "set").rglob("*") if path.is_file())
    generator = np.random.Generator(np.random.PCG64(0))
    outcomes = []
    for trial in range(60):
        path = files[trial % len(files)]
        good = path.read_bytes()
        place = int(generator.integers(len(good)))
        flipped = bytes([good[place] ^ (1 << int(generator.integers(8)))])
        path.write_bytes(good[:place] if trial % 3 == 0 else good[:place] + flipped + good[place + 1 :])
        try:
            dataset = open_images(config, part="train")
            for index in range(len(dataset)):
                dataset[index]
            outcomes.append("accepted")
        except DataError:  # includes BadRecord; any other exception fails the test
            outcomes.append("refused")
        path.write_bytes(good)
    assert "refused" in outcomes
