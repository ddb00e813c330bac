"""The Vision Transformer: initial weights, positions, and its memory-saving mode."""

import math

import pytest
import torch

from latentlm.tokenizers.vit import ViT, ViTBlock, ViTConfig, resize_positions


def make_vit(**changes) -> ViT:
    config = ViTConfig(**{"hidden_size": 64, "num_layers": 3, "num_heads": 4, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ViT(config, num_features=12, grid=(4, 4))


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_initial_weights_are_cut_at_one_deviation_and_shrink_with_depth() -> None:
    vit = make_vit()
    assert vit.input_projection.weight.abs().max() <= 0.02
    assert vit.positions.abs().max() <= 0.02
    for layer, block in enumerate(vit.blocks, start=1):
        assert isinstance(block, ViTBlock)
        assert block.attention.key.bias is None
        # A normal cut at one deviation keeps 0.54 of it; 4096 weights tell that to 1%.
        expected = 0.54 * 0.02 / math.sqrt(2 * layer)
        assert block.attention.output.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert block.mlp.output.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert block.attention.query.weight.std().item() == pytest.approx(0.54 * 0.02, rel=0.03)


def test_every_cell_sees_every_other() -> None:
    vit = make_vit().double()
    x = features(1, 16, 12).double()
    changed = x.clone()
    changed[0, 15] += 1
    with torch.no_grad():
        moved = (vit(changed, (4, 4)) - vit(x, (4, 4))).abs().amax(dim=-1)[0]
    assert (moved > 1e-12).all()


def test_positions_of_the_training_grid_are_the_table_itself() -> None:
    vit = make_vit()
    assert vit.positions_for((4, 4)) is vit.positions


def test_interpolated_positions_keep_a_slope_and_reading_order() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], dim=-1)  # (64, 2)
    resized = resize_positions(table, (8, 8), (16, 4)).unflatten(0, (16, 4))
    # PyTorch's bicubic kernel (a = -0.75) follows a straight line to a tenth of a cell; the border is left out.
    inner = resized[4:-4, 1:-1]
    assert torch.allclose(inner[..., 0].diff(dim=0), torch.tensor(0.5), atol=0.1)
    assert torch.allclose(inner[..., 1].diff(dim=1), torch.tensor(2.0), atol=0.1)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        vit = make_vit(sub_layer_norm=True)
        vit.activation_checkpointing = recompute
        vit(features(2, 16, 12), (4, 4)).square().sum().backward()
        gradients.append([parameter.grad for parameter in vit.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        ViTConfig(hidden_size=64, num_layers=1, num_heads=5)
