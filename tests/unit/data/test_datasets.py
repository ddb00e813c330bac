"""The image data set: its config, its parts, where it looks, and a folder full of broken files."""

import itertools
import logging

import numpy as np
import pytest
import torch
from hostile_files import huge_png

from latentlm.data import DataError, ImageDataConfig, TooManyBadRecords, make_loader, open_images
from latentlm.data.datasets import resolve_path


def digits(**changes) -> ImageDataConfig:
    return ImageDataConfig(**{"source": "digits", "image_size": 8, "num_channels": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"num_channels": 4}, "num_channels is 4"),
        ({"validation_ratio": 1.0}, "validation_ratio is 1.0"),
        ({"max_bad_records": -1}, "max_bad_records is -1"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"max_pixels": 2**30}, "max_pixels is 1073741824"),
        ({"source": "auto"}, "give path"),
        ({"columns": {"picture": "x"}}, "columns maps .'picture'."),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_in_a_sentence(changes, reason):
    with pytest.raises(ValueError, match=reason):
        digits(**changes)


def test_the_digits_are_divided_into_three_parts_without_overlap():
    parts = {part: open_images(digits(), part=part) for part in ("train", "validation", "test")}
    assert {part: len(dataset) for part, dataset in parts.items()} == {"train": 1195, "validation": 63, "test": 539}
    keys = [dataset[i]["key"] for dataset in parts.values() for i in range(len(dataset))]
    assert sorted(keys) == list(range(1797))
    assert parts["train"].num_classes == 10
    assert parts["train"].labels.tolist() == [parts["train"][i]["label"] for i in range(1195)]


def test_the_split_seed_chooses_the_validation_pictures():
    def validation_keys(seed: int) -> list[int]:
        dataset = open_images(digits(split_seed=seed), part="validation")
        return [dataset[i]["key"] for i in range(len(dataset))]

    assert validation_keys(0) == validation_keys(0)
    assert validation_keys(0) != validation_keys(1)


def test_a_part_that_would_be_empty_is_refused():
    with pytest.raises(DataError, match="part 'validation' is empty"):
        open_images(digits(validation_ratio=0.0), part="validation")
    assert len(open_images(digits(validation_ratio=0.0), part="train")) == 1258


@pytest.mark.parametrize("num_channels", [1, 3])
def test_batches_taken_at_once_equal_pictures_loaded_one_by_one(num_channels):
    dataset = open_images(digits(num_channels=num_channels), part="train")
    batch = dataset.take([5, 0, 700])
    assert batch is not None
    assert batch["image"].shape == (3, num_channels, 8, 8)
    assert batch["image"].is_contiguous()
    for row, index in enumerate((5, 0, 700)):
        example = dataset[index]
        assert torch.equal(batch["image"][row], example["image"])
        assert (batch["label"][row], batch["key"][row]) == (example["label"], example["key"])


def test_pictures_of_another_size_are_resized_and_cover_the_range():
    dataset = open_images(digits(image_size=12), part="train")
    assert dataset.take([0]) is None
    image = dataset[0]["image"]
    assert image.shape == (1, 12, 12)
    assert image.dtype == torch.float32
    assert -1 <= image.min() < -0.9
    assert 0.9 < image.max() <= 1


@pytest.mark.parametrize("index", [-1, 1195])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match="of 1195 pictures"):
        open_images(digits(), part="train")[index]


@pytest.mark.parametrize("image_size", [8, 12])
def test_flips_happen_in_training_only_and_are_the_same_after_a_resume(image_size):
    config = digits(image_size=image_size, horizontal_flip=True)
    plain = digits(image_size=image_size)

    def batches(config: ImageDataConfig, part, start: int = 0) -> list[torch.Tensor]:
        loader = make_loader(open_images(config, part=part), batch_size=64, seed=3, start_batch=start)
        return [next(loader)["image"] for _ in range(3 - start)]

    assert torch.equal(batches(config, "validation")[0], batches(plain, "validation")[0])
    flipped, unflipped = batches(config, "train"), batches(plain, "train")
    changed = (flipped[0] != unflipped[0]).flatten(1).any(1)
    assert torch.equal(flipped[0][changed], unflipped[0][changed].flip(-1))
    assert 16 < int(changed.sum()) < 48  # half of 64; 4 standard deviations are 16
    assert torch.equal(batches(config, "train", start=2)[0], flipped[2])


