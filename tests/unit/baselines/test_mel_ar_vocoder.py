"""The vocoder: frames by a formula, sound by a decoder that streams, and its training as a speech tokenizer's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_mel_ar import FRAME_LENGTH, NUM_MELS, tiny_vocoder
from tiny_speech import sound, split_at
from tiny_tones import SAMPLE_RATE, write_tones

from latentlm.baselines.mel_ar import MelConfig, MelVocoder, MelVocoderRecipe, build_mel_vocoder
from latentlm.baselines.mel_ar.features import LogMel
from latentlm.config import from_mapping
from latentlm.data.audio import AudioDataConfig
from latentlm.generation.voices import make_voice
from latentlm.tokenizers.base import LatentTokenizer
from latentlm.training.trainer import Trainer


def test_a_tone_lights_the_filter_that_it_lies_in() -> None:
    log_mel = LogMel(MelConfig(window_length=512, max_frequency=3800.0), num_mels=40, sample_rate=8000, hop_length=128)
    seconds = torch.arange(8000) / 8000
    for frequency in (300.0, 1000.0, 2500.0):
        frames = log_mel(torch.sin(2 * math.pi * frequency * seconds)[None])[0]
        assert frames.shape == (63, 40)  # ceil(8000 / 128)
        loudest = int(frames[20:40].mean(dim=0).argmax())
        bin_of_tone = round(frequency / (4000 / 256))
        assert int(log_mel.filters[:, bin_of_tone].argmax()) == loudest


def test_silence_lies_on_the_floor() -> None:
    log_mel = LogMel(MelConfig(window_length=64, floor=1e-4), num_mels=6, sample_rate=2400, hop_length=30)
    torch.testing.assert_close(log_mel(torch.zeros(1, 95)), torch.full((1, 4, 6), -4.0))


def test_a_frame_is_centred_on_its_first_sample() -> None:
    log_mel = LogMel(MelConfig(window_length=64, min_frequency=50.0), num_mels=6, sample_rate=2400, hop_length=30)
    click = torch.zeros(1, 300)
    click[0, 150] = 1.0
    assert int(log_mel(click)[0].sum(dim=1).argmax()) == 5


def test_to_voices_and_caches_it_is_a_tokenizer_without_noise() -> None:
    vocoder = tiny_vocoder()
    assert isinstance(vocoder, LatentTokenizer)
    waveforms = 0.5 * sound(2, 100)
    posterior = vocoder.posterior(waveforms)
    assert posterior.log_std is None
    assert posterior.mean.shape == (2, 4, NUM_MELS)
    sampled = vocoder.sample_keyed(posterior, 0, torch.arange(2))
    assert torch.equal(sampled, vocoder.encode(waveforms, sample=False))
    voice = make_voice(vocoder, waveforms[0])
    torch.testing.assert_close(voice.mean, posterior.mean[0])


def test_frames_are_of_unit_variance_filter_by_filter() -> None:
    frames = tiny_vocoder().encode(0.5 * sound(8, 600), sample=False).flatten(0, 1)  # the clips of its statistics
    torch.testing.assert_close(frames.mean(dim=0), torch.zeros(NUM_MELS), rtol=0, atol=1e-5)
    torch.testing.assert_close(frames.std(dim=0, correction=0), torch.ones(NUM_MELS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 2, 3), (0, 7), (4, 0, 1)])
def test_sound_of_chunks_equals_that_of_the_whole(sizes: tuple[int, ...]) -> None:
    vocoder = tiny_vocoder()
    frames = torch.randn(2, 11, NUM_MELS, generator=torch.Generator().manual_seed(0))
    state, parts = vocoder.decoder_state(2), []
    for chunk in split_at(frames, sizes):
        part, state = vocoder.decode_step(chunk, state)
        parts.append(part)
    whole = vocoder.decode(frames)
    assert whole.shape == (2, 11 * FRAME_LENGTH)
    # The order of float sums differs between chunks and the whole.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="half a window ahead"):
        vocoder.encoder_state(1)


def test_any_length_comes_back_at_its_own_length() -> None:
    vocoder = tiny_vocoder()
    for length in (1, FRAME_LENGTH, 3 * FRAME_LENGTH + 1):
        frames = vocoder.encode(0.5 * sound(1, length), sample=False)
        assert vocoder.decode(frames, num_samples=length).shape == (1, length)


def test_it_is_saved_with_its_statistics(tmp_path: Path) -> None:
    vocoder = tiny_vocoder()
    vocoder.save_pretrained(tmp_path / "vocoder")
    loaded = MelVocoder.from_pretrained(tmp_path / "vocoder")
    assert loaded.fingerprint() == vocoder.fingerprint()
    waveforms = 0.5 * sound(1, 200)
    assert torch.equal(loaded.encode(waveforms, sample=False), vocoder.encode(waveforms, sample=False))
    with pytest.raises(ValueError, match="no latent statistics"):
        tiny_vocoder(measured=False).decode(torch.zeros(1, 1, NUM_MELS))


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AudioDataConfig:
    return write_tones(tmp_path_factory.mktemp("tones"))


def recipe_of(data: AudioDataConfig, *, num_steps: int, **tokenizer: Any) -> MelVocoderRecipe:
    mapping = {
        "kind": "mel_vocoder",
        "data": {
            "path": data.path,
            "format": "audio_folder",
            "sample_rate": SAMPLE_RATE,
            "crop_seconds": 0.2,
            "validation_ratio": 0.25,
        },
        "tokenizer": {
            "sample_rate": SAMPLE_RATE,
            "latent_dim": 20,
            "mel": {"window_length": 160, "min_frequency": 50.0},
            "spectrum": {"fft_size": 40, "hop_length": 10},
            "channels": [32, 32],
            "depths": [1, 1],
            "strides": [4],
            **tokenizer,
        },
        "losses": {"mel": {"window_lengths": [32, 128], "num_mels": [5, 20]}},
        "optim": {"lr": 3.0e-3, "num_warmup_steps": 0},
        "trainer": {
            "num_steps": num_steps,
            "batch_size": 4,
            "ema_half_life_ratio": 0.1,
            "device": "cpu",
            "tensorboard": False,
        },
    }
    return from_mapping(MelVocoderRecipe, mapping)


def test_training_teaches_tones_and_leaves_a_vocoder_with_its_report(data: AudioDataConfig, tmp_path: Path) -> None:
    objective, loader, recipe = build_mel_vocoder(recipe_of(data, num_steps=60))
    assert objective.tokenizer.statistics.is_measured  # before the first step: the decoder reads normalised frames
    untrained = objective.evaluations()[0](objective, 0)["mel_distance_vocoded"]
    Trainer(objective, loader, recipe.trainer, tmp_path, recipe=recipe, evaluations=objective.evaluations()).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["evaluation"]["mel_distance_vocoded"] < 0.7 * untrained
    report = json.loads((tmp_path / "model" / "tokenizer_report.json").read_text())
    assert (report["frame_rate"], report["num_mels"], report["floats_per_second"]) == (50, 20, 1000)
    assert report["num_frames"] == 5 * 10  # a quarter of twenty clips of 0.2 s
    assert "50 frames of 20 filters a second" in (tmp_path / "model" / "tokenizer_report.md").read_text()
    loaded = MelVocoder.from_pretrained(tmp_path / "model_raw")
    assert loaded.fingerprint() == objective.tokenizer.fingerprint()


def test_settings_that_frames_cannot_have_are_refused(data: AudioDataConfig) -> None:
    with pytest.raises(ValueError, match="no noise"):
        recipe_of(data, num_steps=1, bottleneck={"kind": "vae"})
    with pytest.raises(ValueError, match="no noise"):
        recipe_of(data, num_steps=1, per_channel_statistics=False)
    with pytest.raises(ValueError, match="sound ends at 1000 Hz"):
        build_mel_vocoder(recipe_of(data, num_steps=1, mel={"window_length": 160, "max_frequency": 2000.0}))
    with pytest.raises(ValueError, match="must be even"):
        MelConfig(window_length=5)
    with pytest.raises(ValueError, match="above zero"):
        MelConfig(floor=0.0)
