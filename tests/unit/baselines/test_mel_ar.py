"""Autoregression over mel frames: its losses by hand, its model, how recordings become its batches."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_mel_ar import NUM_MELS, tiny_config, tiny_model, tiny_recipe, tiny_vocoder
from tiny_models import randomise
from torch import Tensor, nn
from toy_training import final_state

from latentlm.baselines.mel_ar import MelAR, MelARPipeline, MelVocoder, build_mel_ar
from latentlm.baselines.mel_ar.features import complete_groups, group_frames, newest_groups, ungroup_frames
from latentlm.baselines.mel_ar.losses import (
    divergence_from_frames,
    regression_loss,
    spectrogram_flux,
    stop_loss,
)
from latentlm.baselines.mel_ar.model import NOISE_STREAM
from latentlm.catalog import RECIPE_CLASSES
from latentlm.config import load_recipe
from latentlm.models.latentlm import LatentLM
from latentlm.nn.keyed_noise import keyed_normal
from latentlm.sequence import Document, LatentPart, PackedBatch, SequenceBuilder, TextPart
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.objectives import documents
from latentlm.training.trainer import Trainer

RECIPES = Path(__file__).parents[3] / "recipes"


def frames_of(count: int, *, seed: int) -> Tensor:
    return torch.randn(count, NUM_MELS, generator=torch.Generator().manual_seed(seed))


def document(text: str, num_frames: int, *, reduction_factor: int, key: int) -> Document:
    groups = complete_groups(frames_of(num_frames, seed=key), reduction_factor)
    return Document((TextPart(text), LatentPart("speech", groups)), key=key)


def packed(model: MelAR, *rows: tuple[Document, ...]) -> PackedBatch:
    builder = SequenceBuilder(model.config.vocabulary, ("speech",), ByteTokenizer())
    return builder.collate([[builder.build(document) for document in row] for row in rows])


def documents_for(model: MelAR) -> list[Document]:
    r = model.config.reduction_factor
    return [
        document(text, count, reduction_factor=r, key=key)
        for key, (text, count) in enumerate([("one", 7), ("two three", 12), ("x", 3)])
    ]


# -- frames and groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction_factor", [1, 2, 3, 4])
def test_groups_of_frames_come_apart_again(reduction_factor: int) -> None:
    frames = frames_of(12, seed=0)
    groups = group_frames(frames, reduction_factor)
    assert groups.shape == (12 // reduction_factor, reduction_factor * NUM_MELS)
    assert torch.equal(groups[0, :NUM_MELS], frames[0])
    assert torch.equal(groups[-1, -NUM_MELS:], frames[-1])
    assert torch.equal(ungroup_frames(groups, reduction_factor), frames)
    batch = torch.stack([frames, frames_of(12, seed=1)])
    assert torch.equal(ungroup_frames(group_frames(batch, reduction_factor), reduction_factor), batch)


def test_utterances_are_completed_behind_and_voices_cut_before() -> None:
    frames = frames_of(5, seed=0)
    assert torch.equal(ungroup_frames(complete_groups(frames, 3), 3), torch.cat([frames, frames[-1:]]))
    assert torch.equal(ungroup_frames(newest_groups(frames, 3), 3), frames[2:])
    with pytest.raises(ValueError, match="5 frames cannot be grouped by 3"):
        group_frames(frames, 3)


# -- losses by hand ----------------------------------------------------------------------------------------------------


def test_the_regression_loss_is_l1_and_l2() -> None:
    loss = regression_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.5]]))
    assert loss.tolist() == [(1 + 2) / 2 + (1 + 4) / 2, 0.25 + 0.125]


def test_the_divergence_is_that_of_two_gaussians_by_quadrature() -> None:
    mean, variance, frame = 0.7, 0.3, -0.4
    ours = divergence_from_frames(torch.tensor([[mean]]), torch.tensor([[math.log(variance)]]), torch.tensor([[frame]]))
    x = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    own = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), math.sqrt(variance)).log_prob(x)
    prior = torch.distributions.Normal(torch.tensor(frame, dtype=torch.float64), 1.0).log_prob(x)
    expected = torch.trapezoid(own.exp() * (own - prior), x)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)  # float32
    assert divergence_from_frames(torch.ones(1, 3), torch.zeros(1, 3), torch.ones(1, 3)).item() == 0


def test_the_flux_loss_rewards_change() -> None:
    previous = torch.tensor([[1.0, -1.0]])
    still, moving = previous.clone(), torch.tensor([[3.0, 0.0]])
    assert spectrogram_flux(still, previous).item() == 0
    assert spectrogram_flux(moving, previous).item() == -(2 + 1) / 2


def test_last_steps_count_as_often_as_the_weight_says() -> None:
    logits, is_last = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([False, True, True])
    losses = stop_loss(logits, is_last, positive_weight=100.0)
    expected = [math.log(2), 100 * math.log(2), 100 * math.log(1 + math.exp(-2))]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


# -- the model ---------------------------------------------------------------------------------------------------------


def by_hand(model: MelAR, document: Document, noise_seed: int) -> dict[str, Tensor]:
    """The losses of one document, frame by frame, with sums that are not those of the model."""
    batch, r = packed(model, (document,)), model.config.reduction_factor
    hidden_states = model.hidden_states(batch, noise_seed)[0]
    positions = batch.latent_positions["speech"]
    noise = keyed_normal(noise_seed, batch.latent_keys["speech"], (r * NUM_MELS,), stream=NOISE_STREAM)
    drawn = model.sampler(hidden_states[positions - 1], noise)
    frames = batch.latents["speech"].reshape(-1, NUM_MELS)
    mean, log_variance, coarse = (x.reshape(-1, NUM_MELS) for x in drawn)
    refined = model.post_net(coarse[None], torch.ones(1, len(coarse), dtype=torch.bool))[0]
    ends = torch.arange(len(positions)) == len(positions) - 1
    return {
        "coarse": regression_loss(coarse, frames),
        "refined": regression_loss(refined, frames),
        "divergence": divergence_from_frames(mean, log_variance, frames),
        "flux": spectrogram_flux(mean[1:], frames[:-1]),
        "stop": stop_loss(model.stop_logits(hidden_states[positions - 1]), ends, positive_weight=100.0),
    }


@pytest.mark.parametrize("reduction_factor", [1, 2, 3])
def test_losses_of_a_packed_batch_are_those_of_its_utterances_alone(reduction_factor: int) -> None:
    model = tiny_model(reduction_factor=reduction_factor)
    one, two, three = documents_for(model)
    batch = packed(model, (one, two), (three,))
    losses, counts = model(batch, noise_seed=5), model.loss_counts(batch)
    alone = [by_hand(model, document, 5) for document in (one, two, three)]
    for name, loss in losses.items():
        values = torch.cat([of_one[name] for of_one in alone])
        assert counts[name] == len(values)
        # float32 passes over rows of different lengths: six digits, less one.
        torch.testing.assert_close(loss, values.mean(), rtol=1e-5, atol=1e-6)


def test_micro_batches_add_up_under_common_totals() -> None:
    model = tiny_model()
    one, two, three = documents_for(model)
    whole, halves = packed(model, (one, two), (three,)), [packed(model, (one, two)), packed(model, (three,))]
    totals = {name: sum(model.loss_counts(half)[name] for half in halves) for name in model.loss_counts(whole)}
    assert totals == model.loss_counts(whole)
    parts = [model(half, noise_seed=1, totals=totals) for half in halves]
    for name, loss in model(whole, noise_seed=1).items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], loss, rtol=1e-5, atol=1e-6)  # another order


def test_noise_and_dropout_are_drawn_anew_each_step_and_never_off() -> None:
    model = tiny_model()
    batch = packed(model, tuple(documents_for(model)))
    first, again, next_step = (model(batch, noise_seed=seed)["coarse"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_step)
    groups, keys = torch.ones(3, 2 * NUM_MELS), torch.tensor([4, 5, 4])
    one, other, same = model.pre_net(groups, 0, keys)
    assert not torch.allclose(one, other)  # also in evaluation
    torch.testing.assert_close(one, same)


def test_half_of_the_pre_net_is_dropped_and_the_rest_doubled() -> None:
    model = tiny_model(pre_net={"num_layers": 2, "dropout": 0.5})
    keys = torch.arange(4000)
    groups = torch.ones(len(keys), 2 * NUM_MELS)
    exact = tiny_model(pre_net={"num_layers": 2, "dropout": 0.0}).pre_net(groups[:1], 0, keys[:1])[0]
    drawn = model.pre_net(groups, 0, keys)
    # Means of 4,000 draws, of 32 numbers that share them: within five standard errors.
    error = (drawn.mean(0) - exact).abs() / (drawn.std(0) / len(keys) ** 0.5)
    assert error.max() < 5


def test_frames_depend_on_what_stands_before_them_alone() -> None:
    model = tiny_model()
    whole = document("one", 12, reduction_factor=2, key=0)
    latents = whole.parts[1].latents.clone()
    latents[3] += 1
    changed = dataclasses.replace(whole, parts=(whole.parts[0], LatentPart("speech", latents)))
    one, other = (model.hidden_states(packed(model, (document,)), 0)[0] for document in (whole, changed))
    first = int(packed(model, (whole,)).latent_positions["speech"][3])
    torch.testing.assert_close(one[:first], other[:first])
    assert not torch.isclose(one[first:], other[first:]).all(dim=-1).any()


def test_padding_changes_no_refined_frame() -> None:
    post_net = tiny_model().post_net
    frames = torch.stack([frames_of(9, seed=1), frames_of(9, seed=2)])
    is_real = torch.arange(9) < torch.tensor([9, 4])[:, None]
    together = post_net(torch.where(is_real[..., None], frames, torch.full_like(frames, 7.0)), is_real)
    alone = post_net(frames[1:, :4], is_real[1:, :4])
    torch.testing.assert_close(together[1, :4], alone[0])


def test_the_post_net_begins_by_changing_nothing() -> None:
    frames = frames_of(5, seed=0)[None]
    model = MelAR(tiny_config())
    assert torch.equal(model.post_net(frames, torch.ones(1, 5, dtype=torch.bool)), frames)


def test_the_losses_reach_every_weight() -> None:
    model = tiny_model()
    losses = model(packed(model, tuple(documents_for(model))), noise_seed=0)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_losses_stay_in_float32_under_autocast() -> None:
    model = tiny_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(packed(model, tuple(documents_for(model))), noise_seed=0)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": {"num_text_ids": 0, "switch_tokens": True}}, "needs text"),
        ({"vocabulary": {"num_text_ids": 0, "switch_tokens": False}}, "switch_tokens: true"),
        ({"reduction_factor": 0}, "at least 1"),
        ({"stop_positive_weight": 0.0}, "must be positive"),
        ({"post_net": {"kernel_size": 4}}, "odd kernel_size"),
        ({"pre_net": {"dropout": 1.0}}, "dropout 1.0"),
    ],
)
def test_models_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelAR(tiny_config(**changes))


def test_frames_of_another_vocoder_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="built for 12"):
        model.embed_groups(torch.zeros(1, 8), 0, torch.zeros(1, dtype=torch.long))


# -- training ----------------------------------------------------------------------------------------------------------


def test_recordings_become_normalised_groups_behind_their_texts(tmp_path: Path) -> None:
    objective, make_batches, recipe = build_mel_ar(tiny_recipe(tmp_path))
    raw = next(make_batches(0))
    batch, _ = objective.prepare(raw, step=0, seed=0)
    assert recipe.model.vocoder_fingerprint == tiny_vocoder().fingerprint()
    assert recipe.model.vocabulary.num_text_ids == 257
    stored = [piece.media[0] for row in raw["rows"] for piece in row]
    expected = [complete_groups(objective.vocoder.statistics.normalize(one.mean[None])[0], 2) for one in stored]
    torch.testing.assert_close(batch.latents["speech"], torch.cat(expected))
    assert batch.latents["speech"].shape[1] == 2 * NUM_MELS
    # Planned in frames, laid out in groups.
    assert batch.input_ids.shape[1] < recipe.max_length


def test_the_total_is_the_weighted_sum_and_the_divergence_joins_late(tmp_path: Path) -> None:
    losses = {"divergence_weight": 0.2, "divergence_start_step": 3, "flux_weight": 0.4, "stop_weight": 0.7}
    objective, make_batches, _ = build_mel_ar(tiny_recipe(tmp_path, losses=losses))
    batch = objective.prepare(next(make_batches(0)), step=0, seed=0)
    for step, weight in ((0, 0.0), (2, 0.0), (3, 0.2)):
        of_step = objective.losses(batch, step=step, totals=objective.counts(batch))["model"]
        named = {name: loss.item() for name, loss in of_step.items()}
        expected = named["coarse"] + named["refined"] + weight * named["divergence"]
        expected += 0.4 * named["flux"] + 0.7 * named["stop"]
        assert named["total"] == pytest.approx(expected, rel=1e-5)  # float32 sums


def train(folder: Path, run_dir: Path, *, num_batches: int | None = None) -> list[dict[str, Any]]:
    """Train as the command line does; the data end after `num_batches`. Returns what was logged."""
    objective, make_loader, recipe = build_mel_ar(tiny_recipe(folder, trainer={"checkpoint_every": 1}))

    def loader(start: int) -> Any:
        return itertools.islice(make_loader(start), num_batches)

    Trainer(objective, loader, recipe.trainer, run_dir, recipe=recipe, evaluations=objective.evaluations()).fit()
    return final_state(run_dir)["metrics"]


def test_a_run_leaves_a_pipeline_and_goes_on_bit_for_bit_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "NUM_HELD_OUT_ROWS", 8)
    metrics = train(tmp_path, tmp_path / "whole")
    assert {"model/coarse", "model/refined", "model/divergence", "model/flux", "model/stop"} <= metrics[0].keys()
    held_out = next(row["evaluation"] for row in metrics if "evaluation" in row)
    assert all(math.isfinite(held_out[f"held_out/{name}"]) for name in ("coarse", "stop", "total"))
    loaded = MelARPipeline.from_pretrained(tmp_path / "whole" / "model")
    assert loaded.vocoder.fingerprint() == tiny_vocoder().fingerprint()
    with pytest.raises(ValueError, match="the loader ended"):
        train(tmp_path, tmp_path / "cut", num_batches=1)
    train(tmp_path, tmp_path / "cut")
    whole, cut = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert [name for name in whole if whole[name] != cut[name]] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocoder": None}, "--vocoder RUN/model"),
        ({"model": {"num_mels": 5}}, "--model.num_mels 6"),
        ({"sources": {"text": {"data": {"path": "words.txt"}}}}, "only speaks"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_mel_ar(tiny_recipe(tmp_path, **changes))


def test_a_template_that_writes_is_refused(tmp_path: Path) -> None:
    recordings = {"path": str(tmp_path), "sample_rate": 2400}
    source = {"speech": {"recordings": recordings, "templates": ["{speech}{text}"]}}
    with pytest.raises(ValueError, match="only speaks"):
        tiny_recipe(tmp_path, sources={"written": source})


def test_a_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = randomise(tiny_model())
    model.save_pretrained(tmp_path / "model")
    loaded = MelAR.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    batch = packed(model, tuple(documents_for(model)))
    assert all(
        torch.equal(loss, model(batch, noise_seed=0)[name]) for name, loss in loaded(batch, noise_seed=0).items()
    )


# -- recipes -----------------------------------------------------------------------------------------------------------


def recipe_called(name: str) -> Any:
    return load_recipe(RECIPES / f"{name}.yaml", [], RECIPE_CLASSES)


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def with_bytes(config: Any) -> Any:
    return dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, num_text_ids=257))


def test_the_recipe_compares_with_latentlms_at_the_sizes_and_rates_it_states() -> None:
    ours, latentlm = recipe_called("mel_ar_digits"), recipe_called("speech_digits")
    vocoder = recipe_called("mel_vocoder_digits").tokenizer
    with torch.device("meta"):
        sizes = [millions(MelAR(with_bytes(ours.model))), millions(LatentLM(with_bytes(latentlm.model)))]
        decoders = [
            millions(MelVocoder(vocoder)),
            millions(SpeechTokenizer(recipe_called("speech_digits_tokenizer").tokenizer).decoder),
        ]
    assert sizes == pytest.approx([9.69, 9.73], abs=0.005)
    assert decoders == pytest.approx([4.17, 4.21], abs=0.005)
    assert vocoder.frame_rate / ours.model.reduction_factor == 31.25
    spoken, theirs = (one.sources["spoken"].speech for one in (ours, latentlm))
    assert dataclasses.replace(spoken, cache=theirs.cache) == theirs
    assert ours.optim == latentlm.optim
    assert (ours.trainer.num_steps, ours.trainer.batch_size) == (
        latentlm.trainer.num_steps,
        latentlm.trainer.batch_size,
    )
