"""Laws of every latent tokenizer: what a model, a cache and a trainer rely on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_speech import HOP_LENGTH, sound, tiny_speech_tokenizer
from torch import nn

from latentlm.tokenizers.base import LatentTokenizer, Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.vit import ViTConfig


def _image(**bottleneck) -> ImageTokenizer:
    vit = ViTConfig(hidden_size=32, num_layers=1, num_heads=4)
    return ImageTokenizer(
        ImageTokenizerConfig(
            image_size=8,
            num_channels=1,
            patch_size=4,
            latent_dim=6,
            encoder=vit,
            decoder=vit,
            bottleneck=BottleneckConfig(**bottleneck),
        )
    )


def _raw_images(num_examples: int) -> torch.Tensor:
    return torch.rand(num_examples, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _raw_sounds(num_examples: int) -> torch.Tensor:
    return sound(num_examples, 4 * HOP_LENGTH)


VAE = BottleneckConfig(kind="vae")

# A new tokenizer adds a line: how to build it, and raw examples for it.
TOKENIZERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "image, sigma-VAE": (_image, _raw_images),
    "image, constant sigma": (lambda: _image(sigma_distribution="constant"), _raw_images),
    "image, VAE": (lambda: _image(kind="vae"), _raw_images),
    "image, autoencoder": (lambda: _image(kind="ae"), _raw_images),
    "speech, time domain": (lambda: tiny_speech_tokenizer(measured=False), _raw_sounds),
    "speech, spectral": (lambda: tiny_speech_tokenizer("spectral", measured=False), _raw_sounds),
    "speech, VAE": (lambda: tiny_speech_tokenizer(measured=False, bottleneck=VAE), _raw_sounds),
}

Made = tuple[LatentTokenizer, torch.Tensor]


@pytest.fixture(params=TOKENIZERS)
def unmeasured(request) -> Made:
    build, raw = TOKENIZERS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build().eval().requires_grad_(False)
    assert isinstance(tokenizer, LatentTokenizer)
    return tokenizer, raw(12)


@pytest.fixture
def made(unmeasured: Made) -> Made:
    tokenizer, raw = unmeasured
    tokenizer.measure_statistics([(raw, torch.arange(len(raw)))])  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer, raw


def test_encoding_is_refused_before_statistics_are_measured(unmeasured: Made) -> None:
    tokenizer, raw = unmeasured
    for sample in (True, False):
        with pytest.raises(ValueError, match="statistics"):
            tokenizer.encode(raw, sample=sample)
    with pytest.raises(ValueError, match="statistics"):
        tokenizer.sample_keyed(tokenizer.posterior(raw), 0, torch.arange(len(raw)))


def test_latents_have_the_promised_width_and_decode_to_raw_in_range(made: Made) -> None:
    tokenizer, raw = made
    latents = tokenizer.encode(raw)
    assert latents.dim() == 3
    assert latents.shape[-1] == tokenizer.latent_dim
    decoded = tokenizer.decode(latents)
    assert decoded.shape == raw.shape
    assert decoded.abs().max() <= 1


def test_the_same_generator_state_gives_the_same_sample(made: Made) -> None:
    tokenizer, raw = made
    one, other = (tokenizer.encode(raw, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, other)


def test_keyed_samples_follow_their_key_through_any_batch(made: Made) -> None:
    tokenizer, raw = made
    posterior, keys = tokenizer.posterior(raw), torch.arange(len(raw)) * 17
    latents = tokenizer.sample_keyed(posterior, 5, keys)
    order = torch.randperm(len(raw), generator=torch.Generator().manual_seed(2))[:7]
    log_std = None if posterior.log_std is None else posterior.log_std[order]
    shuffled = tokenizer.sample_keyed(Posterior(posterior.mean[order], log_std), 5, keys[order])
    assert torch.equal(shuffled, latents[order])


def test_seed_and_key_both_change_the_noise(made: Made) -> None:
    tokenizer, raw = made
    posterior, keys = tokenizer.posterior(raw), torch.arange(len(raw))
    latents = tokenizer.sample_keyed(posterior, 5, keys)
    is_noisy = not torch.equal(latents, tokenizer.encode(raw, sample=False))
    assert torch.equal(latents, tokenizer.sample_keyed(posterior, 6, keys)) is not is_noisy
    assert torch.equal(latents, tokenizer.sample_keyed(posterior, 5, keys + 1)) is not is_noisy


def test_a_sample_of_a_cached_posterior_is_a_sample_of_the_raw_example(made: Made) -> None:
    tokenizer, raw = made
    direct = tokenizer.encode(raw, generator=torch.Generator().manual_seed(3))
    cached = tokenizer.sample(tokenizer.posterior(raw), generator=torch.Generator().manual_seed(3))
    assert torch.equal(direct, cached)


def test_latents_are_float32_under_autocast(made: Made) -> None:
    tokenizer, raw = made
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.encode(raw).dtype == torch.float32


def test_saving_and_loading_keeps_fingerprint_and_latents(made: Made, tmp_path: Path) -> None:
    tokenizer, raw = made
    tokenizer.save_pretrained(tmp_path / "it")  # pyright: ignore[reportAttributeAccessIssue]
    loaded = type(tokenizer).from_pretrained(tmp_path / "it")  # pyright: ignore[reportAttributeAccessIssue]
    assert loaded.fingerprint() == tokenizer.fingerprint()
    with torch.no_grad():
        assert torch.equal(loaded.encode(raw, sample=False), tokenizer.encode(raw, sample=False))


def test_the_fingerprint_notices_a_changed_weight(made: Made) -> None:
    tokenizer, _ = made
    before = tokenizer.fingerprint()
    assert isinstance(tokenizer, nn.Module)
    weight = next(tokenizer.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1e-6
    assert tokenizer.fingerprint() != before
