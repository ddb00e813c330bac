"""A model and its tokenizers as one thing: pictures out, folders that hold everything, refusals."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import randomise, tiny_class_config, tiny_image_tokenizer, tiny_mixed_config
from torch import Tensor

from latentlm.catalog import load
from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.generator import Generator
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.pipeline_folder import GENERATION_CONFIG
from latentlm.generation.requests import GenerationRequest, LatentSamplingConfig
from latentlm.models.latentlm import LatentLM
from latentlm.sequence import Document, LabelPart
from latentlm.storage import StorageError

SAMPLING = {"image": LatentSamplingConfig(cfg_scale=1.5, solver=SolverConfig(num_inference_steps=3))}


@pytest.fixture
def pipeline(class_model: LatentLM) -> LatentLMPipeline:
    return LatentLMPipeline(class_model, {"image": tiny_image_tokenizer()}, SAMPLING)


@pytest.fixture
def folder(pipeline: LatentLMPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_pipeline_draws_the_pictures_of_the_saved_one(pipeline: LatentLMPipeline, folder: Path) -> None:
    expected = pipeline.generate_images([1, None, 3], seed=4)
    assert expected.shape == (3, 1, 8, 8)
    for loaded in (LatentLMPipeline.from_pretrained(folder), load(folder)):
        assert loaded.sampling == SAMPLING
        assert torch.equal(loaded.generate_images([1, None, 3], seed=4), expected)


def test_label_names_travel_with_the_model(class_model: LatentLM, tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(10)]
    tokenizers = {"image": tiny_image_tokenizer()}
    LatentLMPipeline(class_model, tokenizers, label_names=names).save_pretrained(tmp_path / "named")
    assert load(tmp_path / "named").label_names == tuple(names)
    with pytest.raises(ValueError, match="2 label names were given for a model of 10 classes"):
        LatentLMPipeline(class_model, tokenizers, label_names=["a", "b"])


def test_a_pipeline_is_uploaded_with_its_tokenizer(pipeline: LatentLMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []

    class Api:
        """Stands in for the hub's client."""

        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None: ...

        def upload_folder(self, *, folder_path: Path, **arguments: object) -> SimpleNamespace:
            uploaded.extend(str(path.relative_to(folder_path)) for path in sorted(folder_path.rglob("*.*")))
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert pipeline.push_to_hub("owner/digits") == "https://hub/commit"
    assert {"config.json", "model.safetensors", "tokenizers/image/model.safetensors"} <= set(uploaded)


def test_pictures_do_not_depend_on_the_batch_and_can_have_other_sizes(pipeline: LatentLMPipeline) -> None:
    together = pipeline.generate_images([1, 2, 3], seeds=[7, 8, 9])
    split = pipeline.generate_images([1, 2, 3], seeds=[7, 8, 9], batch_size=2)
    assert torch.allclose(together, split, atol=1e-4)  # products of other sizes round differently
    assert pipeline.generate_images([1], height=4, width=12).shape == (1, 1, 4, 12)
    assert pipeline.generate_images([]).shape == (0, 1, 8, 8)


def tiny_pipeline(*, mixed: bool) -> LatentLMPipeline:
    """Of pictures, with switch tokens or without."""
    config = tiny_mixed_config() if mixed else tiny_class_config()
    config = dataclasses.replace(config, modalities={"image": config.modalities["image"]})
    return LatentLMPipeline(randomise(LatentLM(config)), {"image": tiny_image_tokenizer()}, SAMPLING)


@pytest.mark.parametrize("mixed", [False, True])
def test_pictures_are_continued_from_those_before_them(mixed: bool) -> None:
    pipeline = tiny_pipeline(mixed=mixed)
    sampling = pipeline.sampling_with({"cfg_scale": 1.0})
    latent_dim = pipeline.image_tokenizer.latent_dim
    given = torch.randn(2, 2, 4, latent_dim, generator=torch.Generator().manual_seed(0))

    def continued(labels: list[int], given: Tensor | None, seeds: list[int], count: int = 2) -> Tensor:
        return pipeline.continue_pictures(labels, given, count, seeds=seeds, sampling=sampling)

    both = continued([1, 2], given, [7, 8])
    assert both.shape == (2, 2, 4, latent_dim)
    # Rows of a batch equal solo runs up to the order of float sums, and what is drawn what is given.
    torch.testing.assert_close(continued([2], given[1:], [8])[0], both[1], atol=1e-4, rtol=1e-4)
    changed = given.clone()
    changed[:, 0, 0] += 1
    assert not torch.allclose(continued([1, 2], changed, [7, 8]), both, atol=1e-2), "the first given latent counts"
    assert not torch.allclose(continued([0, 2], given, [7, 8])[0], both[0], atol=1e-2), "so does the label"
    alone = continued([1, 2], None, [7, 8])
    torch.testing.assert_close(alone[:, 0], pipeline.draw_tokens([1, 2], [7, 8], sampling, (2, 2)))
    with pytest.raises(ValueError, match="num_pictures is 0"):
        continued([1, 2], given, [7, 8], count=0)
    with pytest.raises(ValueError, match="10"):
        continued([10], None, [7])
    with pytest.raises(ValueError, match="does not see earlier pictures"):
        pipeline.continue_pictures([1, 2], given, 3, seeds=[7, 8], sampling=pipeline.sampling_with({"cfg_scale": 2.0}))


