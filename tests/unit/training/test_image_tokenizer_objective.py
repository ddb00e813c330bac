"""The image tokenizer as the trainer sees it: Eq. 6, gradients kept apart, layer-wise rates, what is saved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentlm.data import ImageDataConfig, open_images
from latentlm.pictures import picture_grid
from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.vit import ViTConfig
from latentlm.training.losses.adversarial import AdversarialConfig
from latentlm.training.objectives.image_tokenizer import (
    ImageTokenizerObjective,
    ImageTokenizerRecipe,
    build_image_tokenizer,
)
from latentlm.training.objectives.reconstruction import TokenizerLossConfig
from latentlm.training.optim import OptimConfig
from latentlm.training.trainer import Trainer, TrainerConfig

VIT = ViTConfig(hidden_size=32, num_layers=2, num_heads=4)
OPTIM = OptimConfig(lr=1e-3, num_warmup_steps=0)
GAN = AdversarialConfig(weight=0.5, num_layers=1, num_filters=8)


def make_recipe(*, adversarial: AdversarialConfig | None = None, beta: float = 0.01, **changes) -> ImageTokenizerRecipe:
    tokenizer = ImageTokenizerConfig(
        image_size=8,
        num_channels=1,
        patch_size=2,
        latent_dim=4,
        encoder=VIT,
        decoder=VIT,
        bottleneck=BottleneckConfig(),
    )
    recipe = ImageTokenizerRecipe(
        kind="image_tokenizer",
        data=ImageDataConfig(source="digits", image_size=8, num_channels=1),
        tokenizer=tokenizer,
        losses=TokenizerLossConfig(beta=beta, adversarial=adversarial),
        optim=OPTIM,
        discriminator_optim=OPTIM if adversarial else None,
        trainer=TrainerConfig(num_steps=4, batch_size=8, ema_half_life_ratio=0.5, device="cpu", tensorboard=False),
    )
    return replace(recipe, **changes)


def make_objective(**changes) -> ImageTokenizerObjective:
    return build_image_tokenizer(make_recipe(**changes))[0]


def make_batch(objective: ImageTokenizerObjective, num_images: int = 6, step: int = 0) -> dict[str, Tensor]:
    raw = open_images(ImageDataConfig(source="digits", image_size=8, num_channels=1), part="train").take(
        range(num_images)
    )
    assert raw is not None
    return objective.prepare(raw, step=step, seed=0)


def test_total_is_equation_6_as_means() -> None:
    objective = make_objective(beta=0.3)
    batch = make_batch(objective)
    losses = objective.losses(batch, step=0, totals=objective.counts(batch))["tokenizer"]
    tokenizer, images = objective.tokenizer, batch["image"]
    mean = tokenizer.posterior(images).mean
    assert losses["regularizer"].item() == pytest.approx(mean.square().mean().item(), rel=1e-5)
    expected = losses["reconstruction"] + 0.3 * losses["regularizer"]
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    # The paper's sums: the same minimum with beta · pixels / latent elements (64 pixels, 16 latents of 4).
    num_images, num_pixels, num_elements = len(images), 64, 16 * 4
    sums = losses["reconstruction"] * num_images * num_pixels + 0.3 * num_pixels / num_elements * mean.square().sum()
    assert sums.item() == pytest.approx(losses["total"].item() * num_images * num_pixels, rel=1e-5)


def test_reconstructions_are_of_noisy_latents() -> None:
    objective = make_objective()
    values = []
    for step in (0, 0, 1):
        batch = make_batch(objective, step=step)
        values.append(objective.losses(batch, step=step, totals=objective.counts(batch))["tokenizer"]["reconstruction"])
    assert values[0].item() == values[1].item()  # the noise is a function of seed, step and key
    assert values[0].item() != values[2].item()


@pytest.mark.parametrize("adversarial", [None, GAN])
def test_micro_batches_add_up_to_the_batch(adversarial: AdversarialConfig | None) -> None:
    objective = make_objective(adversarial=adversarial)
    batch = make_batch(objective)
    totals = objective.counts(batch)
    whole = objective.losses(batch, step=0, totals=totals)
    parts = []
    for part in (slice(0, 4), slice(4, 6)):
        micro = {"image": batch["image"][part], "key": batch["key"][part], "noise_seed": batch["noise_seed"]}
        parts.append(objective.losses(micro, step=0, totals=totals))
    for optimizer, named in whole.items():
        for name in set(named) - {"adaptive_weight", "total"}:  # the adaptive weight is of each micro-batch its own
            summed = sum(part[optimizer][name].item() for part in parts)
            assert summed == pytest.approx(named[name].item(), rel=1e-4, abs=1e-6)  # float32 sums in another order


def test_neither_optimizers_loss_reaches_the_others_parameters() -> None:
    objective = make_objective(adversarial=GAN)
    assert objective.discriminator is not None
    batch = make_batch(objective)
    for optimizer, own, other in (
        ("tokenizer", objective.tokenizer, objective.discriminator),
        ("discriminator", objective.discriminator, objective.tokenizer),
    ):
        objective.zero_grad()
        losses = objective.losses(batch, step=0, totals=objective.counts(batch))
        losses[optimizer]["total"].backward()
        assert all(parameter.grad is None for parameter in other.parameters())
        assert all(parameter.grad is not None for parameter in own.parameters())


def test_the_adversarial_loss_moves_the_tokenizer() -> None:
    gradients = []
    for adversarial in (None, GAN):
        objective = make_objective(adversarial=adversarial)
        batch = make_batch(objective)
        objective.losses(batch, step=0, totals=objective.counts(batch))["tokenizer"]["total"].backward()
        gradient = objective.tokenizer.decoder.pixels.weight.grad
        assert gradient is not None
        gradients.append(gradient)
    # Weight 0.5 of a pull made equal to the reconstruction's; the regularizer does not reach the decoder.
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert difference.item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_losses_under_autocast_are_float32_and_near_the_exact_ones(precision: str) -> None:
    objective = make_objective(adversarial=GAN)
    batch = make_batch(objective)
    exact = objective.losses(batch, step=0, totals=objective.counts(batch))
    with torch.autocast("cpu", getattr(torch, precision)):
        rounded = objective.losses(batch, step=0, totals=objective.counts(batch))
    for optimizer, named in exact.items():
        for name, value in named.items():
            assert rounded[optimizer][name].dtype == torch.float32
            # bfloat16 keeps 8 bits: 0.4% per product, through a dozen layers.
            assert rounded[optimizer][name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


def test_the_discriminator_waits_for_its_start_step() -> None:
    objective = make_objective(adversarial=replace(GAN, start_step=3))
    batch = make_batch(objective)
    totals = objective.counts(batch)
    assert set(objective.losses(batch, step=2, totals=totals)) == {"tokenizer"}
    assert set(objective.losses(batch, step=3, totals=totals)) == {"tokenizer", "discriminator"}


def test_learning_rates_decay_towards_the_encoders_input() -> None:
    objective = make_objective(encoder_lr_decay=0.65)
    names = {parameter: name for name, parameter in objective.tokenizer.named_parameters()}
    scales = {
        names[parameter]: group["lr_scale"]
        for group in objective.optimizer_groups()["tokenizer"].groups
        for parameter in group["params"]
    }
    assert set(scales) == set(names.values())
    assert scales["encoder.input_projection.weight"] == scales["encoder.positions"] == pytest.approx(0.65**3)
    assert scales["encoder.blocks.0.mlp.input.weight"] == pytest.approx(0.65**2)
    assert scales["encoder.blocks.1.attention.query.bias"] == pytest.approx(0.65)
    assert scales["encoder.final_norm.weight"] == scales["to_posterior.weight"] == 1
    assert all(scale == 1 for name, scale in scales.items() if not name.startswith("encoder."))


def test_positions_norms_and_biases_are_not_decayed() -> None:
    objective = make_objective()
    names = {parameter: name for name, parameter in objective.tokenizer.named_parameters()}
    for group in objective.optimizer_groups()["tokenizer"].groups:
        for parameter in group["params"]:
            is_matrix = parameter.ndim == 2 and "positions" not in names[parameter] and "token" not in names[parameter]
            assert (group["weight_decay"] > 0) == is_matrix


@pytest.mark.parametrize("adversarial", [None, replace(GAN, start_step=2)])
def test_training_moves_weights_and_leaves_a_tokenizer_that_encodes(
    adversarial: AdversarialConfig | None, tmp_path: Path
) -> None:
    recipe = make_recipe(adversarial=adversarial)
    objective, loader, recipe = build_image_tokenizer(recipe)
    initial = {name: parameter.clone() for name, parameter in objective.named_parameters()}
    Trainer(objective, loader, recipe.trainer, tmp_path, recipe=recipe).fit()
    moved = {name for name, parameter in objective.named_parameters() if not torch.equal(parameter, initial[name])}
    # While no verdict leaves the hinge's margins, the constant that is added to all of them has gradient 1/2 - 1/2.
    assert set(initial) - moved <= {"discriminator.layers.5.bias"}
    tokenizers = [ImageTokenizer.from_pretrained(tmp_path / name) for name in ("model", "model_raw")]
    assert tokenizers[0].fingerprint() != tokenizers[1].fingerprint()  # averaged weights, and the last
    images = open_images(recipe.data, part="test").take(range(200))
    assert images is not None
    for tokenizer in tokenizers:
        latents = tokenizer.encode(images["image"], generator=torch.Generator().manual_seed(0))
        # 200 examples, each with its own sigma: the variance is known to sqrt(2 / 200) = 10%, the deviation to 5%.
        assert latents.std().item() == pytest.approx(1, rel=0.2)
    report = json.loads((tmp_path / "model" / "tokenizer_report.json").read_text())
    assert len(report["channels"]) == 4
    assert report["num_examples"] == len(open_images(recipe.data, part="validation"))


def test_statistics_are_measured_with_the_weights_that_are_saved(tmp_path: Path) -> None:
    objective = make_objective()
    objective.save_pretrained(tmp_path / "first")
    first = objective.tokenizer.statistics.scale.item()
    with torch.no_grad():
        objective.tokenizer.to_posterior.weight.mul_(100)
    objective.save_pretrained(tmp_path / "first")
    assert objective.tokenizer.statistics.scale.item() < first
    loaded = ImageTokenizer.from_pretrained(tmp_path / "first")
    assert torch.equal(loaded.statistics.scale, objective.tokenizer.statistics.scale)


def test_the_sample_grid_shows_originals_over_two_kinds_of_reconstructions() -> None:
    objective = make_objective()
    grid = objective.sample_grid(seed=0)
    assert grid.shape == picture_grid(torch.zeros(3 * 10, 1, 8, 8), columns=10).shape
    originals = picture_grid(objective.pictures.preview, columns=10)
    shared = originals.shape[1] - 4  # the lower margin of the one is the middle of the other
    assert torch.equal(grid[:, :shared], originals[:, :shared])
    assert torch.equal(grid, objective.sample_grid(seed=0))
    assert not torch.equal(grid, objective.sample_grid(seed=1))


def test_activation_checkpointing_leaves_the_loss_as_it_is() -> None:
    gradients = []
    for recompute in (False, True):
        objective = make_objective()
        if recompute:
            objective.enable_activation_checkpointing()
        batch = make_batch(objective)
        objective.losses(batch, step=0, totals=objective.counts(batch))["tokenizer"]["total"].backward()
        gradients.append(objective.tokenizer.to_posterior.weight.grad)
    assert torch.equal(*gradients)


def test_an_encoder_checkpoint_is_taken_over(tmp_path: Path) -> None:
    donor = make_objective(trainer=TrainerConfig(num_steps=1, batch_size=1, seed=99)).tokenizer.encoder
    shapes = donor.state_dict()
    timm = {"cls_token": shapes["class_token"][None], "pos_embed": shapes["positions"][None]}
    renamed = {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp.input": "mlp.fc1", "mlp.output": "mlp.fc2"}
    renamed |= {"attention.output": "attn.proj", "final_norm": "norm"}
    for name, tensor in shapes.items():
        if ".attention.query" in name or ".attention.key" in name or ".attention.value" in name:
            continue
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        timm[name] = tensor
    for layer in range(2):
        parts = [shapes[f"blocks.{layer}.attention.{part}.weight"] for part in ("query", "key", "value")]
        timm[f"blocks.{layer}.attn.qkv.weight"] = torch.cat(parts)
        biases = [shapes[f"blocks.{layer}.attention.{part}.bias"] for part in ("query", "value")]
        timm[f"blocks.{layer}.attn.qkv.bias"] = torch.cat([biases[0], torch.ones(32), biases[1]])
    timm["patch_embed.proj.weight"] = timm.pop("input_projection.weight").view(32, 1, 2, 2)
    timm["patch_embed.proj.bias"] = timm.pop("input_projection.bias")
    torch.save(timm, tmp_path / "encoder.pth")
    objective = make_objective(encoder_checkpoint=str(tmp_path / "encoder.pth"))
    for name, tensor in objective.tokenizer.encoder.state_dict().items():
        assert torch.equal(tensor, shapes[name]), name


def test_recipes_whose_parts_do_not_fit_are_refused() -> None:
    recipe = make_recipe()
    with pytest.raises(ValueError, match="num_channels"):
        replace(recipe, data=replace(recipe.data, num_channels=3))
    with pytest.raises(ValueError, match="patch_size"):
        replace(recipe, data=replace(recipe.data, image_size=9))
    with pytest.raises(ValueError, match="belong together"):
        replace(recipe, discriminator_optim=OPTIM)
    with pytest.raises(ValueError, match=r"lower losses.adversarial.num_layers"):
        make_recipe(adversarial=replace(GAN, num_layers=3))
