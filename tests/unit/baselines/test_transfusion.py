"""Transfusion's model: who sees whom, what is predicted, how much noise; and how documents become its batches."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_documents import save_tiny_documents
from tiny_models import randomise, tiny_image_tokenizer, tiny_vq_image_tokenizer
from torch import Tensor
from toy_training import final_state

from latentlm.baselines.transfusion import (
    Transfusion,
    TransfusionConfig,
    TransfusionObjective,
    TransfusionPipeline,
    TransfusionRecipe,
    build_transfusion,
)
from latentlm.baselines.transfusion.sequence import PictureBatch, before_caption
from latentlm.config import from_mapping
from latentlm.models.latentlm import LatentLM, LatentLMConfig
from latentlm.sequence import Document, IdsPart, LatentPart, LatentSlot, SequenceBuilder, TextPart
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.trainer import Trainer

EOS = ByteTokenizer.eos_id
TRANSFORMER = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
FLOW = {"process": "flow_matching", "prediction_type": "velocity"}


def tiny_config(**image: Any) -> TransfusionConfig:
    vocabulary = {"num_text_ids": 257, "switch_tokens": True}
    mapping = {
        "vocabulary": vocabulary,
        "transformer": TRANSFORMER,
        "image": {"latent_dim": 6, "num_head_layers": 2, **image},
    }
    return from_mapping(TransfusionConfig, mapping)


def picture(count: int, seed: int) -> LatentPart:
    return LatentPart("image", torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)))


DOCUMENTS = (
    Document((TextPart("ab"), picture(4, 1), TextPart("cd"), picture(2, 2)), key=11, group=0),
    Document((TextPart("words"),), key=12, group=1),
    Document((picture(3, 3), TextPart("ef")), key=13, group=0),
)


def batch_of(
    *rows: tuple[Document, ...], noise_seed: int = 5, group_names: tuple[str, ...] = (), length: int | None = None
) -> PictureBatch:
    builder = SequenceBuilder(tiny_config().vocabulary, ["image"], ByteTokenizer())
    packed = builder.collate(
        [[builder.build(document) for document in row] for row in rows], length=length, group_names=group_names
    )
    limits = [is_before for row in rows for document in row for is_before in before_caption(document, {EOS})]
    return PictureBatch.of(packed, latent_dim=6, is_before_caption=limits, noise_seed=noise_seed)


@pytest.fixture
def model() -> Transfusion:
    return randomise(Transfusion(tiny_config())).eval()


# -- sequences ---------------------------------------------------------------------------------------------------------


def test_a_batch_knows_its_pictures() -> None:
    batch = batch_of(DOCUMENTS[:2], DOCUMENTS[2:])
    assert batch.picture_of_latent.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert batch.place_in_picture.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert batch.max_latents == 4
    assert batch.is_before_caption.tolist() == [False, False, True]
    assert batch.picture_keys.unique().numel() == 3
    # end-of-text, a, b, begin, four latents, end, c, d, begin, two latents, ...
    assert batch.reach[0, :16].tolist() == [0, 1, 2, 3, 7, 7, 7, 7, 8, 9, 10, 11, 13, 13, 14, 15]
    # end-of-text, begin, three latents, end, e, ...
    assert batch.reach[1, :7].tolist() == [0, 1, 4, 4, 4, 5, 6]


def test_inside_pictures_nothing_discrete_is_predicted() -> None:
    batch = batch_of((Document((TextPart("a"), picture(4, 1), TextPart("b"))),))
    vocabulary = tiny_config().vocabulary
    assert batch.text_positions.tolist() == [0, 1, 7, 8]
    targets = batch.packed.labels[0, batch.text_positions]
    assert targets.tolist() == [97, vocabulary.begin_id("image"), 98, EOS]


def test_a_picture_comes_before_its_caption_if_no_text_precedes_it_and_some_follows() -> None:
    text, mark, image = TextPart("x"), IdsPart((EOS,)), picture(2, 0)
    cases: list[tuple[tuple[Any, ...], list[bool]]] = [
        ((image, text), [True]),
        ((mark, image, IdsPart((120, EOS))), [True]),
        ((text, image), [False]),
        ((mark, image, mark), [False]),
        ((text, image, text), [False]),
        ((image, image, text, image), [True, True, False]),
        ((image, TextPart("")), [False]),
    ]
    for parts, expected in cases:
        assert before_caption(Document(parts), {EOS}) == expected


def test_pictures_that_nothing_is_said_about_are_refused() -> None:
    builder = SequenceBuilder(tiny_config().vocabulary, ["image"], ByteTokenizer())
    packed = builder.collate([[builder.build(DOCUMENTS[0])]])
    with pytest.raises(ValueError, match="about 1 pictures, but the batch holds 2"):
        PictureBatch.of(packed, latent_dim=6, is_before_caption=[True], noise_seed=0)


# -- attention ---------------------------------------------------------------------------------------------------------


def changed_columns(model: Transfusion, batch: PictureBatch, latent: int) -> Tensor:
    """Which positions of the batch notice a change of one latent: bool [B, T]."""
    timesteps = torch.full_like(batch.latent_positions, 300)
    other = batch.latents.clone()
    other[latent] += 1.0
    states, others = (model.hidden_states(batch, latents, timesteps) for latents in (batch.latents, other))
    # Positions that do not see it are computed from the same numbers; those that do move by about 0.1.
    return (states - others).abs().amax(-1) > 1e-5


@torch.no_grad()
def test_a_latent_is_seen_by_its_whole_picture_and_all_that_follows_in_its_document(model: Transfusion) -> None:
    batch = batch_of(DOCUMENTS[:2], DOCUMENTS[2:])
    length = batch.reach.shape[1]
    # The third of four latents in columns 4 to 7; the document ends in column 15, another one follows.
    expected = torch.zeros(2, length, dtype=torch.bool)
    expected[0, 4:16] = True
    assert torch.equal(changed_columns(model, batch, 2), expected)
    # The last latent of the second picture, columns 12 and 13: the first picture and the words do not notice.
    expected = torch.zeros(2, length, dtype=torch.bool)
    expected[0, 12:16] = True
    assert torch.equal(changed_columns(model, batch, 5), expected)


@torch.no_grad()
def test_text_is_causal_and_documents_keep_to_themselves(model: Transfusion) -> None:
    batch = batch_of(DOCUMENTS[:2])
    input_ids = batch.packed.input_ids.clone()
    input_ids[0, 9] = 120  # the c of "cd"
    other = dataclasses.replace(batch, packed=dataclasses.replace(batch.packed, input_ids=input_ids))
    timesteps = torch.full_like(batch.latent_positions, 300)
    states, others = (model.hidden_states(of_one, batch.latents, timesteps) for of_one in (batch, other))
    changed = ((states - others).abs().amax(-1) > 1e-5)[0]  # see changed_columns
    assert changed.nonzero().flatten().tolist() == list(range(9, 16))


@torch.no_grad()
@pytest.mark.parametrize("head_adaln", [False, True], ids=["plain", "adaln"])
def test_the_image_head_sees_one_picture_and_no_padding(head_adaln: bool) -> None:
    model = randomise(Transfusion(tiny_config(head_adaln=head_adaln)))
    states = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    is_latent = torch.tensor([[True] * 4, [True, True, False, False]])
    timesteps = torch.tensor([10, 900])
    whole = model.predict(states, timesteps, is_latent)
    states[1, 2:] = 7.0
    assert torch.equal(model.predict(states, timesteps, is_latent)[0], whole[0])
    small = model.predict(states[1:, :2], timesteps[1:], is_latent[1:, :2])
    # Sums over two and over four positions, of which two weigh nothing: rounding of float32.
    assert torch.allclose(model.predict(states, timesteps, is_latent)[1, :2], small[0], atol=1e-5)
    assert torch.allclose(whole[1, :2], small[0], atol=1e-5)


# -- losses ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("diffusion", [{}, FLOW], ids=["ddpm", "flow_matching"])
def test_losses_of_packed_documents_are_those_of_each_alone(diffusion: dict[str, str]) -> None:
    model = randomise(Transfusion(tiny_config(diffusion=diffusion)))
    together = batch_of(DOCUMENTS[:2], DOCUMENTS[2:], group_names=("mixed", "text"), length=40)
    losses, counts = model(together), model.loss_counts(together)
    sums = dict.fromkeys(("lm", "diffusion/image"), 0.0)
    for document in DOCUMENTS:
        alone = batch_of((document,))
        of_one, count = model(alone), model.loss_counts(alone)
        for name in sums:
            sums[name] += float(of_one[name]) * count[name]
    for name, total in sums.items():
        # float32 sums over rows of other lengths.
        assert float(losses[name]) == pytest.approx(total / counts[name], rel=1e-5)
    assert counts["lm"] == counts["lm/mixed"] + counts["lm/text"]
    assert counts["diffusion/image"] == counts["diffusion/image/mixed"] == 9
    by_group = [float(losses[f"lm/{group}"]) * counts[f"lm/{group}"] for group in ("mixed", "text")]
    assert sum(by_group) == pytest.approx(sums["lm"], rel=1e-5)  # another order of the same sum
    assert losses["diffusion/image/text"] == 0


def test_the_total_weighs_the_two_losses() -> None:
    model = randomise(Transfusion(tiny_config(loss_weight=5.0)))
    losses = model(batch_of(DOCUMENTS))
    assert torch.equal(losses["total"], losses["lm"] + 5.0 * losses["diffusion/image"])


@torch.no_grad()
def test_totals_of_micro_batches_add_up(model: Transfusion) -> None:
    whole, halves = batch_of(DOCUMENTS[:2], DOCUMENTS[2:]), [batch_of(DOCUMENTS[:2]), batch_of(DOCUMENTS[2:])]
    totals = model.loss_counts(whole)
    summed = sum(model(half, totals=totals)["total"] for half in halves)
    # float32 sums in another order.
    assert float(summed) == pytest.approx(float(model(whole)["total"]), rel=1e-5)


@pytest.mark.parametrize("head_adaln", [False, True], ids=["plain", "adaln"])
def test_a_gradient_reaches_every_weight_and_none_is_missing_without_pictures(head_adaln: bool) -> None:
    model = randomise(Transfusion(tiny_config(head_adaln=head_adaln)))
    model(batch_of(DOCUMENTS))["total"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.zero_grad()
    losses = model(batch_of(DOCUMENTS[1:2]))
    assert losses["diffusion/image"] == 0
    losses["total"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_text_is_scored_after_clean_pictures_and_trained_after_noised_ones(model: Transfusion) -> None:
    one, other = (batch_of(DOCUMENTS, noise_seed=seed, group_names=("mixed", "text")) for seed in (1, 2))
    assert not torch.equal(model(one)["lm"], model(other)["lm"])
    scores = model.text_losses(one)
    assert scores.keys() == {"lm", "lm/mixed", "lm/text"}
    assert torch.equal(scores["lm"], model.text_losses(other)["lm"])
    assert torch.equal(scores["lm/text"], model(one)["lm/text"])
    assert not torch.equal(scores["lm"], model(one)["lm"])
    quiet = torch.zeros(9, dtype=torch.long)  # t = 0, the quiet end of ddpm
    states = model.hidden_states(one, one.latents, quiet).flatten(0, 1)[one.text_positions]
    by_hand = -model.logits(states).log_softmax(-1).gather(1, one.packed.labels.flatten()[one.text_positions][:, None])
    torch.testing.assert_close(scores["lm"], by_hand.mean())


@pytest.mark.parametrize("diffusion", [{}, FLOW], ids=["ddpm", "flow_matching"])
def test_noise_before_captions_is_limited_if_the_recipe_says_so(diffusion: dict[str, str]) -> None:
    first, last = (picture(2, 0), TextPart("a")), (TextPart("a"), picture(2, 0))
    rows = tuple((Document(first, key=key), Document(last, key=1000 + key)) for key in range(200))
    batch = batch_of(*rows)
    full = Transfusion(tiny_config(diffusion=diffusion)).draw_timesteps(batch)
    limited = Transfusion(tiny_config(diffusion=diffusion, max_noise_before_caption=0.5)).draw_timesteps(batch)
    is_first = batch.is_before_caption
    assert is_first.tolist() == [True, False] * 200
    assert torch.equal(limited[~is_first], full[~is_first])
    noisiest = (1000 - full) if diffusion else full
    noisiest_limited = (1000 - limited) if diffusion else limited
    # Of 200 uniform draws the largest comes within 5% of the end: the chance of none is 0.95^200, below 1e-4.
    assert noisiest[is_first].max() > 950
    assert 475 < noisiest_limited[is_first].max() <= 500
    assert noisiest_limited[is_first].min() < 25


def test_one_timestep_serves_a_picture_and_noise_differs_between_its_latents(model: Transfusion) -> None:
    seen: dict[str, Tensor] = {}

    def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        seen.update(noise=noise, timesteps=timesteps)
        return latents

    batch = batch_of(DOCUMENTS)
    model.process.add_noise = add_noise  # pyright: ignore[reportAttributeAccessIssue]
    model(batch)
    assert torch.equal(seen["timesteps"], model.draw_timesteps(batch)[batch.picture_of_latent])
    assert len(seen["noise"].unique(dim=0)) == 9


@torch.no_grad()
def test_reduced_precision_stays_close(model: Transfusion) -> None:
    batch = batch_of(DOCUMENTS)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    assert losses["total"].dtype == torch.float32
    for name, value in model(batch).items():
        # bfloat16 keeps 8 bits: 0.4% per product, over four layers.
        assert float(losses[name]) == pytest.approx(float(value), rel=0.03)


def test_at_the_papers_size_it_has_as_many_parameters_as_latentlm() -> None:
    vocabulary = {"num_text_ids": 100_277, "switch_tokens": True}
    # Table 8; latent_dim is not given there and hardly counts.
    transformer = {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "intermediate_size": 6144}
    sizes = {"vocabulary": vocabulary, "transformer": transformer}
    image = {"latent_dim": 16, "head": {"num_layers": 6}}
    with torch.device("meta"):
        ours = Transfusion(from_mapping(TransfusionConfig, {**sizes, "image": {"latent_dim": 16}}))
        latentlm = LatentLM(from_mapping(LatentLMConfig, {**sizes, "modalities": {"image": image}}))
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, latentlm)]
    # "To align the number of parameters", Section 3.2.2: 336M of head here, 319M there, in 2.04B.
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_configs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a share of the schedule between 0 and 1"):
        tiny_config(max_noise_before_caption=500.0)
    config = tiny_config()
    for changes, message in (
        ({"switch_tokens": False, "num_text_ids": 0}, "needs vocabulary.switch_tokens"),
        ({"num_codes": 16}, "leave out num_codes"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, **changes))
    with pytest.raises(ValueError, match="4 channels but the model was built for latent_dim=6"):
        Transfusion(config).embed(torch.zeros(1, 2).long(), torch.zeros(1, 4), torch.tensor([1]), torch.tensor([0]))


# -- training ----------------------------------------------------------------------------------------------------------


def tiny_recipe(folder: Path, **changes: Any) -> TransfusionRecipe:
    if not (folder / "tokenizer").exists():
        tiny_image_tokenizer().save_pretrained(folder / "tokenizer")
        save_tiny_documents(folder)
    mapping: dict[str, Any] = {
        "kind": "transfusion",
        "sources": {"mixed": {"data": {"path": str(folder / "documents.jsonl"), "validation_ratio": 0.2}}},
        "tokenizer": str(folder / "tokenizer"),
        "max_length": 48,
        "model": {
            "vocabulary": {"switch_tokens": True},
            "transformer": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24},
            "image": {"latent_dim": 6, "num_head_layers": 1, "max_noise_before_caption": 0.5},
        },
        "generation": {"cfg_scale": 1.5, "solver": {"num_inference_steps": 2}},
        "optim": {"lr": 1.0e-3, "num_warmup_steps": 1},
        "trainer": {"num_steps": 2, "batch_size": 8, "tensorboard": False, "device": "cpu", "sample_every": 2},
        **changes,
    }
    return from_mapping(TransfusionRecipe, mapping)


def pictures(count: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(1, 8, 8, dtype=torch.uint8) for _ in range(count))


@pytest.fixture
def built(tmp_path: Path) -> tuple[TransfusionObjective, dict[str, Any]]:
    """An objective with random weights everywhere, and its first raw batch."""
    objective, make_loader, _ = build_transfusion(tiny_recipe(tmp_path))
    randomise(objective.model)
    return objective, dict(next(make_loader(0)))


def test_documents_become_batches_and_these_the_same_again(built: tuple[TransfusionObjective, dict[str, Any]]) -> None:
    objective, raw = built
    batch, again, other = (objective.prepare(raw, step=step, seed=0) for step in (0, 0, 1))
    assert batch.packed.input_ids.shape == (8, 48)
    assert batch.packed.group_names == ("mixed",)
    # A tokenizer of 4 latents a picture, all of them whole.
    assert torch.equal(torch.bincount(batch.picture_of_latent), torch.full_like(batch.picture_keys, 4))
    losses = objective.model_losses(batch, objective.loss_counts(batch))
    assert losses.keys() == {"lm", "diffusion/image", "total", "lm/mixed", "diffusion/image/mixed"}
    assert objective.model_losses(again, None)["total"] == losses["total"]
    assert objective.model_losses(other, None)["diffusion/image"] != losses["diffusion/image"]


def test_pictures_without_their_condition_keep_the_whole_range_of_noise(
    built: tuple[TransfusionObjective, dict[str, Any]],
) -> None:
    objective, _ = built
    objective.drop_cond_prob = 1.0
    told = RawPiece((IdsPart((EOS, 98)), LatentSlot("image", 4, 0), IdsPart((97, EOS))), pictures(1), key=1, group=0)
    batch = objective.prepare({"rows": [[told]]}, step=0, seed=0)
    assert batch.is_before_caption.tolist() == [False]
    assert batch.packed.input_ids[0, 0] == EOS  # as guidance's unconditional stream begins


def test_captioned_pictures_are_always_noised_less_whatever_is_dropped(
    built: tuple[TransfusionObjective, dict[str, Any]],
) -> None:
    objective, _ = built
    objective.drop_cond_prob = 1.0
    captioned = RawPiece((IdsPart((EOS,)), LatentSlot("image", 4, 0), IdsPart((97, EOS))), pictures(1), key=1, group=0)
    for step in range(5):
        batch = objective.prepare({"rows": [[captioned]]}, step=step, seed=0)
        assert batch.is_before_caption.tolist() == [True]
        assert batch.packed.input_ids[0, 7:9].tolist() == [97, EOS]


def test_held_out_text_is_scored_after_clean_pictures(built: tuple[TransfusionObjective, dict[str, Any]]) -> None:
    objective, raw = built
    batch = objective.prepare(raw, step=0, seed=0)
    trained, scored = objective.model_losses(batch, None), objective.eval().model_losses(batch, None)
    assert scored["lm"] == objective.model.text_losses(batch)["lm"] != trained["lm"]
    assert scored["diffusion/image"] == trained["diffusion/image"]
    (evaluate,) = objective.evaluations()
    names = {"total", "lm", "diffusion/image", "lm/mixed", "diffusion/image/mixed"}
    assert evaluate(objective, 0).keys() == {f"held_out/{name}" for name in names}


def test_two_steps_are_trained_observed_and_saved(tmp_path: Path) -> None:
    objective, make_loader, recipe = build_transfusion(tiny_recipe(tmp_path))
    run = tmp_path / "run"
    Trainer(objective, make_loader, recipe.trainer, run, recipe=recipe, evaluations=objective.evaluations()).fit()
    assert final_state(run)["metrics"][0]["step"] == 1
    assert recipe.model.vocabulary.num_text_ids == 257
    assert recipe.model.image.tokenizer_fingerprint == objective.tokenizer.fingerprint()
    loaded = TransfusionPipeline.from_pretrained(run / "model")
    assert loaded.sampling == {"image": recipe.generation, "text": recipe.text_generation}
    ((image,),) = loaded.generate(["a"], images=1, max_new_tokens=0)
    assert getattr(image, "size", None) == (8, 8)


def test_recipes_without_a_tokenizer_of_latents_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    with pytest.raises(ValueError, match="names no tokenizer"):
        build_transfusion(dataclasses.replace(recipe, tokenizer=None))
    tiny_vq_image_tokenizer().save_pretrained(tmp_path / "codes")
    with pytest.raises(ValueError, match="is a 'vq_image_tokenizer'"):
        build_transfusion(dataclasses.replace(recipe, tokenizer=str(tmp_path / "codes")))
    model = dataclasses.replace(recipe.model, image=dataclasses.replace(recipe.model.image, latent_dim=5))
    with pytest.raises(ValueError, match=r"pass --model\.image\.latent_dim 6"):
        build_transfusion(dataclasses.replace(recipe, model=model))