def test_a_relative_path_is_looked_for_here_and_then_in_the_data_root(tmp_path, monkeypatch, write):
    here, root = tmp_path / "here", tmp_path / "root"
    write(root / "set" / "1.png")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("LATENTLM_DATA", raising=False)
    with pytest.raises(DataError, match=r"here/set; relative paths are also looked for in \$LATENTLM_DATA"):
        resolve_path("set")
    monkeypatch.setenv("LATENTLM_DATA", str(root))
    assert resolve_path("set") == root / "set"
    write(here / "set" / "1.png")
    assert resolve_path("set").absolute() == here / "set"
    with pytest.raises(DataError, match=r"no data at .*here/other or .*root/other"):
        resolve_path("other")


def test_a_test_path_is_a_data_set_of_its_own(tmp_path, write, png):
    for i in range(4):
        write(tmp_path / "train" / f"{i}.png", png(i))
    write(tmp_path / "elsewhere" / "0.png", png(99))
    config = digits(source="auto", path=str(tmp_path / "train"), test_path=str(tmp_path / "elsewhere"))
    dataset = open_images(config, part="test")
    assert len(dataset) == 1
    assert dataset[0]["image"].unique().tolist() == pytest.approx([99 / 127.5 - 1], abs=1e-6)  # float32


def test_data_without_images_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no images, only text"):
        open_images(ImageDataConfig(path=str(tmp_path / "a.parquet"), image_size=4), part="train")


@pytest.fixture
def broken_folder(tmp_path, write, png):
    """Ten good pictures, one of a single pixel, and five files that are none."""
    from PIL import Image

    for i in range(10):
        write(tmp_path / f"good_{i}.png", png(20 * i))
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "one_pixel.png")
    generator = np.random.Generator(np.random.PCG64(0))
    Image.fromarray(generator.integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(tmp_path / "truncated.jpg")
    write(tmp_path / "truncated.jpg", (tmp_path / "truncated.jpg").read_bytes()[:1500])
    write(tmp_path / "empty.png", b"")
    write(tmp_path / "text.png", b"shopping list: milk, eggs")
    write(tmp_path / "huge.png", huge_png(20000))
    write(tmp_path / "folder.png" / "inside.png")  # a folder with the name of a picture: its content counts
    (tmp_path / "linked.png").symlink_to("/etc/hostname")
    return tmp_path


def test_a_folder_with_broken_files_trains_on_the_good_ones_and_names_the_bad_ones(broken_folder, caplog):
    config = ImageDataConfig(path=str(broken_folder), source="image_folder", image_size=16, validation_ratio=0.0)
    loader = make_loader(open_images(config, part="train"), batch_size=8, seed=0)
    with caplog.at_level(logging.WARNING, logger="latentlm.data"):
        batches = [next(loader) for _ in range(8)]
    names = sorted(path.relative_to(broken_folder).as_posix() for path in broken_folder.rglob("*.*g") if path.is_file())
    expected = {
        "empty.png": "empty file",
        "text.png": "not an image",
        "truncated.jpg": "damaged image",
        "huge.png": "above the limit of 16,777,216 pixels",
        "linked.png": "link out of",
    }
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(expected)
    for name, reason in expected.items():
        assert any(f"/{name}: " in message and reason in message for message in messages), name
    good = {index for index, name in enumerate(n for n in names if n != "linked.png") if name not in expected}
    assert {key for batch in batches for key in batch["key"].tolist()} == good


def test_the_folder_with_broken_files_stops_the_run_when_too_many_are_bad(broken_folder):
    config = ImageDataConfig(
        path=str(broken_folder), source="image_folder", image_size=16, validation_ratio=0.0, max_bad_records=3
    )
    loader = make_loader(open_images(config, part="train"), batch_size=8, seed=0)
    with pytest.raises(TooManyBadRecords, match="max_bad_records is 3") as caught:
        list(itertools.islice(loader, 8))
    listed = str(caught.value).splitlines()[1:]
    assert len(listed) > 3
    assert all(str(broken_folder) in line for line in listed)
