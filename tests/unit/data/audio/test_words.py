"""Utterances joined from single words."""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from latentlm.data.audio import (
    AudioDataConfig,
    WordPairs,
    WordStringConfig,
    WordStrings,
    active_level_db,
    make_audio_loader,
    open_audio,
)
from latentlm.data.records import DataError

RATE = 8000
WORDS = ("zero", "one", "two", "three")
TAKES = 4
CONFIG = WordStringConfig(num_utterances=60, min_words=2, max_words=4)


@pytest.fixture
def data(tmp_path, encoded, tone) -> AudioDataConfig:
    """Three speakers of very different levels say four words four times each; every clip has a length of its own."""
    rows = list(itertools.product(("a", "b", "c"), WORDS, range(TAKES)))
    waves = [tone(300, 0.1 + 0.002 * n, RATE, peak=10.0 ** -(n % 3)) for n in range(len(rows))]
    columns = {
        "audio": [encoded(wave) for wave in waves],
        "word": [word for _, word, _ in rows],
        "speaker": [speaker for speaker, _, _ in rows],
    }
    pq.write_table(pa.table(columns), tmp_path / "words.parquet")
    return AudioDataConfig(
        path=str(tmp_path / "words.parquet"), columns={"text": "word"}, sample_rate=RATE, validation_ratio=0.0
    )


@pytest.fixture
def clips(data):
    return open_audio(data, part="train")


def test_an_utterance_holds_its_words_where_it_says(clips):
    strings = WordStrings(clips, replace(CONFIG, level_db=None))
    for index in range(20):
        example = strings[index]
        assert example["text"].split() == example["words"] == [clips.texts[clip] for clip in example["clips"]]
        assert {clips.speakers[clip] for clip in example["clips"]} == {example["speaker"]}
        assert example["num_samples"] == len(example["audio"])
        silence = torch.ones(len(example["audio"]), dtype=torch.bool)
        for clip, (start, stop) in zip(example["clips"], example["boundaries"].tolist(), strict=True):
            assert torch.equal(example["audio"][start:stop], clips[clip]["audio"])
            silence[start:stop] = False
        assert not example["audio"][silence].any()
        gaps = np.diff(np.concatenate([[0], example["boundaries"].flatten(), [len(silence)]]))[::2] / RATE
        assert (gaps >= CONFIG.min_gap_seconds - 1 / RATE).all()
        assert (gaps <= CONFIG.max_gap_seconds + 1 / RATE).all()


def test_levels_of_words_are_brought_together(clips):
    example = WordStrings(clips, replace(CONFIG, level_db=-25.0))[0]
    for start, stop in example["boundaries"].tolist():
        # A word is not a whole number of level frames: the last, shorter one does not count.
        assert active_level_db(example["audio"][start:stop].numpy(), RATE) == pytest.approx(-25.0, abs=0.01)


def test_all_counts_words_and_speakers_occur_and_no_clip_twice(clips):
    examples = [WordStrings(clips, CONFIG)[index] for index in range(40)]
    assert {len(example["words"]) for example in examples} == {2, 3, 4}
    assert {example["speaker"] for example in examples} == {"a", "b", "c"}
    assert {word for example in examples for word in example["words"]} == set(WORDS)
    assert all(len(set(example["clips"])) == len(example["clips"]) for example in examples)


def test_an_utterance_is_a_function_of_seed_epoch_and_index(clips):
    strings, again = WordStrings(clips, CONFIG), WordStrings(clips, CONFIG)
    first = strings.read(3, seed=1, epoch=2)
    assert torch.equal(first["audio"], again.read(3, seed=1, epoch=2)["audio"])
    others = [strings.read(3, seed=1, epoch=3), strings.read(3, seed=2, epoch=2), strings.read(4, seed=1, epoch=2)]
    others.append(WordStrings(clips, replace(CONFIG, seed=5)).read(3, seed=1, epoch=2))
    assert all(other["clips"] != first["clips"] for other in others)


def test_several_speakers_may_share_an_utterance(clips):
    strings = WordStrings(clips, replace(CONFIG, same_speaker=False))
    assert max(len({clips.speakers[clip] for clip in strings[index]["clips"]}) for index in range(20)) > 1


def test_a_pair_is_one_speaker_and_no_shared_recording(clips):
    pairs = WordPairs(clips, CONFIG, min_prompt_words=5, max_prompt_words=6)
    for index in range(12):
        example = pairs[index]
        assert not set(example["clips"]) & set(example["prompt_clips"])
        assert {clips.speakers[clip] for clip in example["prompt_clips"]} == {example["speaker"]}
        assert 5 <= len(example["prompt_words"]) <= 6
        assert example["prompt_num_samples"] == len(example["prompt_audio"])
    assert pairs[7]["text"] == WordStrings(clips, CONFIG)[7]["text"]


def test_a_word_without_takes_left_gives_way_to_another(clips):
    pairs = WordPairs(clips, replace(CONFIG, min_words=8, max_words=8), min_prompt_words=8, max_prompt_words=8)
    example = pairs[0]  # all sixteen clips of the speaker
    assert len({*example["clips"], *example["prompt_clips"]}) == len(WORDS) * TAKES


def test_joined_words_go_through_the_loader(clips):
    batch = next(make_audio_loader([WordPairs(clips, CONFIG)], batch_size=4, seed=0))
    assert batch["audio"].shape == (4, int(batch["num_samples"].max()))
    assert batch["prompt_audio"].shape == (4, int(batch["prompt_num_samples"].max()))
    assert [len(words) for words in batch["words"]] == [len(marks) for marks in batch["boundaries"]]


def test_what_cannot_be_joined_is_refused(data, clips):
    with pytest.raises(DataError, match="leave crop_seconds out"):
        WordStrings(open_audio(replace(data, crop_seconds=0.1), part="train"), CONFIG)
    with pytest.raises(DataError, match="has no column 'text'"):
        WordStrings(open_audio(replace(data, columns={}), part="train"), CONFIG)
    with pytest.raises(DataError, match="fewer clips than an example's 17"):
        WordStrings(clips, replace(CONFIG, max_words=17))
    with pytest.raises(ValueError, match="same_speaker"):
        WordPairs(clips, replace(CONFIG, same_speaker=False))
    for field, value in (("num_utterances", 0), ("min_words", 5), ("min_gap_seconds", 1.0)):
        with pytest.raises(ValueError, match=field):
            replace(CONFIG, **{field: value})
