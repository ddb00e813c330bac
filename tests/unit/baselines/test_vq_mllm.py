"""The language model of text and codes: its losses, and how documents become its batches."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_documents import save_tiny_documents
from tiny_models import randomise, tiny_image_tokenizer, tiny_pictures, tiny_vq_image_tokenizer
from torch import Tensor
from toy_training import final_state

from latentlm.baselines.vq_mllm import (
    VQMLLM,
    VQMLLMConfig,
    VQMLLMObjective,
    VQMLLMPipeline,
    VQMLLMRecipe,
    build_vq_mllm,
)
from latentlm.config import from_mapping
from latentlm.generation.requests import DoneEvent
from latentlm.models.transformer import TransformerConfig
from latentlm.sequence import (
    IGNORE_LABEL,
    CodePart,
    Document,
    IdsPart,
    LatentSlot,
    PackedBatch,
    SequenceBuilder,
    TextPart,
)
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.document_batches import RawPiece
from latentlm.training.trainer import Trainer

TRANSFORMER = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64}
EOS = ByteTokenizer.eos_id


def tiny_config(**changes: Any) -> VQMLLMConfig:
    sizes = {"switch_tokens": True, "num_text_ids": 257, "num_codes": 16, **changes.pop("vocabulary", {})}
    return from_mapping(VQMLLMConfig, {"vocabulary": sizes, "transformer": TRANSFORMER, **changes})


def builder_of(model: VQMLLM) -> SequenceBuilder:
    return SequenceBuilder(model.config.vocabulary, (), ByteTokenizer())


def picture(*codes: int) -> CodePart:
    return CodePart("image", torch.tensor(codes))


DOCUMENTS = (
    Document((TextPart("a cat"), picture(3, 1, 4, 1)), group=0),
    Document((TextPart("words"),), group=1),
    Document((picture(5, 9, 2, 6), TextPart("?"), picture(15, 0, 0, 15)), group=0),
)


def packed(model: VQMLLM, *rows: tuple[Document, ...], group_names: tuple[str, ...] = ("pairs", "text")) -> PackedBatch:
    builder = builder_of(model)
    return builder.collate(
        [[builder.build(document) for document in row] for row in rows], length=36, group_names=group_names
    )


@pytest.fixture
def model() -> VQMLLM:
    return randomise(VQMLLM(tiny_config())).eval()


@pytest.fixture
def batch(model: VQMLLM) -> PackedBatch:
    return packed(model, DOCUMENTS[:2], DOCUMENTS[2:])


def log_probabilities(model: VQMLLM, document: Document) -> tuple[list[int], Tensor]:
    """Every target of a document read alone, and its log-probability, computed without the model's own losses."""
    ids = builder_of(model).build(document).input_ids
    hidden_states = model.transformer(model.embed_tokens(ids)[None], torch.arange(len(ids))[None])
    table = model.logits(hidden_states)[0].double().log_softmax(-1)
    return ids[1:].tolist(), table[:-1].gather(1, ids[1:, None])[:, 0]


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_weights_start_as_those_of_latentlm(tie_embeddings: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQMLLM(tiny_config(tie_embeddings=tie_embeddings))
    tables = [model.embed_tokens.weight, *([] if model.lm_head is None else [model.lm_head.weight])]
    assert len(tables) == 2 - tie_embeddings
    for table in tables:
        # Relative standard error of a deviation of 284 x 32 numbers: 1 / sqrt(2 · 9088) = 0.7%; four of them.
        assert table.std().item() == pytest.approx(0.02, rel=0.03)
    loss = model(packed(model, DOCUMENTS))["total"].item()
    assert loss == pytest.approx(math.log(284), abs=0.1)  # logits near 0.02 sqrt(32) = 0.1


def test_losses_of_a_packed_batch_are_those_of_its_documents_alone(model: VQMLLM, batch: PackedBatch) -> None:
    losses, counts = model(batch), model.loss_counts(batch)
    first_code = model.config.vocabulary.first_code_id
    by_hand: dict[str, list[Tensor]] = {"lm": [], "codes/image": []}
    for document in DOCUMENTS:
        for target, value in zip(*log_probabilities(model, document), strict=True):
            by_hand["codes/image" if target >= first_code else "lm"].append(-value)
    for name, values in by_hand.items():
        assert counts[name] == len(values)
        # float32 passes over rows of different lengths: six digits, less one.
        torch.testing.assert_close(losses[name].double(), torch.stack(values).mean(), rtol=1e-5, atol=0)
    everything = torch.stack([*by_hand["lm"], *by_hand["codes/image"]])
    torch.testing.assert_close(losses["total"].double(), everything.mean(), rtol=1e-5, atol=0)


def test_the_probability_of_a_document_is_that_of_its_text_and_its_codes(model: VQMLLM) -> None:
    for document in DOCUMENTS:
        batch = packed(model, (document,), group_names=())
        losses, counts = model(batch), model.loss_counts(batch)
        whole = log_probabilities(model, document)[1].sum()
        parts = sum(counts[name] * losses[name].double() for name in ("lm", "codes/image"))
        torch.testing.assert_close(-parts, whole, rtol=1e-5, atol=0)  # float32 sums of a few dozen numbers


def test_losses_by_group_make_up_the_whole(model: VQMLLM, batch: PackedBatch) -> None:
    losses, counts = model(batch), model.loss_counts(batch)
    for name in ("lm", "codes/image"):
        keys = [f"{name}/{group}" for group in batch.group_names]
        assert sum(counts[key] for key in keys) == counts[name]
        of_groups = sum(counts[key] * losses[key] for key in keys)
        torch.testing.assert_close(of_groups, counts[name] * losses[name].detach(), rtol=1e-5, atol=0)  # another order
    assert counts["codes/image/text"] == 0
    assert losses["codes/image/text"] == 0
    assert not losses["lm/text"].requires_grad


@pytest.mark.parametrize("weight", [0.0, 0.25, 2.0])
def test_codes_have_a_weight_in_the_mean_over_all_targets(batch: PackedBatch, weight: float) -> None:
    model = randomise(VQMLLM(tiny_config(code_loss_weight=weight)))
    losses, counts = model(batch), model.loss_counts(batch)
    summed = counts["lm"] * losses["lm"] + weight * counts["codes/image"] * losses["codes/image"]
    expected = summed / (counts["lm"] + weight * counts["codes/image"])
    torch.testing.assert_close(losses["total"], expected, rtol=1e-5, atol=0)  # sums in another order


def test_micro_batches_add_up_under_common_totals(model: VQMLLM, batch: PackedBatch) -> None:
    halves = [packed(model, DOCUMENTS[:2]), packed(model, DOCUMENTS[2:])]
    totals = {name: sum(model.loss_counts(half)[name] for half in halves) for name in model.loss_counts(batch)}
    assert totals == model.loss_counts(batch)
    tensors = {name: torch.tensor(count) for name, count in totals.items()}
    parts = [model(half, totals=tensors) for half in halves]
    for name, loss in model(batch).items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], loss, rtol=1e-5, atol=1e-7)  # another order


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_the_loss_reaches_every_weight(batch: PackedBatch, tie_embeddings: bool) -> None:
    model = randomise(VQMLLM(tiny_config(tie_embeddings=tie_embeddings)))
    model(batch)["total"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_target_depends_on_what_stands_before_it_alone(model: VQMLLM) -> None:
    before = log_probabilities(model, Document((TextPart("ab"), picture(1, 2, 3, 4), TextPart("cd"))))[1]
    after = log_probabilities(model, Document((TextPart("ab"), picture(1, 2, 9, 4), TextPart("cd"))))[1]
    changed = 5  # the targets: a b begin 1 2 [3 or 9] 4 …
    assert torch.equal(before[:changed], after[:changed])
    assert not torch.isclose(before[changed:], after[changed:]).any()


def test_logits_stay_in_float32_under_autocast(model: VQMLLM, batch: PackedBatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.logits(model.hidden_states(batch)).dtype == torch.float32


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_saved_model_has_the_same_losses(batch: PackedBatch, tie_embeddings: bool, tmp_path: Path) -> None:
    model = randomise(VQMLLM(tiny_config(tie_embeddings=tie_embeddings)))
    model.save_pretrained(tmp_path / "model")
    loaded = VQMLLM.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert all(torch.equal(loss, model(batch)[name]) for name, loss in loaded(batch).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": {"num_codes": 0}}, "needs text and codes"),
        ({"vocabulary": {"num_text_ids": 0}}, "needs text and codes"),
        ({"vocabulary": {"num_text_ids": 0, "num_codes": 0, "switch_tokens": False}}, "switch_tokens: true"),
        ({"code_loss_weight": -1.0}, "code_loss_weight is -1"),
    ],
)
def test_models_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQMLLM(tiny_config(**changes))


# -- training ----------------------------------------------------------------------------------------------------------


def tiny_recipe(folder: Path, *, validation_ratio: float = 0.2, **changes: Any) -> VQMLLMRecipe:
    """Two sources, documents of text and pictures, and text; tokenizer and data are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "codes").exists():
        tiny_vq_image_tokenizer().save_pretrained(folder / "codes")
        tiny_image_tokenizer().save_pretrained(folder / "latents")
        save_tiny_documents(folder)
    (folder / "text.txt").write_text("\n\n".join(f"line {i} of a text" for i in range(60)))
    tokenizer = changes.pop("tokenizer", "codes")
    held_out = {"validation_ratio": validation_ratio}
    mapping = {
        "kind": "vq_mllm",
        "sources": {
            "mixed": {"data": {"path": str(folder / "documents.jsonl"), **held_out}},
            "text": {"data": {"path": str(folder / "text.txt"), "separator": "\n\n", **held_out}},
        },
        "tokenizer": None if tokenizer is None else str(folder / tokenizer),
        "max_length": 48,
        "model": {"transformer": {**TRANSFORMER, "num_layers": 1}, **changes.pop("model", {})},
        "generation": {"cfg_scale": 1.5, "top_k": 8},
        "optim": {"lr": 1.0e-3, "num_warmup_steps": 1},
        "trainer": {
            "num_steps": 2,
            "batch_size": 4,
            "tensorboard": False,
            "device": "cpu",
            **changes.pop("trainer", {}),
        },
        **changes,
    }
    return from_mapping(VQMLLMRecipe, mapping)


def train(
    folder: Path, run_dir: Path, *, num_batches: int | None = None, validation_ratio: float = 0.0, **trainer: Any
) -> list[dict[str, Any]]:
    """Train as the command line does; the data end after `num_batches`. Returns what was logged."""
    recipe = tiny_recipe(folder, validation_ratio=validation_ratio, trainer=trainer)
    objective, make_loader, recipe = build_vq_mllm(recipe)

    def loader(start: int) -> Any:
        return itertools.islice(make_loader(start), num_batches)

    Trainer(objective, loader, recipe.trainer, run_dir, recipe=recipe, evaluations=objective.evaluations()).fit()
    return final_state(run_dir)["metrics"]


def test_pictures_of_documents_become_codes_between_their_marks(tmp_path: Path) -> None:
    objective, make_loader, _ = build_vq_mllm(tiny_recipe(tmp_path, drop_cond_prob=0.0, trainer={"batch_size": 40}))
    raw = next(make_loader(0))
    batch = objective.prepare(raw, step=0, seed=0)
    vocabulary = objective.model.config.vocabulary
    num_pictures = 0
    for row, ids in zip(raw["rows"], batch.input_ids.tolist(), strict=True):
        expected: list[int] = []
        for piece in row:
            for segment in piece.segments:
                if isinstance(segment, IdsPart):
                    expected += segment.ids
                    continue
                pixels = piece.media[segment.raw][None] / 127.5 - 1
                codes = objective.tokenizer.encode(pixels)[0] + vocabulary.first_code_id
                expected += [vocabulary.begin_id("image"), *codes.tolist(), vocabulary.end_id("image")]
                num_pictures += 1
        assert ids == expected + [vocabulary.pad_id] * (48 - len(expected))
    assert num_pictures > 3
    assert batch.group_names == ("mixed", "text")


def test_a_document_without_its_condition_reads_like_the_unconditional_stream(tmp_path: Path) -> None:
    objective, _, _ = build_vq_mllm(tiny_recipe(tmp_path))
    objective.drop_cond_prob = 1.0
    pixels = ((tiny_pictures(1)[0] + 1) * 127.5).to(torch.uint8)
    piece = RawPiece((IdsPart((EOS, 97)), LatentSlot("image", 4, 0), IdsPart((98, EOS))), (pixels,), key=1, group=0)
    batch = objective.prepare({"rows": [[piece]]}, step=0, seed=0)
    vocabulary = objective.model.config.vocabulary
    assert batch.input_ids[0, :2].tolist() == [EOS, vocabulary.begin_id("image")]
    assert batch.input_ids[0, 6:].tolist() == [vocabulary.end_id("image")] + [vocabulary.pad_id] * 41
    assert batch.labels[0, 6:].unique().tolist() == [IGNORE_LABEL]


def test_a_run_is_logged_by_source_held_out_and_saved_with_its_tokenizers(tmp_path: Path) -> None:
    metrics = train(tmp_path, tmp_path / "run", validation_ratio=0.2, sample_every=2)
    steps = [row for row in metrics if "evaluation" not in row]
    assert {"model/lm/mixed", "model/lm/text", "model/codes/image/mixed", "model/total"} <= steps[0].keys()
    (evaluation,) = [row["evaluation"] for row in metrics if "evaluation" in row]
    assert {"held_out/lm/text", "held_out/lm/mixed", "held_out/codes/image/mixed"} <= evaluation.keys()
    assert "held_out/codes/image/text" not in evaluation, "there is nothing to average"
    assert all(math.isfinite(value) for value in evaluation.values())
    pipeline = VQMLLMPipeline.from_pretrained(tmp_path / "run" / "model")
    assert isinstance(pipeline.text_tokenizer, ByteTokenizer)
    assert (pipeline.sampling["image"].cfg_scale, pipeline.sampling["image"].top_k) == (1.5, 8)
    (answer,) = pipeline.generate(["number 3"], images=1, max_new_tokens=3, max_images=0, seed=2)
    assert answer[0].size == (8, 8)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path) -> None:
    options = {"num_steps": 4, "checkpoint_every": 2}
    whole = train(tmp_path, tmp_path / "whole", **options)
    with pytest.raises(ValueError, match="ended"):
        train(tmp_path, tmp_path / "cut", num_batches=3, **options)
    assert train(tmp_path, tmp_path / "cut", **options) == whole


def test_activation_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    gradients = []
    for recompute in (False, True):
        objective, make_loader, _ = build_vq_mllm(tiny_recipe(tmp_path))
        if recompute:
            objective.enable_activation_checkpointing()
        assert objective.model.transformer.activation_checkpointing == recompute
        batch = objective.prepare(next(make_loader(0)), step=0, seed=0)
        objective.losses(batch, step=0, totals=objective.counts(batch))["model"]["total"].backward()
        gradients.append([weight.grad for weight in objective.model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)), "the same operations in the same order"


def test_a_grid_of_pictures_is_drawn_for_the_log(tmp_path: Path) -> None:
    objective, _, _ = build_vq_mllm(tiny_recipe(tmp_path))
    objective.train()
    grid = objective.sample_grid(seed=0)
    assert grid is not None
    assert grid.shape[0] == 3
    assert torch.equal(grid, objective.sample_grid(seed=0))  # type: ignore[arg-type]
    assert objective.model.training


def test_pictures_may_say_their_size(tmp_path: Path) -> None:
    sizes = {"switch_tokens": True, "max_grid_side": 4}
    recipe = tiny_recipe(tmp_path, model={"vocabulary": sizes}, trainer={"batch_size": 40})
    objective, make_loader, _ = build_vq_mllm(recipe)
    batch, vocabulary = objective.prepare(next(make_loader(0)), step=0, seed=0), objective.model.config.vocabulary
    sequence = batch.input_ids.flatten()
    (begins,) = (sequence == vocabulary.begin_id("image")).nonzero(as_tuple=True)
    assert len(begins) > 3
    assert (sequence[begins + 1] == vocabulary.size_id(2)).all()
    assert (sequence[begins + 2] == vocabulary.size_id(2)).all()
    assert (sequence[begins + 7] == vocabulary.end_id("image")).all()
    assert objective.sample_grid(seed=0) is None
    (answer,) = objective.pipeline().generate(["number 1"], images=1, image_size=(12, 8), max_new_tokens=0)
    assert answer[0].size == (8, 12)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "names no image tokenizer; train one first"),
        ({"tokenizer": "latents"}, "models codes, but the tokenizer in .* is a 'image_tokenizer'"),
        ({"model": {"vocabulary": {"switch_tokens": True, "num_codes": 9}}}, "has 16 codes .* num_codes=9"),
        ({"model": {"vocabulary": {"switch_tokens": True, "num_text_ids": 300}}}, "num_text_ids=300"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_vq_mllm(tiny_recipe(tmp_path, **changes))


def test_a_tiny_model_learns_a_caption_with_its_picture_both_ways(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, drop_cond_prob=0.0)
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, transformer=from_mapping(TransformerConfig, TRANSFORMER)),
    )
    objective, _, _ = build_vq_mllm(recipe)
    assert isinstance(objective, VQMLLMObjective)
    pixels = ((tiny_pictures(1)[0] + 1) * 127.5).to(torch.uint8)
    slot, text = LatentSlot("image", 4, 0), tuple(b"bag: ")
    pieces = [
        RawPiece((IdsPart((EOS, *text)), slot, IdsPart((EOS,))), (pixels,), key=1, group=0),
        RawPiece((IdsPart((EOS,)), slot, IdsPart((*text, EOS))), (pixels,), key=2, group=0),
    ]
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=1e-2)
    batch = objective.prepare({"rows": [pieces]}, step=0, seed=0)
    for _ in range(80):
        optimizer.zero_grad()
        objective.model_losses(batch, None)["total"].backward()
        optimizer.step()
    pipeline = objective.pipeline()
    picture = pixels / 127.5 - 1
    (codes,) = objective.tokenizer.encode(picture[None])
    requests = pipeline.requests(["bag: ", picture], max_new_tokens=16, do_sample=False, cfg_scale=1.0)
    documents = [event.document for event in pipeline.events(requests) if isinstance(event, DoneEvent)]
    (captioned,) = [document.parts for document in documents if isinstance(document.parts[0], TextPart)]
    assert captioned == (TextPart("bag: "),)
    (drawn,) = [document.parts for document in documents if isinstance(document.parts[0], CodePart)]
    assert len(drawn) == 1, "end of text follows the picture"
    # The second document teaches a picture to follow nothing as well: so sure of each code that sampling gives it, too.
    (forced,) = pipeline.requests(["bag: "], images=1, max_new_tokens=4, seed=3)
    (again,) = [event.document for event in pipeline.events([forced]) if isinstance(event, DoneEvent)]
    for part in (drawn[0], again.parts[0]):
        assert isinstance(part, CodePart)
        assert torch.equal(part.codes, codes)
