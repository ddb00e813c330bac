"""What all class-conditional generators share in training: tokens, dropped labels, groups, held-out loss."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_kinds import save_tiny_tokenizers, tiny_recipe
from tiny_models import randomise, tiny_pictures
from torch import Tensor

from latentlm.catalog import build, load
from latentlm.data import LatentWriter, open_images
from latentlm.models.image_model import TokenSpace
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.training.objectives import labelled_images
from latentlm.training.objectives.image_model import ImageModelObjective
from latentlm.training.objectives.labelled_images import held_out_batches
from latentlm.training.objectives.latentlm import LatentLMObjective

NULL = 10


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_tiny_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(params=["dit", "maskgit"])
def objective(request: pytest.FixtureRequest, tokenizers: dict[str, Path]) -> ImageModelObjective:
    """A model of latents and one of codes, weights all random: zeros of AdaLN's gates would hide gradients."""
    folder = tokenizers["latents" if request.param == "dit" else "codes"]
    objective, _, _ = build(tiny_recipe(request.param, folder, drop_cond_prob=0.3))
    randomise(objective.model)
    return objective


def raw_batch(count: int = 6) -> dict[str, Tensor]:
    return {"image": tiny_pictures(count), "label": torch.arange(count) % 5, "key": torch.arange(count) + 100}


def part_of(raw: dict[str, Tensor], span: slice) -> dict[str, Tensor]:
    return {name: values[span] for name, values in raw.items()}


# -- tokens and labels -------------------------------------------------------------------------------------------------


def test_codes_are_those_of_the_pictures(tokenizers: dict[str, Path]) -> None:
    objective, _, _ = build(tiny_recipe("maskgit", tokenizers["codes"]))
    raw = raw_batch(8)
    batch = objective.prepare(raw, step=3, seed=0)
    assert torch.equal(batch.tokens, objective.tokenizer.encode(raw["image"]))
    assert torch.equal(batch.keys, raw["key"])


