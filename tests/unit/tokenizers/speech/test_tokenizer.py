"""The continuous speech tokenizer: own lengths, statistics, storage."""

from pathlib import Path

import pytest
import torch
from tiny_speech import DESIGNS, HOP_LENGTH, sound, tiny_speech_tokenizer

from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.speech import SpeechTokenizer

each_design = pytest.mark.parametrize("design", DESIGNS)


@each_design
@pytest.mark.parametrize("num_samples", [1, HOP_LENGTH - 1, HOP_LENGTH, HOP_LENGTH + 1, 8 * HOP_LENGTH - 3])
def test_any_clip_comes_back_at_its_own_length(design: str, num_samples: int) -> None:
    tokenizer = tiny_speech_tokenizer(design)
    with torch.no_grad():
        latents = tokenizer.encode(sound(2, num_samples), sample=False)
        decoded = tokenizer.decode(latents, num_samples=num_samples)
    assert latents.shape[1] == tokenizer.num_frames(num_samples) == -(-num_samples // HOP_LENGTH)
    assert decoded.shape == (2, num_samples)
    assert decoded.abs().max() <= 1


def test_the_tail_of_a_clip_is_silence() -> None:
    tokenizer = tiny_speech_tokenizer().requires_grad_(False)
    clip = sound(1, HOP_LENGTH + 4)
    completed = torch.cat([clip, torch.zeros(1, HOP_LENGTH - 4)], dim=1)
    assert torch.equal(tokenizer.posterior(clip).mean, tokenizer.posterior(completed).mean)


def test_a_length_that_the_latents_do_not_have_is_refused() -> None:
    tokenizer = tiny_speech_tokenizer()
    for num_samples in (2 * HOP_LENGTH, 3 * HOP_LENGTH + 1):
        with pytest.raises(ValueError, match="3 latents of 30 samples"):
            tokenizer.decode(torch.zeros(1, 3, 3), num_samples=num_samples)


@each_design
def test_decode_clips_what_reconstruct_does_not(design: str) -> None:
    tokenizer = tiny_speech_tokenizer(design).requires_grad_(False)
    latents = 100 * sound(1, 4, 3)
    assert tokenizer.decode(latents).abs().max() == 1
    assert tokenizer.decode_step(latents, tokenizer.decoder_state(1))[0].abs().max() == 1
    assert tokenizer.reconstruct(tokenizer.statistics.denormalize(latents)).abs().max() > 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_samples_have_unit_variance_after_measuring(per_channel: bool) -> None:
    tokenizer = tiny_speech_tokenizer(measured=False, per_channel_statistics=per_channel).requires_grad_(False)
    waveforms, keys = sound(400, 4 * HOP_LENGTH), torch.arange(400)
    tokenizer.measure_statistics([(waveforms, keys)])
    latents = tokenizer.sample_keyed(tokenizer.posterior(waveforms), 12345, keys)
    # Other noise than was measured. The variance of 400 examples with random sigmas is known to sqrt(2 / 400) = 7%.
    assert latents.std().item() == pytest.approx(1, rel=0.15)


def test_a_vae_streams_its_deviations_too() -> None:
    tokenizer = tiny_speech_tokenizer(bottleneck=BottleneckConfig(kind="vae")).requires_grad_(False)
    waveforms = sound(1, 2 * HOP_LENGTH)
    whole = tokenizer.posterior(waveforms)
    posterior, _ = tokenizer.posterior_step(waveforms, tokenizer.encoder_state(1))
    assert whole.log_std is not None
    assert posterior.log_std is not None
    assert whole.log_std.shape == whole.mean.shape
    # Not one bit of difference: a whole clip is one chunk.
    assert torch.equal(posterior.log_std, whole.log_std)


@each_design
def test_the_sound_is_float32_under_autocast(design: str) -> None:
    tokenizer = tiny_speech_tokenizer(design)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.decode(torch.zeros(1, 2, 3)).dtype == torch.float32
        assert tokenizer.decode_step(torch.zeros(1, 2, 3), tokenizer.decoder_state(1))[0].dtype == torch.float32
        posterior, _ = tokenizer.posterior_step(sound(1, 70), tokenizer.encoder_state(1))
        assert posterior.mean.dtype == torch.float32


@each_design
def test_saving_and_loading_keeps_fingerprint_latents_and_sound(design: str, tmp_path: Path) -> None:
    tokenizer = tiny_speech_tokenizer(design).requires_grad_(False)
    tokenizer.save_pretrained(tmp_path / "it")
    loaded = SpeechTokenizer.from_pretrained(tmp_path / "it").requires_grad_(False)
    assert loaded.config == tokenizer.config
    assert loaded.fingerprint() == tokenizer.fingerprint()
    waveforms = sound(2, 100)
    latents = tokenizer.encode(waveforms, sample=False)
    assert torch.equal(loaded.encode(waveforms, sample=False), latents)
    assert torch.equal(loaded.decode(latents), tokenizer.decode(latents))


def test_the_designs_have_different_fingerprints_and_so_have_settings_without_weights() -> None:
    seen = {tiny_speech_tokenizer(design).fingerprint() for design in DESIGNS}
    seen.add(tiny_speech_tokenizer(sample_rate=480).fingerprint())
    assert len(seen) == len(DESIGNS) + 1


def test_a_latent_of_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim is 0"):
        tiny_speech_tokenizer(latent_dim=0)
