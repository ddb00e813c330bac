"""The pipeline of any `ImageModel`: its options, its folder, who may decode its tokens, and whose noise is whose."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import randomise, tiny_image_tokenizer, tiny_vq_image_tokenizer

from latentlm.baselines.dit import DiT, DiTConfig
from latentlm.baselines.mar import MAR
from latentlm.baselines.maskgit import MaskGIT, MaskGITConfig, MaskGITSamplingConfig
from latentlm.catalog import load
from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.image_pipeline import ImageModelPipeline
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.pipeline_folder import GENERATION_CONFIG, LABEL_NAMES, load_image_tokenizer
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.image_model import TokenSpace
from latentlm.models.latentlm import LatentLM
from latentlm.models.transformer import TransformerConfig
from latentlm.storage import StorageError

NUM_CLASSES = 10
NAMES = tuple(f"class {number}" for number in range(NUM_CLASSES))
SPACE = TokenSpace(num_classes=NUM_CLASSES, rows=2, columns=2)


def dit_pipeline(**changes: Any) -> ImageModelPipeline:
    """A model of latents with nested sampling options."""
    tokenizer = tiny_image_tokenizer()
    space = replace(SPACE, latent_dim=6, tokenizer_fingerprint=tokenizer.fingerprint())
    model = DiT(DiTConfig(space=space, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48))
    sampling = LatentSamplingConfig(cfg_scale=1.5, solver=SolverConfig(num_inference_steps=3))
    return ImageModelPipeline(randomise(model), **{"tokenizer": tokenizer, "sampling": sampling, **changes})


def maskgit_pipeline(**changes: Any) -> ImageModelPipeline:
    """A model of codes with flat ones."""
    tokenizer = tiny_vq_image_tokenizer()
    space = replace(SPACE, num_codes=16, tokenizer_fingerprint=tokenizer.fingerprint())
    transformer = TransformerConfig(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48)
    # Scaled up: 16 nearly equal logits would let pictures of different classes be the same by the noise alone.
    model = randomise(MaskGIT(MaskGITConfig(space=space, transformer=transformer)), std=0.5)
    sampling = MaskGITSamplingConfig(num_iterations=3, cfg_scale=1.5)
    return ImageModelPipeline(model, **{"tokenizer": tokenizer, "sampling": sampling, **changes})


MAKERS = {"dit": dit_pipeline, "maskgit": maskgit_pipeline}


@pytest.fixture(params=MAKERS)
def pipeline(request: pytest.FixtureRequest) -> ImageModelPipeline:
    return MAKERS[request.param](label_names=NAMES)


@pytest.fixture
def folder(pipeline: ImageModelPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def loaded(folder: Path, pipeline: ImageModelPipeline) -> ImageModelPipeline:
    return ImageModelPipeline.from_pretrained(folder, type(pipeline.model))


def without_manifest(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_are_changed_by_dotted_name_and_the_defaults_stay() -> None:
    pipeline = dit_pipeline()
    default = pipeline.sampling["image"]
    changed = pipeline.sampling_with({"cfg_scale": 2, "solver.num_inference_steps": 7, "solver.name": "ddim"})
    assert changed == replace(
        default, cfg_scale=2.0, solver=replace(default.solver, name="ddim", num_inference_steps=7)
    )
    assert pipeline.sampling["image"] == default == pipeline.sampling_with({})
    codes = maskgit_pipeline()
    assert codes.sampling_with({"temperature": 0.5}) == replace(codes.sampling["image"], temperature=0.5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cfg_scal": 2.0}, "cfg_scal is not a field; did you mean cfg_scale?"),
        ({"solver.nme": "ddim"}, "solver.nme is not a field; did you mean solver.name?"),
        ({"num_iterations": 4}, "num_iterations is not a field"),  # MaskGIT's
        ({"sampler.name": "ddim"}, "sampling of a 'dit' has no option sampler.name"),
        ({"cfg_scale.image": 2.0}, "sampling of a 'dit' has no option cfg_scale.image"),
        ({"solver": "ddim"}, "solver takes a mapping of SolverConfig's fields, but got 'ddim'"),
        ({"cfg_scale": "much"}, "cfg_scale takes float, but got 'much'"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan"),
        ({"solver.num_inference_steps": 0}, "num_inference_steps is 0"),
    ],
)
def test_options_that_do_not_exist_or_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="sampling") as refusal:
        dit_pipeline().sampling_with(changes)
    assert sentence in str(refusal.value)


def test_flops_follow_the_options(pipeline: ImageModelPipeline) -> None:
    assert pipeline.flops() == pipeline.flops(pipeline.sampling["image"])
    unguided = pipeline.flops(pipeline.sampling_with({"cfg_scale": 1.0}))
    assert pipeline.flops().generation == 2 * unguided.generation, "guidance runs everything twice"


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_no_label_is_the_null_class(pipeline: ImageModelPipeline) -> None:
    seeds, sampling = [3, 4], pipeline.sampling["image"]
    drawn = pipeline.draw_tokens([None, 2], seeds, sampling, (2, 2))
    labels = torch.tensor([pipeline.model.space.null_class, 2])
    assert torch.equal(drawn, pipeline.model.sample(labels, seeds=torch.tensor(seeds), sampling=sampling, grid=(2, 2)))
    assert not torch.equal(drawn, pipeline.draw_tokens([2, None], seeds, sampling, (2, 2)))


def test_a_picture_depends_on_its_label_and_seed_and_not_on_the_batch(pipeline: ImageModelPipeline) -> None:
    labels, seeds = [1, 2, None, 3, 1], [7, 8, 9, 10, 7]
    together = pipeline.generate_images(labels, seeds=seeds)
    # Products of other sizes round differently; a random tokenizer's pixels are of the order of 0.01.
    same = {"atol": 1e-5, "rtol": 0}
    split = pipeline.generate_images(labels, seeds=seeds, batch_size=2)
    torch.testing.assert_close(split, together, **same)
    torch.testing.assert_close(pipeline.generate_images([None], seeds=[9])[0], together[2], **same)
    torch.testing.assert_close(together[4], together[0], **same)
    assert not torch.allclose(pipeline.generate_images([1], seeds=[8])[0], together[0], atol=1e-3, rtol=0)


def test_seeds_count_up_from_the_first_and_may_be_any_integers(pipeline: ImageModelPipeline) -> None:
    assert torch.equal(pipeline.generate_images([1, 2], seed=5), pipeline.generate_images([1, 2], seeds=[5, 6]))
    assert pipeline.generate_images([1, 1], seeds=[-1, 2**80]).isfinite().all()


def test_sizes_other_than_the_training_one_can_be_asked_for() -> None:
    pipeline = dit_pipeline()
    assert pipeline.generate_images([1, 2, 3], height=4, width=12, batch_size=2).shape == (3, 1, 4, 12)
    assert pipeline.generate_images([]).shape == (0, 1, 8, 8)


def test_requests_that_do_not_fit_are_refused(pipeline: ImageModelPipeline) -> None:
    for label in (-1, NUM_CLASSES):
        with pytest.raises(ValueError, match=f"label {label} does not exist; the model knows classes 0 to 9"):
            pipeline.generate_images([0, label])
    with pytest.raises(ValueError, match="1 seeds were given for 2 labels"):
        pipeline.generate_images([0, 1], seeds=[3])
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        pipeline.generate_images([0], height=9)


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_loaded_pipeline_draws_the_pictures_of_the_saved_one(pipeline: ImageModelPipeline, folder: Path) -> None:
    expected = pipeline.generate_images([1, None, 3], seed=4)
    for again in (loaded(folder, pipeline), load(folder)):
        assert again.sampling == pipeline.sampling
        assert again.label_names == NAMES
        assert (again.kind, again.steps_field) == (pipeline.kind, pipeline.steps_field)
        assert not again.model.training
        assert torch.equal(again.generate_images([1, None, 3], seed=4), expected)


def test_a_folder_without_sampling_defaults_takes_those_of_the_model(
    pipeline: ImageModelPipeline, folder: Path
) -> None:
    (without_manifest(folder) / GENERATION_CONFIG).unlink()
    assert loaded(folder, pipeline).sampling == {"image": type(pipeline.model).sampling_class()}


def test_label_names_are_one_per_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 label names were given for a model of 10 classes"):
        dit_pipeline(label_names=["a", "b"])
    unnamed = dit_pipeline()
    unnamed.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / LABEL_NAMES).exists()
    assert loaded(tmp_path / "model", unnamed).label_names == ()


@pytest.mark.parametrize("content", ['{"0": "cat"}', "[1, 2]", '["cat", null]'])
def test_label_names_that_are_no_list_of_names_are_refused(
    pipeline: ImageModelPipeline, folder: Path, content: str
) -> None:
    (without_manifest(folder) / LABEL_NAMES).write_text(content)
    with pytest.raises(ValueError, match=r"label_names\.json must be a list of class names"):
        loaded(folder, pipeline)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "must map modalities"),
        ('{"image": 3}', "must map modalities"),
        ('{"image": {"cfg_scal": 2.0}}', "cfg_scale"),
        ('{"image": {"cfg_scale": NaN}}', "cfg_scale is nan"),
        ('{"speech": {}}', "sampling names speech but the model knows image"),
        ('{"image": ', "generation_config.json"),
    ],
)
def test_sampling_defaults_that_make_no_sense_are_refused(
    pipeline: ImageModelPipeline, folder: Path, content: str, message: str
) -> None:
    (without_manifest(folder) / GENERATION_CONFIG).write_text(content)
    with pytest.raises(ValueError, match=message):
        loaded(folder, pipeline)


def test_altered_sampling_defaults_are_noticed(pipeline: ImageModelPipeline, folder: Path) -> None:
    path = folder / GENERATION_CONFIG
    path.write_text(path.read_text().replace("1.5", "9.5"))
    with pytest.raises(StorageError, match=r"generation_config\.json is damaged"):
        loaded(folder, pipeline)


def test_a_folder_of_another_model_is_refused_by_name(folder: Path, pipeline: ImageModelPipeline) -> None:
    # MAR's options are neither DiT's nor MaskGIT's: the refusal must not be about them.
    with pytest.raises(ValueError, match=f"holds a '{pipeline.kind}', not a 'mar'"):
        ImageModelPipeline.from_pretrained(folder, MAR)


def test_a_missing_tokenizer_is_named(folder: Path, pipeline: ImageModelPipeline) -> None:
    shutil.rmtree(without_manifest(folder) / "tokenizers")
    with pytest.raises(ValueError, match="there is no tokenizers/image"):
        loaded(folder, pipeline)


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_a_tokenizer_the_model_was_not_trained_with_is_refused() -> None:
    for make, other in ((dit_pipeline, tiny_image_tokenizer), (maskgit_pipeline, tiny_vq_image_tokenizer)):
        with pytest.raises(ValueError, match=r"trained with another image tokenizer .*use the one in the model's own"):
            make(tokenizer=other(seed=1))


def test_a_tokenizer_of_other_tokens_is_refused_even_by_a_model_that_names_none() -> None:
    latents, codes = tiny_image_tokenizer(), tiny_vq_image_tokenizer()
    for pipeline, other in ((dit_pipeline(), codes), (maskgit_pipeline(), latents)):
        model = pipeline.model
        nameless = type(model)(replace(model.config, space=replace(model.space, tokenizer_fingerprint=None)))
        ImageModelPipeline(nameless, pipeline.image_tokenizer)
        sentence = f"a '{model.kind}' models {model.token_kind}, but the tokenizer is a '{other.kind}'"
        with pytest.raises(ValueError, match=sentence):
            ImageModelPipeline(nameless, other)


def test_a_latentlm_folder_with_a_tokenizer_of_codes_is_refused(class_model: LatentLM, tmp_path: Path) -> None:
    LatentLMPipeline(class_model, {"image": tiny_image_tokenizer()}).save_pretrained(tmp_path / "model")
    tiny_vq_image_tokenizer().save_pretrained(without_manifest(tmp_path / "model") / "tokenizers" / "image")
    with pytest.raises(ValueError, match="a model of latents, but its image tokenizer is a 'vq_image_tokenizer'"):
        load(tmp_path / "model")


def test_either_kind_of_tokenizer_is_read_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    for tokenizer in (tiny_image_tokenizer(), tiny_vq_image_tokenizer()):
        tokenizer.save_pretrained(tmp_path / tokenizer.kind)
        assert load_image_tokenizer(tmp_path / tokenizer.kind).fingerprint() == tokenizer.fingerprint()
    kind = json.loads((folder / "config.json").read_text())["kind"]
    with pytest.raises(ValueError, match=f"holds a '{kind}', which is none of the tokenizers: image_tokenizer, vq_"):
        load_image_tokenizer(folder)
