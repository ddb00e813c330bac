"""Laws of the training losses (Section 2.2)."""

import dataclasses

import pytest
import torch
from tiny_models import randomise, tiny_class_config, tiny_mixed_config
from torch import Tensor
from torch.nn import functional as F

from latentlm.models.latentlm import NOISE_STREAM, TIMESTEP_STREAM, LatentLM
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform
from latentlm.sequence import Document, LabelPart, LatentPart, PackedBatch, SequenceBuilder, TextPart


def picture(count: int, seed: int) -> LatentPart:
    return LatentPart("image", torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)))


def sound(count: int, seed: int) -> LatentPart:
    return LatentPart("speech", torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)))


DOCUMENTS = [
    Document((TextPart("a cat: "), picture(4, 1), TextPart(" meow "), sound(3, 2)), key=11),
    Document((LabelPart(2), picture(4, 3)), key=12),
    Document((TextPart("no latents here"),), key=13),
    Document((sound(5, 4), TextPart("was heard"), picture(2, 5), picture(3, 6)), key=14),
]


def batch_of(builder: SequenceBuilder, rows: list[list[int]]) -> PackedBatch:
    return builder.collate([[builder.build(DOCUMENTS[index]) for index in row] for row in rows])


def test_losses_have_their_names_and_add_up(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    losses = mixed_model(batch_of(mixed_builder, [[0], [1], [2], [3]]), noise_seed=0)
    assert set(losses) == {"lm", "continue/image", "continue/speech", "diffusion/image", "diffusion/speech", "total"}
    expected = losses["lm"] + losses["diffusion/image"] + losses["diffusion/speech"]
    expected = expected + 0.1 * (losses["continue/image"] + losses["continue/speech"])
    assert torch.allclose(losses["total"], expected, rtol=1e-6)  # another order of the same sum
    assert all(loss.dtype == torch.float32 for loss in losses.values())


@torch.no_grad()
def test_lm_loss_is_the_mean_cross_entropy_over_discrete_targets(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    batch = batch_of(mixed_builder, [[0]])
    logits = mixed_model.logits(mixed_model.hidden_states(batch))[0]
    labels, kinds = batch.labels[0], batch.modality_ids[0]
    by_hand = [-logits[i].log_softmax(-1)[labels[i]] for i in range(len(labels) - 1) if kinds[i + 1] == 0]
    assert len(by_hand) == len("a cat: ") + len(" meow ") + 2 + 2 + 1  # begin and end tokens, end of text
    assert torch.allclose(mixed_model(batch, noise_seed=0)["lm"], torch.stack(by_hand).mean(), rtol=1e-5)


@torch.no_grad()
def test_diffusion_loss_is_equation_3_on_the_state_before_each_latent(class_model: LatentLM) -> None:
    builder = SequenceBuilder(class_model.config.vocabulary, ["image"])
    batch = builder.collate([[builder.build(Document((LabelPart(1), picture(4, 0)), key=5))]])
    hidden, latents, keys = class_model.hidden_states(batch)[0], batch.latents["image"], batch.latent_keys["image"]
    process, head, terms = class_model.processes["image"], class_model.diffusion_heads["image"], []
    uniform = keyed_uniform(9, keys, (4,), stream=TIMESTEP_STREAM)
    noise = keyed_normal(9, keys, (4, 6), stream=NOISE_STREAM)
    for k in range(4):
        for r in range(4):
            timestep = process.timesteps_from_uniform(uniform[k, r])
            noisy = process.add_noise(latents[k], noise[k, r], timestep)
            target = process.training_target(latents[k], noise[k, r], timestep)
            terms.append((head(noisy, timestep, hidden[k]) - target).square().mean())
    loss = class_model(batch, noise_seed=9)["diffusion/image"]
    assert torch.allclose(loss, torch.stack(terms).mean(), rtol=1e-5)
    assert class_model.loss_counts(batch) == {"diffusion/image": 4}


def test_a_model_that_predicts_zero_has_the_variance_of_the_target_as_loss() -> None:
    model = LatentLM(tiny_class_config())  # AdaLN-Zero: predicts zero before training
    builder = SequenceBuilder(model.config.vocabulary, ["image"])
    rows = [[builder.build(Document((LabelPart(0), picture(16, seed)), key=seed))] for seed in range(60)]
    with torch.no_grad():
        loss = model(builder.collate(rows), noise_seed=0)["diffusion/image"]
    # v = alpha noise - sigma x has unit variance for unit latents; 23,040 numbers, so 4 standard errors of 0.0093.
    assert abs(float(loss) - 1) < 0.04


@torch.no_grad()
def test_permuting_documents_changes_no_loss(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    reference = mixed_model(batch_of(mixed_builder, [[0, 1, 2, 3]]), noise_seed=3)
    for rows in ([[3, 0, 2, 1]], [[2, 1], [3, 0]], [[0], [1], [2], [3]]):
        losses = mixed_model(batch_of(mixed_builder, rows), noise_seed=3)
        for name, loss in losses.items():
            assert abs(float(loss - reference[name])) < 1e-6 * max(1.0, float(reference[name])), (rows, name)


@torch.no_grad()
def test_padding_full_of_nan_changes_nothing(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    # Rows of unequal length: all but the longest end in padding.
    batch = batch_of(mixed_builder, [[0], [1], [2], [3]])
    assert (batch.document_ids < 0).any()
    reference = mixed_model(batch, noise_seed=3)
    mixed_model.embed_tokens.weight[mixed_builder.vocabulary.pad_id] = torch.nan
    losses = mixed_model(batch, noise_seed=3)
    assert all(torch.equal(loss, reference[name]) for name, loss in losses.items())


def test_padding_and_placeholders_receive_no_gradient(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    mixed_model(batch_of(mixed_builder, [[0], [2]]), noise_seed=0)["total"].backward()
    gradient = mixed_model.embed_tokens.weight.grad
    assert gradient is not None
    assert not gradient[mixed_builder.vocabulary.pad_id].any()
    # The begin token is looked up once per span, although it stands in for every latent.
    used = gradient.abs().sum(-1) > 0
    assert used[mixed_builder.vocabulary.begin_id("image")]
    assert not used[mixed_builder.vocabulary.begin_id("video")]


def test_other_totals_scale_the_losses(class_model: LatentLM) -> None:
    builder = SequenceBuilder(class_model.config.vocabulary, ["image"])
    batch = builder.collate([[builder.build(Document((LabelPart(1), picture(4, 0)), key=5))]])
    own = class_model(batch, noise_seed=0)["total"]
    assert torch.allclose(class_model(batch, noise_seed=0, totals={"diffusion/image": 16})["total"], own / 4)


@torch.no_grad()
def test_timesteps_logits_and_losses_stay_in_float32_under_autocast(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(
        F, "cross_entropy", lambda logits, *a, **k: (seen.append(logits), cross_entropy(logits, *a, **k))[1]
    )
    process = mixed_model.processes["image"]
    add_noise = process.add_noise
    monkeypatch.setattr(process, "add_noise", lambda *args: (seen.append(result := add_noise(*args)), result)[1])
    batch = batch_of(mixed_builder, [[0], [1]])
    exact = mixed_model(batch, noise_seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = mixed_model(batch, noise_seed=1)
    assert not torch.equal(losses["total"], exact["total"])  # autocast did something
    assert len(seen) >= 6
    assert all(tensor.dtype == torch.float32 for tensor in seen)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert abs(float(loss / exact[name]) - 1) < 0.05, name  # bfloat16 has eight bits


def test_the_head_runs_on_latent_positions_only(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, shapes = mixed_model.diffusion_heads["image"], []
    monkeypatch.setattr(head, "forward", lambda noisy, t, h: (shapes.append((noisy.shape, h.shape)), noisy)[1])
    mixed_model(batch_of(mixed_builder, [[0, 1, 2, 3]]), noise_seed=0)
    assert shapes == [((4, 13, 6), (13, 32))]  # 4 + 4 + 2 + 3 latents, four noises each


def test_tied_embeddings_share_one_table() -> None:
    config = dataclasses.replace(tiny_mixed_config(), tie_embeddings=True)
    model = randomise(LatentLM(config))
    assert "lm_head.weight" not in model.state_dict()
    assert model.logits(torch.ones(2, 32)).shape == (2, config.vocabulary.size)  # pyright: ignore


def test_discrete_heads_and_switch_tokens_go_together() -> None:
    with pytest.raises(ValueError, match="discrete targets exist with switch tokens only"):
        dataclasses.replace(tiny_class_config(), lm_head=True)


def test_a_model_without_softmax_head_refuses_logits(class_model: LatentLM) -> None:
    with pytest.raises(ValueError, match="predicts latents only"):
        class_model.logits(torch.zeros(1, 32))


def test_a_modality_that_occurs_in_no_document_has_a_loss_of_zero_and_gradients_of_zero(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    batch = batch_of(mixed_builder, [[1], [2]])  # a picture, no sound
    losses = mixed_model(batch, noise_seed=0)
    assert losses["diffusion/speech"].item() == losses["continue/speech"].item() == 0.0
    assert losses["diffusion/image"].item() > 0
    losses["total"].backward()
    for name, parameter in mixed_model.named_parameters():
        assert parameter.grad is not None, name  # ranks add up gradients parameter by parameter
        assert parameter.grad.isfinite().all(), name
    assert not mixed_model.input_projs["speech"].weight.grad.any()  # pyright: ignore


@torch.no_grad()
def test_losses_of_micro_batches_with_different_modalities_add_up(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    whole = batch_of(mixed_builder, [[0], [1], [2], [3]])
    parts = [batch_of(mixed_builder, [[index]]) for index in range(4)]
    counts = [mixed_model.loss_counts(part) for part in parts]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert totals == mixed_model.loss_counts(whole)
    losses = [mixed_model(part, noise_seed=4, totals=totals) for part in parts]
    for name, expected in mixed_model(whole, noise_seed=4).items():
        assert torch.allclose(sum(loss[name] for loss in losses), expected, rtol=1e-5), name  # pyright: ignore


@torch.no_grad()
def test_the_id_of_a_placeholder_does_not_matter(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    batch = batch_of(mixed_builder, [[0, 1]])
    other = dataclasses.replace(batch, input_ids=batch.input_ids.masked_fill(batch.modality_ids > 0, 7))
    reference, losses = mixed_model(batch, noise_seed=1), mixed_model(other, noise_seed=1)
    assert all(torch.equal(loss, reference[name]) for name, loss in losses.items())


@torch.no_grad()
def test_a_model_in_bfloat16_keeps_losses_in_float32(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    batch = batch_of(mixed_builder, [[0], [1]])
    exact = mixed_model(batch, noise_seed=1)
    for name, loss in mixed_model.to(torch.bfloat16)(batch, noise_seed=1).items():
        assert loss.dtype == torch.float32
        assert abs(float(loss - exact[name])) < 0.05 * max(float(exact[name]), 1), name  # bfloat16 has eight bits


def test_latents_of_another_width_are_refused(class_model: LatentLM) -> None:
    builder = SequenceBuilder(class_model.config.vocabulary, ["image"])
    batch = builder.collate([[builder.build(Document((LabelPart(1), LatentPart("image", torch.zeros(2, 5)))))]])
    with pytest.raises(ValueError, match="5 channels but the model was built for latent_dim=6"):
        class_model(batch, noise_seed=0)


def test_configs_that_cannot_work_are_refused() -> None:
    mixed, image = tiny_mixed_config(), tiny_class_config().modalities["image"]
    with pytest.raises(ValueError, match="no switch tokens are reserved for 'smell'"):
        dataclasses.replace(mixed, modalities={"smell": image})
    with pytest.raises(ValueError, match="cannot name a modality"):
        dataclasses.replace(tiny_class_config(), modalities={"../image": image})
    with pytest.raises(ValueError, match="would predict nothing"):
        dataclasses.replace(tiny_class_config(), modalities={})
    with pytest.raises(ValueError, match="must be at least 1"):
        dataclasses.replace(image, num_noises_per_latent=0)
