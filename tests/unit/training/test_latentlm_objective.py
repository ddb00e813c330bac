"""LatentLM as the trainer sees it: layout of batches, dropped conditions, cached and fresh latents, refusals."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import randomise, tiny_class_config, tiny_image_tokenizer, tiny_mixed_config, tiny_pictures
from torch import Tensor

from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.latentlm import LatentLM
from latentlm.training.objectives.latentlm import LatentLMObjective
from latentlm.training.optim import OptimConfig


def make_objective(*, mixed: bool = False, drop_cond_prob: float = 0.1) -> LatentLMObjective:
    config = tiny_mixed_config() if mixed else tiny_class_config()
    config = dataclasses.replace(config, modalities={"image": config.modalities["image"]})
    return LatentLMObjective(
        randomise(LatentLM(config)),
        tiny_image_tokenizer(),
        optim=OptimConfig(lr=1e-3),
        drop_cond_prob=drop_cond_prob,
        sampling=LatentSamplingConfig(),
    )


def raw_batch(count: int = 6) -> dict[str, Tensor]:
    return {"image": tiny_pictures(count), "label": torch.arange(count) % 5, "key": torch.arange(count) + 100}


@pytest.mark.parametrize("mixed", [False, True])
def test_losses_are_named_and_finite_in_both_layouts(mixed: bool) -> None:
    objective = make_objective(mixed=mixed)
    batch = objective.prepare(raw_batch(), step=3, seed=0)
    counts = objective.counts(batch)
    assert counts["diffusion/image"] == 24.0  # six pictures of four latents
    losses = objective.losses(batch, step=3, totals=counts)["model"]
    assert set(losses) == {*counts, "total"}
    assert all(loss.isfinite() for loss in losses.values())


def test_cached_means_give_the_batch_of_the_pictures() -> None:
    objective, raw = make_objective(), raw_batch()
    with torch.no_grad():
        mean = objective.tokenizer.posterior(raw["image"]).mean
    fresh, noise_seed = objective.prepare(raw, step=3, seed=0)
    cached, same_seed = objective.prepare(
        {"latent_mean": mean, "label": raw["label"], "key": raw["key"]}, step=3, seed=0
    )
    assert noise_seed == same_seed
    assert torch.equal(fresh.latents["image"], cached.latents["image"])
    assert torch.equal(fresh.input_ids, cached.input_ids)


def test_noise_and_dropout_follow_the_key_and_change_with_the_step() -> None:
    objective, raw = make_objective(drop_cond_prob=0.5), raw_batch(30)
    first, _ = objective.prepare(raw, step=3, seed=0)
    order = torch.arange(29, -1, -1)
    again, _ = objective.prepare({name: value[order] for name, value in raw.items()}, step=3, seed=0)
    assert torch.equal(again.input_ids, first.input_ids[order])
    latents, turned = (batch.latents["image"].unflatten(0, (30, 4)) for batch in (first, again))
    assert torch.allclose(turned, latents[order], atol=1e-5)  # encoded in another order
    later, _ = objective.prepare(raw, step=4, seed=0)
    assert not torch.equal(later.input_ids, first.input_ids)
    assert not torch.allclose(later.latents["image"], first.latents["image"])


@pytest.mark.parametrize("mixed", [False, True])
def test_the_null_class_takes_the_place_of_the_stated_share_of_labels(mixed: bool) -> None:
    objective, raw = make_objective(mixed=mixed, drop_cond_prob=0.3), raw_batch(500)
    batch, _ = objective.prepare(raw, step=0, seed=0)
    vocabulary = objective.model.config.vocabulary
    # With text in the vocabulary end-of-text comes before the label.
    ids = batch.input_ids[:, 1 if mixed else 0]
    dropped = ids == vocabulary.class_id(None)
    assert abs(float(dropped.double().mean()) - 0.3) < 0.082  # four standard errors of 500
    assert torch.equal(ids[~dropped], raw["label"][~dropped] + vocabulary.class_id(0))


@pytest.mark.parametrize("label", [-1, 10, 10**12])
def test_labels_that_the_model_does_not_have_are_refused(label: int) -> None:
    raw = raw_batch()
    raw["label"][2] = label
    with pytest.raises(ValueError, match="was built for classes 0 to 9"):
        make_objective().prepare(raw, step=0, seed=0)


def test_the_tokenizer_is_frozen_and_the_model_is_what_trains() -> None:
    objective = make_objective()
    batch = objective.prepare(raw_batch(), step=0, seed=0)
    objective.losses(batch, step=0, totals=objective.counts(batch))["model"]["total"].backward()
    assert all(parameter.grad is None for parameter in objective.tokenizer.parameters())
    assert all(parameter.grad is not None for parameter in objective.model.parameters())
    owned = {p for group in objective.optimizer_groups()["model"].groups for p in group["params"]}
    assert owned == set(objective.model.parameters())


def test_sampling_and_saving_leave_the_model_in_training_mode(tmp_path: Path) -> None:
    objective = make_objective()
    objective.model.train()
    picture = objective.sample_grid(seed=0)
    objective.save_pretrained(tmp_path / "model")
    assert objective.model.training
    assert picture.dtype == torch.uint8
    assert LatentLMPipeline.from_pretrained(tmp_path / "model").generate_images([0]).shape == (1, 1, 8, 8)


def test_the_held_out_loss_is_the_mean_over_examples_and_the_same_at_every_call() -> None:
    objective = make_objective()
    assert objective.evaluations() == ()
    pictures = raw_batch(6)
    parts = [{name: values[span] for name, values in pictures.items()} for span in (slice(0, 4), slice(4, 6))]
    together, split = [], []
    for batches, results in (([pictures], together), (parts, split)):
        objective.held_out = lambda batches=batches: iter(batches)
        (evaluate,) = objective.evaluations()
        results += [evaluate(objective, step)["held_out_loss"] for step in (10, 20)]
    assert together[0] == together[1]
    assert split[0] == pytest.approx(together[0], rel=1e-5)  # another order of the same float32 sums
    assert together[0] > 0