def test_latents_are_the_means_of_the_pictures_and_noise_of_their_keys(tokenizers: dict[str, Path]) -> None:
    objective, _, _ = build(tiny_recipe("dit", tokenizers["latents"]))
    raw = raw_batch(8)
    turned = {**raw, "image": raw["image"].flip(0)}
    noise = []
    for batch in (raw, turned):
        mean = objective.tokenizer.encode(batch["image"], sample=False).detach()
        noise.append(objective.prepare(batch, step=3, seed=0).tokens - mean)
    assert (noise[0].std(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(noise[0], noise[1], atol=1e-5, rtol=0)  # sums of latents near 1 in float32


def test_noise_and_dropped_labels_follow_the_key_and_change_with_step_and_seed(objective: ImageModelObjective) -> None:
    raw = raw_batch(40)
    first = objective.prepare(raw, step=3, seed=0)
    order = torch.arange(39, -1, -1)
    again = objective.prepare({name: values[order] for name, values in raw.items()}, step=3, seed=0)
    assert again.noise_seed == first.noise_seed
    assert torch.equal(again.labels, first.labels[order])
    torch.testing.assert_close(again.tokens, first.tokens[order], atol=1e-5, rtol=0)  # encoded in another order
    for other in (objective.prepare(raw, step=4, seed=0), objective.prepare(raw, step=3, seed=1)):
        assert other.noise_seed != first.noise_seed
        assert not torch.equal(other.labels, first.labels)
        if isinstance(objective.tokenizer, ImageTokenizer):
            assert not torch.allclose(other.tokens, first.tokens)


def test_the_null_class_takes_the_place_of_the_stated_share_of_labels(objective: ImageModelObjective) -> None:
    raw = raw_batch(500)
    labels = objective.prepare(raw, step=0, seed=0).labels
    dropped = labels == NULL
    assert abs(float(dropped.double().mean()) - 0.3) < 0.082  # four standard errors of 500
    assert torch.equal(labels[~dropped], raw["label"][~dropped])
    objective.drop_cond_prob = 0.0
    assert torch.equal(objective.prepare(raw, step=0, seed=0).labels, raw["label"])


@pytest.mark.parametrize("label", [-1, 10, 10**12])
def test_labels_that_the_model_does_not_have_are_refused(objective: ImageModelObjective, label: int) -> None:
    raw = raw_batch()
    raw["label"][2] = label
    with pytest.raises(ValueError, match="the model was built for classes 0 to 9"):
        objective.prepare(raw, step=0, seed=0)


def test_a_cache_gives_the_latents_of_its_pictures_and_belongs_to_one_tokenizer(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    recipe = tiny_recipe("dit", tokenizers["latents"], latents=str(tmp_path))
    tokenizer, pictures = load(tokenizers["latents"]), open_images(recipe.data, part="train").take(range(20))
    assert pictures is not None
    writer = LatentWriter(tmp_path, tokenizer_fingerprint=tokenizer.fingerprint(), label_names=tuple("0123456789"))
    with torch.no_grad():
        mean = tokenizer.posterior(pictures["image"]).mean
    writer.append(latent_mean=mean, label=pictures["label"], key=pictures["key"], position=20)
    writer.close()
    objective, make_loader, _ = build(recipe)
    assert objective.evaluations() == (), "a cache holds nothing out"
    raw = next(make_loader(0))
    places = [pictures["key"].tolist().index(key) for key in raw["key"].tolist()]
    fresh = objective.prepare({name: values[places] for name, values in pictures.items()}, step=3, seed=0)
    cached = objective.prepare(raw, step=3, seed=0)
    torch.testing.assert_close(cached.tokens, fresh.tokens, atol=1e-5, rtol=0)  # encoded in another batch
    assert torch.equal(cached.labels, fresh.labels)
    with pytest.raises(ValueError, match="encode the data again with the tokenizer at hand"):
        build(replace(recipe, tokenizer=str(tokenizers["codes"])))


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dit", "mar", "maskgit"])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(kind: str, tokenizers: dict[str, Path]) -> None:
    # MAR and MaskGIT average over what is masked, which differs between the parts.
    objective, _, _ = build(tiny_recipe(kind, tokenizers["codes" if kind == "maskgit" else "latents"]))
    randomise(objective.model)
    raw = raw_batch(9)

    def gradients(spans: list[slice]) -> tuple[float, dict[str, Tensor]]:
        batches = [objective.prepare(part_of(raw, span), step=2, seed=0) for span in spans]
        counts = [objective.counts(batch) for batch in batches]
        totals = {name: sum(count[name] for count in counts) for name in counts[0]}
        objective.model.zero_grad()
        loss = 0.0
        for batch in batches:
            total = objective.losses(batch, step=2, totals=totals)["model"]["total"]
            total.backward()
            loss += total.item()
        return loss, {name: p.grad.clone() for name, p in objective.model.named_parameters()}

    whole_loss, whole = gradients([slice(None)])
    parts_loss, parts = gradients([slice(0, 2), slice(2, 3), slice(3, 9)])
    assert parts_loss == pytest.approx(whole_loss, rel=1e-5)  # float32 sums in another order
    for name, gradient in whole.items():
        assert gradient.any(), name
        # Float32 sums in another order, measured against the largest entry of each weight's gradient.
        assert (parts[name] - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def test_the_optimizer_owns_the_model_and_the_tokenizer_stays_frozen(objective: ImageModelObjective) -> None:
    owned = {p for group in objective.optimizer_groups()["model"].groups for p in group["params"]}
    assert owned == set(objective.model.parameters())
    assert objective.ema_modules() == {"model": objective.model}
    assert not any(p.requires_grad for p in objective.tokenizer.parameters())


def test_sampling_and_saving_leave_the_model_in_training_mode(objective: ImageModelObjective, tmp_path: Path) -> None:
    objective.model.train()
    picture = objective.sample_grid(seed=0)
    objective.save_pretrained(tmp_path / "model")
    assert objective.model.training
    assert picture.dtype == torch.uint8
    saved = load(tmp_path / "model")
    assert saved.sampling == {"image": objective.sampling}
    assert saved.label_names == objective.label_names == tuple("0123456789")


# -- building ----------------------------------------------------------------------------------------------------------


def test_data_and_tokenizer_fill_in_the_space(tokenizers: dict[str, Path]) -> None:
    for kind, folder, numbers in (
        ("dit", tokenizers["latents"], {"latent_dim": 6}),
        ("maskgit", tokenizers["codes"], {"num_codes": 16}),
    ):
        objective, _, recipe = build(tiny_recipe(kind, folder))
        fingerprint = load(folder).fingerprint()
        expected = TokenSpace(num_classes=10, rows=2, columns=2, tokenizer_fingerprint=fingerprint, **numbers)
        assert objective.model.space == recipe.model.space == expected


@pytest.mark.parametrize(
    ("kind", "token_kind", "sentence"),
    [
        ("dit", "codes", r"a 'dit' models latents, but the tokenizer in .*codes_tokenizer is a 'vq_image_tokenizer'"),
        ("maskgit", "latents", r"a 'maskgit' models codes, but the tokenizer in .* is a 'image_tokenizer'"),
        ("latentlm", "codes", r"LatentLM models latents, but the tokenizer in .* is a 'vq_image_tokenizer'"),
    ],
)
def test_a_tokenizer_of_the_other_kind_is_refused(
    kind: str, token_kind: str, sentence: str, tokenizers: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(tiny_recipe(kind, tokenizers[token_kind]))


def test_recipes_that_do_not_fit_are_refused_with_what_mends_them(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    recipe = tiny_recipe("dit", tokenizers["latents"])
    with pytest.raises(ValueError, match=r"names no tokenizer; train one first .* pass --tokenizer"):
        build(replace(recipe, tokenizer=None))
    for name, found in (("num_classes", 10), ("columns", 2), ("latent_dim", 6)):
        space = TokenSpace(**{name: 7})
        with pytest.raises(ValueError, match=f"model.space.{name}: 7, but data and tokenizer give {found}; leave"):
            build(replace(recipe, model=replace(recipe.model, space=space)))
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"it must lie in \[0, 1\)"):
            replace(recipe, drop_cond_prob=share)
    build(recipe)[0].save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a 'dit', which is none of the tokenizers"):
        build(replace(recipe, tokenizer=str(tmp_path / "model")))


@pytest.mark.parametrize("kind", ["dit", "latentlm"])
def test_pictures_of_another_size_than_the_tokenizers_are_refused(kind: str, tokenizers: dict[str, Path]) -> None:
    recipe = tiny_recipe(kind, tokenizers["latents"])
    with pytest.raises(ValueError, match=r"trained on pictures of 8 x 8 but the data have 16 x 16; pass --data"):
        build(replace(recipe, data=replace(recipe.data, image_size=16)))


def test_the_seed_of_the_run_alone_decides_the_initial_weights(tokenizers: dict[str, Path]) -> None:
    def weights(seed: int) -> Tensor:
        recipe = tiny_recipe("dit", tokenizers["latents"], trainer={"seed": seed})
        return build(recipe)[0].model.label_embedding.weight

    first, state = weights(0), torch.get_rng_state()
    assert torch.equal(weights(0), first)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were drawn from"
    assert not torch.equal(weights(1), first)


# -- groups of pictures ------------------------------------------------------------------------------------------------


NUM_PICTURES = 3


@pytest.fixture
def documents(tokenizers: dict[str, Path]) -> tuple[LatentLMObjective, dict[str, Any]]:
    """A LatentLM of documents of three pictures, and a batch of four of them."""
    recipe = tiny_recipe("latentlm", tokenizers["latents"], pictures_per_document=NUM_PICTURES, drop_cond_prob=0.0)
    objective, make_loader, _ = build(recipe)
    return objective, next(make_loader(0))


def latents_of(objective: LatentLMObjective, raw: dict[str, Any]) -> Tensor:
    """Latents of a prepared batch, one row per document."""
    packed, _ = objective.prepare(raw, step=3, seed=0)
    return packed.latents["image"].unflatten(0, (len(raw["label"]), -1))


def test_a_document_is_its_pictures_in_order_the_label_before_each(
    documents: tuple[LatentLMObjective, dict[str, Any]],
) -> None:
    objective, raw = documents
    assert raw["image"].shape == (4, NUM_PICTURES, 1, 8, 8)
    packed, _ = objective.prepare(raw, step=3, seed=0)
    class_id = objective.model.config.vocabulary.class_id
    assert packed.input_ids.shape == (4, NUM_PICTURES * 5)
    ids = torch.tensor([class_id(label) for label in raw["label"].tolist()])
    assert torch.equal(packed.input_ids[:, ::5], ids[:, None].expand(-1, NUM_PICTURES))
    assert packed.modality_ids[0].tolist() == [0, 1, 1, 1, 1] * NUM_PICTURES
    assert objective.counts((packed, 0))["diffusion/image"] == 4 * NUM_PICTURES * 4
    # Picture k of a document has the latents that it has as a document of its own under the same key.
    spans = latents_of(objective, raw).unflatten(1, (NUM_PICTURES, 4))
    for place in range(NUM_PICTURES):
        alone = {"image": raw["image"][:, place], "label": raw["label"], "key": raw["key"][:, place]}
        torch.testing.assert_close(spans[:, place], latents_of(objective, alone), atol=1e-5, rtol=0)


def test_with_switch_tokens_every_picture_of_a_document_is_a_span(tokenizers: dict[str, Path]) -> None:
    recipe = tiny_recipe("latentlm", tokenizers["latents"], pictures_per_document=NUM_PICTURES, drop_cond_prob=0.0)
    vocabulary = replace(recipe.model.vocabulary, switch_tokens=True)
    objective, make_loader, _ = build(replace(recipe, model=replace(recipe.model, vocabulary=vocabulary, lm_head=True)))
    raw = next(make_loader(0))
    packed, _ = objective.prepare(raw, step=3, seed=0)
    vocabulary = objective.model.config.vocabulary
    label = vocabulary.class_id(int(raw["label"][0]))
    switches = [label, vocabulary.begin_id("image"), vocabulary.end_id("image")]
    assert packed.modality_ids[0].tolist() == [0, 0, 1, 1, 1, 1, 0] * NUM_PICTURES
    assert packed.input_ids[0][packed.modality_ids[0] == 0].tolist() == switches * NUM_PICTURES


def test_the_same_picture_twice_in_a_document_has_noise_of_its_own_each_time(
    documents: tuple[LatentLMObjective, dict[str, Any]],
) -> None:
    objective, raw = documents
    image = raw["image"][:, :1].expand(-1, NUM_PICTURES, -1, -1, -1)
    twins = latents_of(objective, {**raw, "image": image}).unflatten(1, (NUM_PICTURES, 4))
    for first, second in itertools.combinations(range(NUM_PICTURES), 2):
        assert not torch.isclose(twins[:, first], twins[:, second]).all(dim=(1, 2)).any()


def test_documents_train_and_are_held_out_like_single_pictures(
    documents: tuple[LatentLMObjective, dict[str, Any]],
) -> None:
    objective, raw = documents
    batch = objective.prepare(raw, step=0, seed=0)
    loss = objective.losses(batch, step=0, totals=objective.counts(batch))["model"]["total"]
    loss.backward()
    assert loss.isfinite()
    (evaluate,) = objective.evaluations()
    assert evaluate(objective, 0)["held_out_loss"] > 0
    assert objective.held_out is not None
    assert next(iter(objective.held_out()))["image"].shape[1] == NUM_PICTURES


def test_groups_that_cannot_be_are_refused(tokenizers: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="pictures_per_document is 0; it must be at least 1"):
        tiny_recipe("latentlm", tokenizers["latents"], pictures_per_document=0)
    grouped = tiny_recipe("latentlm", tokenizers["latents"], pictures_per_document=2, latents="cache")
    with pytest.raises(ValueError, match="documents of several pictures are encoded on the fly: leave `latents` out"):
        build(grouped)


# -- held-out loss -----------------------------------------------------------------------------------------------------


def test_the_held_out_loss_is_the_mean_over_examples_and_the_same_at_every_call(tokenizers: dict[str, Path]) -> None:
    objective, _, _ = build(tiny_recipe("dit", tokenizers["latents"]))
    randomise(objective.model)
    raw = raw_batch(6)

    def measured(batches: list[dict[str, Tensor]], step: int) -> float:
        objective.held_out = lambda: iter(batches)
        (evaluate,) = objective.evaluations()
        return evaluate(objective, step)["held_out_loss"]

    together = measured([raw], 10)
    assert together > 0
    assert measured([raw], 20) == together
    split = measured([part_of(raw, slice(0, 4)), part_of(raw, slice(4, 6))], 10)
    assert split == pytest.approx(together, rel=1e-5)  # another order of the same float32 sums


def test_what_is_held_out_is_the_validation_part_up_to_a_bound(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe("dit", tokenizers["latents"])
    validation = open_images(recipe.data, part="validation")
    assert len(validation) == 63
    batches = held_out_batches(recipe.data, None, 7)
    assert batches is not None
    keys = torch.cat([batch["key"] for batch in batches()])
    assert len(keys) == len(keys.unique()) == 63, "every picture once"
    assert set(keys.tolist()) == set(validation.source.keys(validation.indices).tolist())
    assert torch.equal(keys, torch.cat([batch["key"] for batch in batches()])), "the same at every call"
    monkeypatch.setattr(labelled_images, "NUM_HELD_OUT_EXAMPLES", 15)
    for batch_size, sizes in ((7, [7, 7]), (1000, [63])):
        batches = held_out_batches(recipe.data, None, batch_size)
        assert batches is not None
        assert [len(batch["label"]) for batch in batches()] == sizes


def test_without_validation_pictures_nothing_is_held_out(tokenizers: dict[str, Path]) -> None:
    recipe = tiny_recipe("dit", tokenizers["latents"])
    data = replace(recipe.data, validation_ratio=0.0)
    assert held_out_batches(data, None, 4) is None
    assert held_out_batches(recipe.data, "a cache of latents", 4) is None
    assert build(replace(recipe, data=data))[0].evaluations() == ()
