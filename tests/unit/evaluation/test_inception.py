"""FID and Inception score: refusals, and the wiring to torch-fidelity by a stand-in of the same interface."""

import sys

import pytest
import torch
from fake_inception import LIBRARY, put_in_place

from latentlm.evaluation.classifier import classifier_score
from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.inception import InceptionJudge


@pytest.fixture
def library(monkeypatch) -> None:
    put_in_place(monkeypatch)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).float() / 127.5 - 1


def layers(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rgb = ((pictures + 1) / 2).expand(-1, 3, -1, -1).flatten(1)
    return rgb[:, :5], rgb[:, :7] * 9


def test_fid_and_inception_score_are_their_formulas_on_what_the_network_saw(library, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    real, generated = images(40, seed=0), images(25, seed=1)
    scores = InceptionJudge(tmp_path / "weights.pth", real, batch_size=7).score(generated)
    features, logits = layers(generated)
    # float32 pixels through another order of operations.
    assert scores.fid == pytest.approx(frechet_distance(features, layers(real)[0]), abs=1e-5)
    parts = [classifier_score(part.double().softmax(dim=1)) for part in logits.chunk(10)]
    assert scores.inception_score == pytest.approx(sum(parts) / len(parts), rel=1e-5)


def test_too_few_or_diverged_images_are_refused(library, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    judge = InceptionJudge(tmp_path / "weights.pth", images(20, seed=0))
    with pytest.raises(ValueError, match="at least 10 images, but got 9"):
        judge.score(images(9, seed=1))
    with pytest.raises(ValueError, match="not all finite"):
        judge.score(images(10, seed=1) * torch.nan)


def test_a_missing_file_is_refused_before_anything_else(tmp_path):
    with pytest.raises(ValueError, match="--inception-weights: there is no file"):
        InceptionJudge(tmp_path / "weights.pth", images(5, seed=0))


def test_a_missing_library_names_extra_and_flag(monkeypatch, tmp_path):
    for name in (LIBRARY, f"{LIBRARY}.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it then fails as if it were not installed
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ImportError, match=r"latentlm\[fid\].*--inception-weights FILE"):
        InceptionJudge(tmp_path / "weights.pth", images(5, seed=0))
