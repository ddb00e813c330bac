"""The image tokenizer: patches, sizes, statistics, fingerprint, and the paper's 172M."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.image_autoencoder import patchify, unpatchify
from latentlm.tokenizers.vit import ViTConfig

TINY = ViTConfig(hidden_size=32, num_layers=2, num_heads=4)


def make_tokenizer(**changes) -> ImageTokenizer:
    settings = {"image_size": 8, "num_channels": 3, "patch_size": 2, "latent_dim": 5, "encoder": TINY, "decoder": TINY}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageTokenizer(ImageTokenizerConfig(**{**settings, **changes})).eval()


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def measured(tokenizer: ImageTokenizer, num_images: int = 16) -> ImageTokenizer:
    config = tokenizer.config
    images = pictures(num_images, config.num_channels, config.image_size, config.image_size)
    tokenizer.measure_statistics([(images, torch.arange(num_images))])
    return tokenizer


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
)
def test_unpatchify_undoes_patchify(batch: int, channels: int, patch: int, rows: int, columns: int, seed: int) -> None:
    images = pictures(batch, channels, rows * patch, columns * patch, seed=seed)
    patches = patchify(images, patch)
    assert patches.shape == (batch, rows * columns, channels * patch**2)
    assert torch.equal(unpatchify(patches, (rows, columns), patch), images)


def test_patches_come_in_reading_order() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (16, 2)])
def test_any_size_that_the_patch_divides_is_encoded_and_decoded(height: int, width: int) -> None:
    tokenizer = measured(make_tokenizer())
    images = pictures(2, 3, height, width)
    grid = tokenizer.grid(height, width)
    with torch.no_grad():
        latents = tokenizer.encode(images, sample=False)
        assert latents.shape == (2, grid[0] * grid[1], 5)
        decoded = tokenizer.decode(latents, grid=grid)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


def test_a_size_that_the_patch_does_not_divide_is_refused() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="patches of 2 pixels"):
        tokenizer.posterior(pictures(1, 3, 8, 7))
    with pytest.raises(ValueError, match="num_channels=3"):
        tokenizer.posterior(pictures(1, 1, 8, 8))


def test_latents_that_do_not_fill_the_grid_are_refused() -> None:
    tokenizer = measured(make_tokenizer())
    with pytest.raises(ValueError, match="grid of 4 x 4"):
        tokenizer.decode(torch.zeros(1, 12, 5))


def test_decode_clips_what_reconstruct_does_not() -> None:
    tokenizer = measured(make_tokenizer())
    with torch.no_grad():
        tokenizer.decoder.pixels.bias.fill_(3.0)
        latents = torch.zeros(1, 16, 5)
        assert tokenizer.decode(latents).max() == 1
        assert tokenizer.reconstruct(tokenizer.statistics.denormalize(latents), (4, 4)).min() > 2


@pytest.mark.parametrize("per_channel", [False, True])
def test_samples_have_unit_variance_after_measuring(per_channel: bool) -> None:
    tokenizer = make_tokenizer(per_channel_statistics=per_channel)
    images, keys = pictures(600, 3, 8, 8), torch.arange(600)
    tokenizer.measure_statistics([(images, keys)])
    with torch.no_grad():
        latents = tokenizer.sample_keyed(tokenizer.posterior(images), 12345, keys)
    # Other noise than was measured. The variance of 600 examples with random sigmas is known to sqrt(2 / 600) = 6%.
    assert latents.std().item() == pytest.approx(1, rel=0.15)
    assert latents.mean().abs().item() < 0.05


def test_statistics_do_not_depend_on_batches() -> None:
    images, keys = pictures(20, 3, 8, 8), torch.arange(20)
    found = []
    for size in (20, 7):
        tokenizer = make_tokenizer()
        tokenizer.measure_statistics(zip(images.split(size), keys.split(size), strict=True))
        found.append((tokenizer.statistics.bias.item(), tokenizer.statistics.scale.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # float32 matrix products of another batch size


def test_fingerprint_follows_weights_statistics_and_config() -> None:
    tokenizer = make_tokenizer()
    seen = {tokenizer.fingerprint()}
    measured(tokenizer)
    seen.add(tokenizer.fingerprint())
    with torch.no_grad():
        tokenizer.decoder.pixels.bias[0] += 1e-3
    seen.add(tokenizer.fingerprint())
    assert len(seen) == 3
    assert tokenizer.fingerprint() in seen
    noisier = make_tokenizer(bottleneck=BottleneckConfig(latent_sigma=0.5))
    assert noisier.fingerprint() != make_tokenizer().fingerprint()


def test_saved_and_loaded_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = measured(make_tokenizer())
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = ImageTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    images = pictures(2, 3, 8, 8, seed=5)
    with torch.no_grad():
        latents = loaded.encode(images, generator=torch.Generator().manual_seed(1))
        assert torch.equal(latents, tokenizer.encode(images, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(loaded.decode(latents), tokenizer.decode(latents))


def test_the_papers_tokenizer_has_172_million_parameters() -> None:
    base = ViTConfig(hidden_size=768, num_layers=12, num_heads=12)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(ImageTokenizerConfig(image_size=256, patch_size=16, encoder=base, decoder=base))
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    assert count == pytest.approx(172e6, rel=0.02)


def test_image_size_must_be_a_multiple_of_the_patch() -> None:
    with pytest.raises(ValueError, match="no multiple of patch_size"):
        make_tokenizer(image_size=9)
