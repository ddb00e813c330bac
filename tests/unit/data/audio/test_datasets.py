"""Parts, filters, lengths and crops of recordings."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from latentlm.data.audio import AudioDataConfig, AugmentationConfig, active_level_db, open_audio
from latentlm.data.records import BadRecord, DataError

RATE = 8000
NUM = 40


def keys(dataset) -> list[int]:
    return [dataset[index]["key"] for index in range(len(dataset))]


@pytest.fixture
def config(tmp_path, encoded) -> AudioDataConfig:
    """Forty ramps of 0.5 s or 1.5 s of five speakers, each sample of which tells its place."""
    ramps = [np.arange(RATE * (3 if n % 4 == 0 else 1) // 2, dtype=np.int16) for n in range(NUM)]
    columns = {
        "sound": [encoded(ramp) for ramp in ramps],
        "said": [None if n % 10 == 9 else f"text {n}" for n in range(NUM)],
        "speaker": [f"s{n % 5}" for n in range(NUM)],
        "digit": [n % 3 for n in range(NUM)],
        "split_kind": ["new" if n % 2 else "seen" for n in range(NUM)],
        "num_samples": [len(ramp) for ramp in ramps],
        "sample_rate": [RATE] * NUM,
    }
    for name in ("train", "test"):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=16)
    return AudioDataConfig(
        path=str(tmp_path / "train.parquet"),
        test_path=str(tmp_path / "test.parquet"),
        columns={"audio": "sound", "text": "said"},
        sample_rate=RATE,
        validation_ratio=0.2,
    )


def test_an_example_has_the_contracts_fields(config):
    example = open_audio(config, part="test")[9]
    assert example.keys() == {"audio", "num_samples", "key", "text", "speaker"}
    assert example["audio"].dtype == torch.float32
    assert (example["num_samples"], example["text"], example["speaker"]) == (4000, "", "s4")


@pytest.mark.parametrize("split_by", ["record", "speaker"])
def test_train_and_validation_divide_the_split(config, split_by):
    config = replace(config, split_by=split_by)
    parts = {part: open_audio(config, part=part) for part in ("train", "validation")}
    assert sorted(keys(parts["train"]) + keys(parts["validation"])) == list(range(NUM))
    assert len(parts["validation"]) == 8
    shared = set(parts["train"].speakers) & set(parts["validation"].speakers)
    assert not shared if split_by == "speaker" else shared


def test_filters_never_move_a_recording_to_the_other_part(config):
    filtered = replace(config, only_speakers=["s1", "s2"], filters={"digit": 1, "split_kind": "new"}, require_text=True)
    for part in ("train", "validation"):
        found = [n for n in keys(open_audio(config, part=part)) if n % 5 in (1, 2) and n % 3 == 1 and n % 2]
        expected = [n for n in found if n % 10 != 9]
        if expected:
            assert keys(open_audio(filtered, part=part)) == expected


def test_the_test_part_has_filters_of_its_own(config):
    config = replace(config, filters={"split_kind": "seen"}, test_filters={"split_kind": "new"})
    assert all(key % 2 for key in keys(open_audio(config, part="test")))
    assert all(key % 2 == 0 for key in keys(open_audio(config, part="train")))


def test_excluded_speakers_are_in_no_part(config):
    config = replace(config, exclude_speakers=["s0"])
    for part in ("train", "validation", "test"):
        assert "s0" not in open_audio(config, part=part).speakers


def test_too_long_and_too_short_are_left_out_where_lengths_are_known(config):
    assert all(key % 4 for key in keys(open_audio(replace(config, max_seconds=1.0), part="test")))
    assert all(key % 4 == 0 for key in keys(open_audio(replace(config, min_seconds=1.0), part="test")))


def test_where_lengths_are_not_known_they_are_bad_records(config, tmp_path):
    table = pq.read_table(config.path).drop_columns(["num_samples"])
    pq.write_table(table, tmp_path / "unknown.parquet")
    config = replace(config, path=str(tmp_path / "unknown.parquet"), validation_ratio=0.0)
    with pytest.raises(BadRecord, match=r"1\.5 s of sound, above the limit of 1 s"):
        open_audio(replace(config, max_seconds=1.0), part="train")[0]
    with pytest.raises(BadRecord, match=r"0\.50 s, below min_seconds=1"):
        open_audio(replace(config, min_seconds=1.0), part="train")[1]
    with pytest.raises(BadRecord, match=r"0\.50 s, below min_seconds=1"):
        open_audio(replace(config, min_seconds=1.0, crop_seconds=0.1), part="train")[1]


def test_unknown_columns_and_empty_parts_are_refused(config):
    with pytest.raises(DataError, match=r"has no column 'mood'.*split_kind"):
        open_audio(replace(config, filters={"mood": "glad"}), part="train")
    with pytest.raises(DataError, match="nothing is left of the part 'test'"):
        open_audio(replace(config, only_speakers=["nobody"]), part="test")


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_crops_are_stretches_keyed_by_seed_epoch_and_key(config, cache_mib):
    config = replace(config, crop_seconds=0.25, cache_mib=cache_mib)
    dataset, again = open_audio(config, part="test"), open_audio(config, part="test")
    starts = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        for index in (3, 0, 3, 8):
            crop = dataset.read(index, seed=seed, epoch=epoch)
            ramp = torch.round(crop["audio"] * 32768).long()
            assert crop["num_samples"] == len(ramp) == 2000
            assert torch.equal(ramp, torch.arange(2000) + ramp[0])
            starts.append(int(ramp[0]))
            assert torch.equal(crop["audio"], again.read(index, seed=seed, epoch=epoch)["audio"])
    assert starts[0] == starts[2]
    assert len(set(starts)) == 9  # three recordings, three draws


def test_crops_begin_anywhere(config):
    dataset = open_audio(replace(config, crop_seconds=0.25), part="test")
    starts = [float(dataset.read(1, seed=0, epoch=epoch)["audio"][0]) * 32768 for epoch in range(100)]
    # 100 uniform draws over 2000 places: both outer fifths are empty with a chance of 0.8 ** 100.
    assert min(starts) < 400
    assert max(starts) > 1600


def test_short_recordings_are_padded_and_say_so(config):
    example = open_audio(replace(config, crop_seconds=1.0), part="test")[1]
    assert (len(example["audio"]), example["num_samples"]) == (8000, 4000)
    assert not example["audio"][4000:].any()


def test_crops_of_other_rates_have_exactly_their_length(config):
    for rate in (22050, 11025, 44100, 16000):
        dataset = open_audio(replace(config, sample_rate=rate, crop_seconds=0.3), part="test")
        assert {dataset[index]["num_samples"] for index in range(5)} == {round(0.3 * rate)}


def test_crops_can_avoid_silence(tmp_path, write, tone, encoded):
    waveform = np.concatenate([np.zeros(RATE, dtype=np.float32), tone(440, 1.0, RATE)])
    write(tmp_path / "set" / "a.wav", encoded(waveform, RATE))
    config = AudioDataConfig(path=str(tmp_path / "set"), sample_rate=RATE, crop_seconds=0.5, validation_ratio=0.0)

    def num_silent(attempts: int) -> int:
        dataset = open_audio(replace(config, crop_attempts=attempts), part="train")
        return sum(not dataset.read(0, seed=0, epoch=epoch)["audio"].any() for epoch in range(30))

    # A third of the places are silent; of eight tries none is heard in one of 6,500 crops.
    assert num_silent(1) > 3
    assert num_silent(8) == 0


def test_levels_are_brought_together(config):
    dataset = open_audio(replace(config, level_db=-30.0), part="test")
    levels = [active_level_db(dataset[index]["audio"].numpy(), RATE) for index in range(6)]
    np.testing.assert_allclose(levels, -30.0, atol=1e-3)


def test_only_training_is_augmented(config):
    config = replace(config, augmentation=AugmentationConfig(gain_db=6.0))
    for part, changes in (("train", True), ("validation", False), ("test", False)):
        dataset = open_audio(config, part=part)
        batch = {"audio": dataset[0]["audio"][None], "num_samples": torch.tensor([4000]), "key": torch.tensor([1])}
        augmented = dataset.augment(batch, seed=0, epochs=torch.tensor([0]))
        assert torch.equal(augmented["audio"], batch["audio"]) != changes


def test_changing_an_example_does_not_change_the_cache(config):
    dataset = open_audio(replace(config, cache_mib=1), part="test")
    dataset[0]["audio"].zero_()
    assert dataset[0]["audio"].any()


def test_the_cache_forgets_the_oldest(config, monkeypatch):
    import latentlm.data.audio.datasets as module

    decoded = []
    real = module.decode_audio

    def counting(data, name, **options):
        decoded.append(name)
        return real(data, name, **options)

    monkeypatch.setattr(module, "decode_audio", counting)
    dataset = open_audio(replace(config, cache_mib=1), part="test")  # holds 1 MiB / 16 KB = 65 clips of 0.5 s
    for index in (1, 2, 1, 2):
        dataset[index]
    assert len(decoded) == 2
    for index in [*range(NUM)] * 2:
        dataset[index]
    # 10 clips of 48 KB and 30 of 16 KB are 0.92 MiB: all fit.
    assert len(decoded) == NUM


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0),
        ("crop_seconds", 0.0),
        ("crop_attempts", 0),
        ("min_seconds", 100.0),
        ("validation_ratio", 1.0),
        ("max_bad_records", -1),
        ("cache_mib", -1),
        ("columns", {"picture": "x"}),
    ],
)
def test_impossible_settings_are_refused_by_name(config, field, value):
    with pytest.raises(ValueError, match=field):
        replace(config, **{field: value})
