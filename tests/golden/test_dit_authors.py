"""With the weights of a tiny DiT of the authors' code our DiT computes the same numbers.

The values were produced by the authors' released image code (microsoft/unilm, folder LatentLM, revision 768a3c8) in
float32 on a CPU. All its weights are random, also those that are zero at initialisation and the table of positions.
"""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentlm.baselines.dit import load_authors_checkpoint
from latentlm.baselines.dit.positions import sincos_1d, sincos_2d
from latentlm.nn import timestep_embedding

DATA = Path(__file__).parent / "data"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return load_file(DATA / "dit_weights.safetensors")


@pytest.fixture
def values() -> dict[str, Tensor]:
    return load_file(DATA / "dit_values.safetensors")


@torch.no_grad()
def predict(weights: dict[str, Tensor], values: dict[str, Tensor], *, encoding: str = "learned") -> Tensor:
    model = load_authors_checkpoint(weights, num_heads=4)
    assert model.config.position_encoding == encoding
    return model(values["noisy_latents"], values["timesteps"], values["labels"])


def test_prediction(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    error = (predict(weights, values) - values["prediction"]).abs().max()
    # Here 1.1e-5 of the largest value. exp() rounds the sinusoid's frequencies differently on different CPUs, and at
    # timestep 680 one last bit moves an angle by 6e-5; with those of NumPy, say, the error is 2.7e-5. A wrong network
    # is wrong in the first digits.
    assert error < 5e-5 * values["prediction"].abs().max()


def test_prediction_with_the_frequencies_of_the_authors_machine(
    weights: dict[str, Tensor], values: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
        exponents = -math.log(10_000.0) * torch.arange(dim // 2).float() / (dim // 2)
        frequencies = exponents.double().exp().float()  # rounded correctly, wherever the test runs …
        frequencies[12] = torch.nextafter(frequencies[12], torch.tensor(1.0))  # … as theirs are, but for one last bit
        angles = timesteps[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    monkeypatch.setattr(timestep_embedding, "sinusoid", sinusoid)
    # Sums in another order: 7e-6 here. The bit above was found by trying all 128 frequencies.
    assert torch.allclose(predict(weights, values), values["prediction"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoding", ["sincos_1d", "sincos_2d"])
def test_fixed_positions_of_a_checkpoint_are_recognised(
    encoding: str, weights: dict[str, Tensor], values: dict[str, Tensor]
) -> None:
    table = sincos_1d(torch.arange(16), 64) if encoding == "sincos_1d" else sincos_2d(4, 4, 64)
    fixed = predict({**weights, "pos_embed": table[None]}, values, encoding=encoding)
    # Beyond the loader's tolerance the same table counts as learned, and gives nearly the same prediction.
    learned = predict({**weights, "pos_embed": table[None] + 2e-5}, values)
    assert torch.allclose(fixed, learned, atol=1e-3)  # 2e-5 at the input, amplified by a random network
    assert not torch.equal(fixed, learned)


def test_shared_keys_and_values_of_a_checkpoint(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    grouped, repeated = dict(weights), dict(weights)

    def repeat(rows: Tensor) -> Tensor:
        # Query heads 0 and 1 share the first head of keys or values, 2 and 3 the second; 16 rows each.
        return rows.unflatten(0, (2, 16)).repeat_interleave(2, dim=0).flatten(0, 1)

    for block in range(2):
        name = f"blocks.{block}.attn.qkv.weight"
        q, k, v = weights[name].split(64)
        grouped[name] = torch.cat([q, k[:32], v[:32]])
        repeated[name] = torch.cat([q, repeat(k[:32]), repeat(v[:32])])
    model = load_authors_checkpoint(grouped, num_heads=4)
    assert model.config.num_kv_heads == 2
    # The same sums, in float32.
    assert torch.allclose(predict(grouped, values), predict(repeated, values), atol=1e-5)


@pytest.mark.parametrize("name", ["x_embedder.weight", "pos_embed", "blocks.1.attn.proj.weight"])
def test_a_checkpoint_without_one_of_its_tensors_is_refused(name: str, weights: dict[str, Tensor]) -> None:
    del weights[name]
    with pytest.raises(ValueError, match="not a checkpoint of the authors' flattened-input DiT: missing="):
        load_authors_checkpoint(weights, num_heads=4)


def test_a_checkpoint_with_a_foreign_tensor_is_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"x_embedder\.bias"):
        load_authors_checkpoint({**weights, "x_embedder.bias": torch.zeros(64)}, num_heads=4)


def test_a_grid_that_is_not_square_is_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="positions of 15 tokens"):
        load_authors_checkpoint({**weights, "pos_embed": weights["pos_embed"][:, :15]}, num_heads=4)
