"""The vector-quantized image tokenizer: codes and back, sizes, what its fingerprint covers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.quantizer import QuantizerConfig
from latentlm.tokenizers.vit import ViTConfig
from latentlm.tokenizers.vq_image import VQImageTokenizer, VQImageTokenizerConfig

TINY = ViTConfig(hidden_size=32, num_layers=2, num_heads=4)


def make_tokenizer(**changes) -> VQImageTokenizer:
    settings = {"image_size": 8, "num_channels": 3, "patch_size": 2, "encoder": TINY, "decoder": TINY}
    settings["quantizer"] = QuantizerConfig(num_codes=20, code_dim=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQImageTokenizer(VQImageTokenizerConfig(**{**settings, **changes}))


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def filled(tokenizer: VQImageTokenizer) -> VQImageTokenizer:
    """In evaluation mode, after a batch that filled the codebook."""
    with torch.no_grad():
        tokenizer.quantize(pictures(16, 3, 8, 8, seed=7), seed=0)
    return tokenizer.eval()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (16, 2)])
def test_any_size_that_the_patch_divides_becomes_codes_and_pictures(height: int, width: int) -> None:
    tokenizer = filled(make_tokenizer())
    images = pictures(2, 3, height, width)
    grid = tokenizer.grid(height, width)
    with torch.no_grad():
        codes = tokenizer.encode(images)
        decoded = tokenizer.decode(codes, grid=grid)
    assert codes.shape == (2, grid[0] * grid[1])
    assert 0 <= codes.min() <= codes.max() < tokenizer.num_codes == 20
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


def test_decoding_codes_is_what_training_reconstructs() -> None:
    tokenizer = filled(make_tokenizer())
    images = pictures(4, 3, 8, 8)
    with torch.no_grad():
        quantized = tokenizer.quantize(images, seed=0)
        assert torch.equal(quantized.codes, tokenizer.encode(images))
        reconstructions = tokenizer.reconstruct(quantized.vectors, (4, 4)).clamp(-1, 1)
        # Straight through adds and takes away the vector, which rounds in float32.
        torch.testing.assert_close(tokenizer.decode(quantized.codes), reconstructions, atol=1e-5, rtol=0)


def test_a_codebook_with_a_code_for_every_patch_loses_nothing_that_the_decoder_sees() -> None:
    """With 64 codes and 64 patches the first batch becomes the codebook, so that quantization is the identity."""
    tokenizer = make_tokenizer(quantizer=QuantizerConfig(num_codes=64, code_dim=5))
    images = pictures(4, 3, 8, 8)
    with torch.no_grad():
        quantized = tokenizer.quantize(images, seed=0)
        assert sorted(quantized.codes.flatten().tolist()) == list(range(64))
        vectors = tokenizer.quantizer.points(tokenizer.to_code(tokenizer.hidden_states(images)))
        torch.testing.assert_close(quantized.vectors, vectors)
        unquantized = tokenizer.reconstruct(vectors, (4, 4)).clamp(-1, 1)
        # The averages of one vector each are that vector, up to rounding.
        torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images)), unquantized, atol=1e-4, rtol=0)


def test_gradients_reach_the_encoder_through_the_codes() -> None:
    tokenizer = make_tokenizer()
    images = pictures(4, 3, 8, 8)
    quantized = tokenizer.quantize(images, seed=0)
    (tokenizer.reconstruct(quantized.vectors, (4, 4)) - images).square().mean().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        # Softmax and LayerNorm leave some biases without effect, but every matrix of the encoder must learn.
        assert parameter.dim() < 2 or parameter.grad.abs().max() > 0, name


def test_what_does_not_fit_is_refused() -> None:
    tokenizer = filled(make_tokenizer())
    with pytest.raises(ValueError, match="patches of 2 pixels"):
        tokenizer.encode(pictures(1, 3, 8, 7))
    with pytest.raises(ValueError, match="num_channels=3"):
        tokenizer.encode(pictures(1, 1, 8, 8))
    with pytest.raises(ValueError, match="grid of 4 x 4"):
        tokenizer.decode(torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="another tokenizer"):
        tokenizer.decode(torch.full((1, 16), 20))
    with pytest.raises(ValueError, match="no multiple of patch_size"):
        make_tokenizer(patch_size=3)


def test_saving_and_loading_keeps_fingerprint_codes_and_pictures(tmp_path: Path) -> None:
    tokenizer = filled(make_tokenizer())
    tokenizer.save_pretrained(tmp_path / "it")
    loaded = VQImageTokenizer.from_pretrained(tmp_path / "it")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    images = pictures(3, 3, 8, 8)
    with torch.no_grad():
        codes = tokenizer.encode(images)
        assert torch.equal(loaded.encode(images), codes)
        assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_the_fingerprint_covers_weights_codebook_and_config() -> None:
    tokenizer = make_tokenizer()
    seen = {tokenizer.fingerprint()}
    filled(tokenizer)
    seen.add(tokenizer.fingerprint())
    tokenizer.quantizer.codes[0, 0] += 1e-3
    seen.add(tokenizer.fingerprint())
    with torch.no_grad():
        tokenizer.decoder.pixels.bias[0] += 1e-3
    seen.add(tokenizer.fingerprint())
    assert len(seen) == 4
    other = make_tokenizer(quantizer=QuantizerConfig(num_codes=20, code_dim=5, ema_decay=0.5))
    assert other.fingerprint() != make_tokenizer().fingerprint()


def test_encoder_and_decoder_are_those_of_the_sigma_vae() -> None:
    continuous = ImageTokenizer(
        ImageTokenizerConfig(image_size=8, num_channels=3, patch_size=2, latent_dim=5, encoder=TINY, decoder=TINY)
    )
    shapes = [
        {name: tuple(p.shape) for name, p in model.named_parameters() if name.split(".")[0] in ("encoder", "decoder")}
        for model in (continuous, make_tokenizer())
    ]
    assert shapes[0] == shapes[1]
