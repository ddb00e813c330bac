"""Training a LatentLM on documents: what is dropped, laid out, counted, held out and saved."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_documents import tiny_multimodal_recipe
from tiny_models import randomise
from toy_training import final_state

from latentlm.catalog import build, load
from latentlm.data.documents import RawDocument, RawImage, write_jsonl
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.sequence import IGNORE_LABEL, IdsPart, LatentSlot, PackedBatch
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.objectives.documents import without_condition
from latentlm.training.objectives.multimodal import MultimodalObjective
from latentlm.training.trainer import Trainer

EOS = ByteTokenizer.eos_id


def built(folder: Path, **changes: Any) -> tuple[MultimodalObjective, dict[str, Any]]:
    """An objective with random weights everywhere, and its first raw batch."""
    objective, make_loader, _ = build(tiny_multimodal_recipe(folder, **changes))
    assert isinstance(objective, MultimodalObjective)
    randomise(objective.model)
    return objective, next(make_loader(0))


def train(folder: Path, run_dir: Path, **changes: Any) -> list[dict[str, Any]]:
    objective, make_loader, recipe = build(tiny_multimodal_recipe(folder, **changes))
    Trainer(objective, make_loader, recipe.trainer, run_dir, recipe=recipe, evaluations=objective.evaluations()).fit()
    return final_state(run_dir)["metrics"]


def piece(*segments: Any, pictures: int = 0) -> RawPiece:
    return RawPiece(tuple(segments), tuple(torch.full((1, 8, 8), i) for i in range(pictures)), key=1, group=0)


def test_dropping_a_condition_leaves_what_guidance_reads_before_a_picture() -> None:
    whole = piece(
        IdsPart((EOS, 97)),
        LatentSlot("image", 4, 0),
        IdsPart((98,)),
        LatentSlot("image", 4, 1),
        IdsPart((99, EOS)),
        pictures=2,
    )
    assert without_condition(whole, None) is whole
    for number in (0, 1):
        alone = without_condition(whole, number)
        assert alone.segments == (LatentSlot("image", 4, 0),)
        assert len(alone.media) == 1
        assert alone.media[0][0, 0, 0] == number
        assert alone.begins_anew


def test_a_share_of_documents_loses_its_condition(tmp_path: Path) -> None:
    objective, raw = built(tmp_path, trainer__batch_size=64, drop_cond_prob=0.3)
    pieces = [piece for row in raw["rows"] for piece in row]
    text_first = [piece for piece in pieces if piece.media and isinstance(piece.segments[1], IdsPart)]
    assert len(text_first) > 10
    dropped = sum(number is not None for seed in range(20) for number in objective._drops(text_first, seed)) / (
        20 * len(text_first)
    )
    assert dropped == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / (20 * len(text_first))))
    assert all(number is None for number in objective._drops([p for p in pieces if not p.media], 0))


def test_a_picture_that_opens_its_document_has_no_condition_to_lose(tmp_path: Path) -> None:
    objective, _ = built(tmp_path)
    objective.drop_cond_prob = 1.0
    picture = LatentSlot("image", 4, 0)
    opening = [
        piece(IdsPart((EOS,)), picture, IdsPart((97, EOS)), pictures=1),
        piece(IdsPart((EOS,)), IdsPart(()), picture, IdsPart((EOS,)), pictures=1),
        piece(picture, IdsPart((97, EOS)), pictures=1),
    ]
    assert objective._drops(opening, 0) == [None] * 3
    assert objective._drops([piece(IdsPart((EOS,)), IdsPart((97,)), picture, pictures=1)], 0) == [0]
    two = piece(IdsPart((EOS,)), picture, LatentSlot("image", 4, 1), IdsPart((97, EOS)), pictures=2)
    assert {objective._drops([two], seed)[0] for seed in range(20)} == {None, 1}  # the second stands behind the first


def trained_on(objective: MultimodalObjective, whole: RawPiece) -> set[tuple[int, bytes]]:
    """Numbers of pictures and texts that a piece is trained on, over some steps."""
    found = set()
    for step in range(12):
        packed, _ = objective.prepare({"rows": [[whole]]}, step=step, seed=0)
        text = bytes(label for label in packed.labels.flatten().tolist() if 0 <= label < 256)
        found.add((len(packed.latents["image"]) // 4, text))
    return found


def test_no_text_is_trained_on_that_lost_what_it_speaks_of(tmp_path: Path) -> None:
    objective, _ = built(tmp_path)
    objective.drop_cond_prob = 1.0
    first, second, end = LatentSlot("image", 4, 0), LatentSlot("image", 4, 1), IdsPart((EOS,))
    question = b"Q: How many are sevens? A: two"
    asked = piece(end, first, second, IdsPart(tuple(question)), end, pictures=2)
    assert trained_on(objective, asked) == {(2, question), (1, b"")}
    story = piece(end, IdsPart(tuple(b"a one")), first, IdsPart(tuple(b", then a seven")), second, end, pictures=2)
    assert trained_on(objective, story) == {(1, b"")}


def test_rows_have_the_recipes_length_and_documents_their_ends(tmp_path: Path) -> None:
    objective, raw = built(tmp_path, drop_cond_prob=0.0)
    packed, _ = objective.prepare(raw, step=0, seed=0)
    assert isinstance(packed, PackedBatch)
    assert packed.input_ids.shape == (16, 48)
    for row in range(16):
        for document in packed.document_ids[row].unique():
            if document < 0:
                continue
            ids = packed.input_ids[row][packed.document_ids[row] == document]
            assert ids[0] == EOS
            assert ids[-1] == EOS
            assert packed.labels[row][packed.document_ids[row] == document][-1] == IGNORE_LABEL
    assert packed.group_names == ("mixed", "text")
    assert set(packed.group_ids.unique().tolist()) == {0, 1}


def test_noise_of_latents_is_fresh_at_every_step_and_the_same_after_a_resume(tmp_path: Path) -> None:
    objective, raw = built(tmp_path, drop_cond_prob=0.0)
    first, again, later = (objective.prepare(raw, step=step, seed=0)[0].latents["image"] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, later, atol=1e-3)


def test_losses_by_source_make_up_the_whole(tmp_path: Path) -> None:
    objective, raw = built(tmp_path)
    batch = objective.prepare(raw, step=0, seed=0)
    counts = objective.counts(batch)
    losses = objective.losses(batch, step=0, totals=counts)["model"]
    for name in ("lm", "diffusion/image"):
        of_sources = sum(counts[f"{name}/{group}"] * losses[f"{name}/{group}"].item() for group in ("mixed", "text"))
        assert of_sources == pytest.approx(counts[name] * losses[name].item(), rel=1e-5)
        assert sum(counts[f"{name}/{group}"] for group in ("mixed", "text")) == counts[name]
    assert counts["diffusion/image/text"] == 0
    assert losses["diffusion/image/text"] == 0
    image = objective.model.config.modalities["image"]
    expected = losses["lm"] + losses["diffusion/image"] + image.continue_loss_weight * losses["continue/image"]
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    losses["total"].backward()
    unreached = [name for name, p in objective.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_a_run_is_logged_by_source_held_out_and_saved_with_its_tokenizers(tmp_path: Path) -> None:
    metrics = train(tmp_path / "data", tmp_path / "run", trainer__sample_every=2)
    steps = [row for row in metrics if "evaluation" not in row]
    assert {"model/lm/mixed", "model/lm/text", "model/diffusion/image/mixed"} <= steps[0].keys()
    (evaluation,) = [row["evaluation"] for row in metrics if "evaluation" in row]
    expected = ("total", "lm/text", "lm/mixed", "diffusion/image/mixed")
    assert {f"held_out/{name}" for name in expected} <= evaluation.keys()
    assert "held_out/diffusion/image/text" not in evaluation, "there is nothing to average"
    assert all(math.isfinite(value) for value in evaluation.values())
    pipeline = load(tmp_path / "run" / "model")
    assert isinstance(pipeline, LatentLMPipeline)
    assert isinstance(pipeline.text_tokenizer, ByteTokenizer)
    assert pipeline.sampling["image"].cfg_scale == 1.5
    (answer,) = pipeline.generate(["number 3"], images=1, max_new_tokens=3, max_images=0, seed=2)
    assert answer[0].size == (8, 8)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path) -> None:
    changes = {"trainer__num_steps": 4, "trainer__checkpoint_every": 2}
    whole = train(tmp_path / "data", tmp_path / "whole", **changes)
    recipe = tiny_multimodal_recipe(tmp_path / "data", **changes)
    objective, make_loader, recipe = build(recipe)

    def cut(start: int) -> Any:
        return (batch for _, batch in zip(range(3), make_loader(start), strict=False))

    with pytest.raises(ValueError, match="ended"):
        Trainer(objective, cut, recipe.trainer, tmp_path / "cut", recipe=recipe).fit()
    assert train(tmp_path / "data", tmp_path / "cut", **changes) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "names no tokenizer of it; train one first"),
        ({"model__modalities__image__latent_dim": 5}, "--model.modalities.image.latent_dim 6"),
        ({"model__lm_head": False, "model__vocabulary": {"num_classes": 3}}, "needs a softmax head"),
        ({"model__vocabulary": {"switch_tokens": True, "num_text_ids": 300}}, "num_text_ids=300"),
        ({"sources": {}}, "sources is empty"),
        ({"sources__mixed__weight": -1.0}, "sources.mixed: weight is -1.0; leave the source out"),
        ({"sources__mixed__weight": float("nan")}, "sources.mixed: weight is nan"),
        ({"max_length": 1}, "a row needs two tokens"),
        ({"sources__mixed__data__image_size": 9}, "trained on pictures of 8 x 8"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny_multimodal_recipe(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "pass --tokenizer RUN/model"),
        ({"model__modalities__image__latent_dim": 5}, "--model.modalities.image.latent_dim 6"),
    ],
)
def test_a_missing_or_unfit_tokenizer_is_refused_before_any_document_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("documents were opened")

    monkeypatch.setattr("latentlm.training.objectives.documents.open_any_documents", opened)
    with pytest.raises(ValueError, match=message):
        build(tiny_multimodal_recipe(tmp_path, **changes))


def test_a_model_of_text_alone_needs_no_pictures(tmp_path: Path) -> None:
    recipe = tiny_multimodal_recipe(tmp_path, tokenizer=None, model__modalities={})
    recipe = dataclasses.replace(recipe, sources={"text": recipe.sources["text"]})
    objective, make_loader, recipe = build(recipe)
    Trainer(objective, make_loader, recipe.trainer, tmp_path / "run", recipe=recipe).fit()
    (answer,) = load(tmp_path / "run" / "model").generate(["line"], max_new_tokens=4)
    assert all(isinstance(part, str) for part in answer)


def test_frozen_parameters_stay_and_low_rank_changes_are_folded_in(tmp_path: Path) -> None:
    before = build(tiny_multimodal_recipe(tmp_path))[0].model.state_dict()
    for changes in ({"freeze": ["transformer.*"]}, {"lora": {"rank": 2}}):
        run_dir = tmp_path / next(iter(changes))
        train(tmp_path, run_dir, **changes)
        after = load(run_dir / "model_raw").model.state_dict()
        assert after.keys() == before.keys()
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        backbone = {name for name in moved if name.startswith("transformer.layers")}
        assert bool(backbone) == ("lora" in changes)
        assert any(name.startswith("diffusion_heads") for name in moved)


def test_pictures_of_any_shape_say_their_size(tmp_path: Path) -> None:
    recipe = tiny_multimodal_recipe(
        tmp_path,
        drop_cond_prob=0.0,
        model__vocabulary={"switch_tokens": True, "max_grid_side": 3},
        model__modalities__image__says_size=True,
    )
    shapes = [(4, 8), (12, 5), (40, 20), (8, 8)]
    write_jsonl(
        tmp_path / "shapes.jsonl",
        [
            RawDocument(("a", RawImage(np.full((*shape, 1), 99, dtype=np.uint8), "x"), "b"), key=i, name="x")
            for i, shape in enumerate(shapes)
        ],
    )
    data = dataclasses.replace(recipe.sources["mixed"].data, path=str(tmp_path / "shapes.jsonl"), validation_ratio=0.0)
    recipe = dataclasses.replace(recipe, sources={"mixed": dataclasses.replace(recipe.sources["mixed"], data=data)})
    objective, make_loader, _ = build(recipe)
    assert isinstance(objective, MultimodalObjective)
    packed, _ = objective.prepare(next(make_loader(0)), step=0, seed=0)
    vocabulary = objective.model.config.vocabulary
    grids = set()
    for row in range(packed.input_ids.shape[0]):
        sides = [side for token in packed.input_ids[row].tolist() if (side := vocabulary.side_of(token)) is not None]
        grids |= set(zip(sides[::2], sides[1::2], strict=True))
    # Patches of 4 pixels, sides of at most 12: 40 x 20 becomes 12 x 6, which is rounded to 12 x 8.
    assert grids == {(1, 2), (3, 1), (3, 2), (2, 2)}
    losses = objective.losses((packed, 0), step=0, totals=objective.counts((packed, 0)))["model"]
    assert losses["total"].isfinite()
    (answer,) = objective.pipeline().generate(["draw"], images=1, image_size=(4, 12), max_new_tokens=0)
    assert answer[0].size == (12, 4)  # pyright: ignore[reportAttributeAccessIssue]
