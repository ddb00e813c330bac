"""Recordings as documents: encoded once, kept, and modelled with text by the objective of documents."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_speech import HOP_LENGTH, RECORDED_RATE, save_tiny_recordings, tiny_speech_recipe, tiny_speech_tokenizer

from latentlm.catalog import build
from latentlm.config import from_mapping
from latentlm.data.audio import AudioDataConfig
from latentlm.data.documents import StoredLatents
from latentlm.data.records import DataError
from latentlm.training import speech_documents
from latentlm.training.speech_documents import SpeechSourceConfig, open_speech_documents


def config_of(folder: Path, **changes: object) -> SpeechSourceConfig:
    mapping = {"recordings": {"path": str(folder), "sample_rate": RECORDED_RATE, "validation_ratio": 0.25}, **changes}
    return from_mapping(SpeechSourceConfig, mapping, where="speech")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    return save_tiny_recordings(tmp_path / "recordings")


def test_recordings_become_documents_of_text_and_latents(recordings: Path) -> None:
    tokenizer = tiny_speech_tokenizer(sample_rate=RECORDED_RATE)
    parts = {
        part: open_speech_documents(config_of(recordings), tokenizer, part=part) for part in ("train", "validation")
    }
    whole = [document for documents in parts.values() for document in documents]
    # Eleven clips with a text are spoken with and without it; the twelfth without.
    assert len(whole) == 2 * 11 + 1
    for document in whole:
        latents = document.parts[-1]
        assert isinstance(latents, StoredLatents)
        assert len(latents.mean) == tokenizer.num_frames(document.fields["num_samples"])
        assert document.parts[:-1] == ((document.fields["text"],) if document.fields["template"] == 0 else ())
    assert min(document.fields["num_samples"] for document in whole) < 2 * HOP_LENGTH + 30
    texts = {name: {one.fields.get("text") for one in documents} for name, documents in parts.items()}
    assert not texts["train"] & texts["validation"]


def test_a_cache_gives_the_same_documents_without_encoding_again(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_speech_tokenizer(sample_rate=RECORDED_RATE)
    in_memory = open_speech_documents(config_of(recordings), tokenizer, part="train")
    cached = config_of(recordings, cache=str(tmp_path / "cache"))
    first = open_speech_documents(cached, tokenizer, part="train")
    monkeypatch.setattr(speech_documents, "encode_recordings", None)  # would fail if it were called
    again = open_speech_documents(cached, tokenizer, part="train")
    for documents in (first, again):
        assert documents.fingerprint() == in_memory.fingerprint()
        for one, other in zip(documents, in_memory, strict=True):
            assert one.key == other.key
            assert torch.equal(one.parts[-1].mean, other.parts[-1].mean)


def test_an_interrupted_cache_is_finished(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, cached = (
        tiny_speech_tokenizer(sample_rate=RECORDED_RATE),
        config_of(recordings, cache=str(tmp_path / "cache")),
    )

    class Stopped(Exception):
        pass

    class ShortWriter(speech_documents.LatentSequenceWriter):
        def __init__(self, folder: Path, **options: str) -> None:
            super().__init__(folder, **options, shard_size=2)

        def append(self, clip, *, position: int) -> None:
            super().append(clip, position=position)
            if position >= 5:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(speech_documents, "LatentSequenceWriter", ShortWriter)
        with pytest.raises(Stopped):
            open_speech_documents(cached, tokenizer, part="train")
    finished = open_speech_documents(cached, tokenizer, part="train")
    expected = open_speech_documents(config_of(recordings), tokenizer, part="train")
    assert [one.key for one in finished] == [one.key for one in expected]


def test_augmented_copies_are_other_sounds_of_the_same_text(recordings: Path) -> None:
    tokenizer = tiny_speech_tokenizer(sample_rate=RECORDED_RATE)
    config = config_of(
        recordings,
        recordings={"path": str(recordings), "sample_rate": RECORDED_RATE, "augmentation": {"gain_db": 6.0}},
        num_augmented_copies=2,
        templates=["{text}{speech}"],
    )
    documents = list(open_speech_documents(config, tokenizer, part="train"))
    by_text: dict[str, list] = {}
    for document in documents:
        by_text.setdefault(document.fields["text"], []).append(document.parts[-1].mean)
    for original, *copies in by_text.values():
        assert len(copies) == 2
        assert all(copy.shape == original.shape for copy in copies)
        assert not torch.equal(copies[0], original)
        assert not torch.equal(copies[0], copies[1])
    held_out = list(open_speech_documents(config, tokenizer, part="validation"))
    assert all(document.fields["copy"] == 0 for document in held_out)


def test_bad_recordings_are_left_out_up_to_a_limit(recordings: Path) -> None:
    tokenizer = tiny_speech_tokenizer(sample_rate=RECORDED_RATE)
    good = len(open_speech_documents(config_of(recordings), tokenizer, part="train"))
    for number in range(4):
        (recordings / "speaker0" / f"bad{number}.wav").write_bytes(b"not a sound")
    assert good > 0
    with pytest.raises(DataError):
        open_speech_documents(
            config_of(
                recordings, recordings={"path": str(recordings), "sample_rate": RECORDED_RATE, "max_bad_records": 1}
            ),
            tokenizer,
            part="train",
        )


def test_what_makes_no_sense_is_refused(recordings: Path) -> None:
    with pytest.raises(ValueError, match="trained at 2400 Hz"):
        open_speech_documents(
            config_of(recordings, recordings={"path": str(recordings), "sample_rate": 8000}),
            tiny_speech_tokenizer(sample_rate=RECORDED_RATE),
            part="train",
        )
    recordings_config = AudioDataConfig(path="x", crop_seconds=1.0)
    with pytest.raises(ValueError, match="crop_seconds"):
        SpeechSourceConfig(recordings=recordings_config)
    with pytest.raises(ValueError, match="copies recordings unchanged"):
        SpeechSourceConfig(recordings=dataclasses.replace(recordings_config, crop_seconds=None), num_augmented_copies=1)


def test_the_objective_speaks_and_writes(tmp_path: Path) -> None:
    objective, make_batches, recipe = build(tiny_speech_recipe(tmp_path))
    assert (
        recipe.model.modalities["speech"].tokenizer_fingerprint
        == tiny_speech_tokenizer(sample_rate=RECORDED_RATE).fingerprint()
    )
    batch = objective.prepare(next(make_batches(0)), step=0, seed=0)
    losses = objective.losses(batch, step=0, totals=objective.counts(batch))["model"]
    assert {"lm", "diffusion/speech", "continue/speech"} <= losses.keys()
    losses["total"].backward()
    assert any(parameter.grad is not None for parameter in objective.model.parameters())
    assert all(parameter.grad is None for parameter in objective.speech_tokenizer.parameters())
    held_out = objective.evaluations()[0](objective, 0)
    assert held_out["held_out/diffusion/speech"] > 0


def test_latents_are_sampled_anew_at_every_step(tmp_path: Path) -> None:
    objective, make_batches, _ = build(tiny_speech_recipe(tmp_path, drop_cond_prob=0.0))
    raw = next(make_batches(0))
    first, again, later = (objective.prepare(raw, step=step, seed=0)[0].latents["speech"] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_a_model_without_a_speech_tokenizer_is_refused_with_the_flag_that_mends_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--speech_tokenizer"):
        build(tiny_speech_recipe(tmp_path, speech_tokenizer=None))