@pytest.mark.parametrize("mixed", [False, True])
def test_guidance_is_away_from_the_null_class_with_and_without_switch_tokens(
    mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Training replaces a dropped label by the null class in both layouts, so sampling has to.
    seen: list[GenerationRequest] = []
    generate = Generator.generate

    def spy(self: Generator, requests: list[GenerationRequest]) -> list[Document]:
        seen.extend(requests)
        return generate(self, requests)

    monkeypatch.setattr(Generator, "generate", spy)
    assert tiny_pipeline(mixed=mixed).generate_images([1]).isfinite().all()
    assert [request.negative_prompt for request in seen] == [Document((LabelPart(None),))]


def test_requests_that_do_not_fit_are_refused(pipeline: LatentLMPipeline) -> None:
    with pytest.raises(ValueError, match="1 seeds were given for 2 labels"):
        pipeline.generate_images([0, 1], seeds=[3])
    with pytest.raises(ValueError, match="label 10 is outside"):
        pipeline.generate_images([10])
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        pipeline.generate_images([0], height=0)


def test_a_tokenizer_the_model_was_not_trained_with_is_refused(class_model: LatentLM) -> None:
    tokenizer, image = tiny_image_tokenizer(), class_model.config.modalities["image"]
    trained = dataclasses.replace(image, tokenizer_fingerprint=tokenizer.fingerprint())
    model = LatentLM(dataclasses.replace(class_model.config, modalities={"image": trained}))
    LatentLMPipeline(model, {"image": tokenizer})
    with pytest.raises(ValueError, match="another image tokenizer"):
        LatentLMPipeline(model, {"image": tiny_image_tokenizer(seed=1)})
    with pytest.raises(ValueError, match="no tokenizer was given"):
        LatentLMPipeline(model, {})
    narrow = LatentLM(tiny_class_config(latent_dim=5))
    with pytest.raises(ValueError, match="latents of 6 dimensions"):
        LatentLMPipeline(narrow, {"image": tokenizer})


def test_saving_replaces_a_model_but_never_a_folder_of_something_else(
    pipeline: LatentLMPipeline, folder: Path, tmp_path: Path
) -> None:
    pipeline.save_pretrained(folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "notes").write_text("more work")
    for target in ("thesis", "notes"):
        with pytest.raises(StorageError, match="refusing to replace it"):
            pipeline.save_pretrained(tmp_path / target)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()
    assert (tmp_path / "notes").read_text() == "more work"


def without_manifest(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must map modalities"),
        ({"image": 3}, "must map modalities"),
        ({"image": {"cfg_scal": 2.0}}, "cfg_scale"),
        ({"image": {"cfg_scale": float("nan")}}, "cfg_scale is nan"),
        ({"imgae": {}}, "sampling names imgae"),
    ],
)
def test_sampling_defaults_that_make_no_sense_are_refused(folder: Path, content: object, message: str) -> None:
    (without_manifest(folder) / GENERATION_CONFIG).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        LatentLMPipeline.from_pretrained(folder)


def test_altered_sampling_defaults_and_tokenizers_are_noticed(folder: Path) -> None:
    path = folder / GENERATION_CONFIG
    path.write_text(path.read_text().replace("1.5", "9.5"))
    with pytest.raises(StorageError, match=r"generation_config\.json is damaged"):
        LatentLMPipeline.from_pretrained(folder)


def test_links_that_lead_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    path = without_manifest(folder) / GENERATION_CONFIG
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(StorageError, match="leads out of"):
        LatentLMPipeline.from_pretrained(folder)
    path.unlink()
    shutil.move(folder / "tokenizers" / "image", tmp_path / "elsewhere")
    (folder / "tokenizers" / "image").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="leads out of"):
        LatentLMPipeline.from_pretrained(folder)


def test_a_missing_tokenizer_is_never_looked_for_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(without_manifest(folder) / "tokenizers")
    monkeypatch.chdir(folder)  # from here, tokenizers/image reads like a hub id
    with pytest.raises(ValueError, match="there is no tokenizers/image"):
        LatentLMPipeline.from_pretrained(".")


def test_a_pipeline_in_the_cache_of_the_hub_loads_through_its_links(folder: Path, tmp_path: Path) -> None:
    # The hub's cache: snapshots/<commit>/ holds links to blobs/.
    repository = tmp_path / "models--someone--digits"
    snapshot = repository / "snapshots" / "abc123"
    (repository / "blobs").mkdir(parents=True)
    for index, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repository / "blobs" / str(index))
        link.symlink_to(repository / "blobs" / str(index))
    assert LatentLMPipeline.from_pretrained(snapshot).sampling == SAMPLING
