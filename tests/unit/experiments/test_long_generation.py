"""Long documents, by a model that copies digits and lets them fade from picture to picture."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from tiny_judges import DIGITS, tiny_judges
from torch import Tensor

from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.judges import Judges
from latentlm.experiments import image_protocols
from latentlm.experiments.long_generation import LongGenerationOptions, long_generation
from latentlm.experiments.protocol import MeasureContext
from latentlm.tokenizers.base import Posterior

NUM_DOCUMENTS, NUM_PICTURES, PER_BIN = 24, 6, 2
OPTIONS = {
    "num_documents": NUM_DOCUMENTS,
    "num_pictures": NUM_PICTURES,
    "pictures_per_bin": PER_BIN,
    "batch_size": 10,
    "seed": 100,
    "changes": {"fading": 0.15},
}


class Patches:
    """A tokenizer that loses nothing: a latent is a patch of 4 x 4 pixels, a picture has two rows and columns of it."""

    config = SimpleNamespace(image_size=8)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 4, width // 4

    def encode(self, images: Tensor) -> Tensor:
        return images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(1, 3)  # (B, N, 16)

    def posterior(self, images: Tensor) -> Posterior:
        return Posterior(self.encode(images), None)

    def sample_keyed(self, posterior: Posterior, seed: int, keys: Tensor) -> Tensor:
        return posterior.mean

    def decode(self, latents: Tensor) -> Tensor:
        return latents.view(len(latents), 2, 2, 4, 4).transpose(2, 3).reshape(len(latents), 1, 8, 8)


Journal = list[tuple[list[int], list[int], int]]
"""Labels, seeds and the number of given pictures of every drawing."""


class PowerCutError(Exception):
    """Ends a measurement without any goodbye."""


class Fading:
    """Draws documents of digits that lose `fading` of their contrast with every picture; notes what it was asked."""

    num_classes = 10
    image_tokenizer = Patches()
    tokenizers: ClassVar = {"image": image_tokenizer}

    def __init__(self, judges: Judges, journal: Journal, cut_at: int | None) -> None:
        self.real, self.journal, self.cut_at = judges.test, journal, cut_at

    def sampling_with(self, changes: Mapping[str, Any]) -> float:
        return changes["fading"]

    def continue_pictures(
        self, labels: Sequence[int], given: Tensor | None, num_pictures: int, *, seeds: Sequence[int], sampling: float
    ) -> Tensor:
        if len(self.journal) == self.cut_at:
            raise PowerCutError
        self.journal.append((list(labels), list(seeds), 0 if given is None else given.shape[1]))
        documents = []
        for number, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
            members = self.real.images[self.real.labels == label]
            if given is not None:  # the past is what it should be: real pictures of the class
                past = self.tokenizers["image"].decode(given[number])
                assert all((members == picture).flatten(1).all(dim=1).any() for picture in past)
            first = self.image_tokenizer.encode(members[seed % len(members)][None])[0]  # (4, 16)
            documents.append(torch.stack([first * (1 - sampling * place) for place in range(num_pictures)]))
        return torch.stack(documents)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return tiny_judges()


MakeContext = Callable[..., MeasureContext]


@pytest.fixture
def make_context(tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch) -> MakeContext:
    monkeypatch.setattr(image_protocols, "load_judges", lambda data, *, cache_dir, progress: judges)

    def make(
        options: Mapping[str, Any] = OPTIONS,
        *,
        journal: Journal | None = None,
        cut_at: int | None = None,
        name: str = "cell",
    ) -> MeasureContext:
        return MeasureContext(
            cell=name,
            axes={},
            run_dir=tmp_path / "run",
            recipe=SimpleNamespace(data=DIGITS),
            options=options,
            scratch_dir=tmp_path / "scratch" / name,
            cache_dir=tmp_path / "cache",
            assets_dir=tmp_path / "assets",
            load=lambda folder: Fading(judges, [] if journal is None else journal, cut_at),
            progress=False,
        )

    return make


def drawn_pictures(judges: Judges) -> tuple[Tensor, Tensor]:
    """What `Fading` draws for these options, [documents, pictures, 1, 8, 8], and the labels of the documents."""
    labels = torch.arange(NUM_DOCUMENTS) % 10
    firsts = []
    for number, label in enumerate(labels):
        members = judges.test.images[judges.test.labels == label]
        firsts.append(members[(100 + number) % len(members)])
    contrast = 1 - 0.15 * torch.arange(NUM_PICTURES)
    return torch.stack(firsts)[:, None] * contrast.view(1, -1, 1, 1, 1), labels


def test_classes_take_turns_and_seeds_do_not_depend_on_the_batches(make_context: MakeContext) -> None:
    journal: Journal = []
    long_generation(make_context(journal=journal))
    assert [(len(labels), past) for labels, _, past in journal] == [
        (rows, past) for past in (0, 2, 4) for rows in (10, 10, 4)
    ], "documents first, then the control of every bin but the first, which has no past"
    for start in (0, 3, 6):
        one_round = journal[start : start + 3]
        assert [label for labels, _, _ in one_round for label in labels] == [n % 10 for n in range(NUM_DOCUMENTS)]
        assert [seed for _, seeds, _ in one_round for seed in seeds] == list(range(100, 100 + NUM_DOCUMENTS))


def test_variance_is_reported_for_every_picture_of_a_document(make_context: MakeContext, judges: Judges) -> None:
    result = long_generation(make_context())
    pictures, _ = drawn_pictures(judges)
    assert result["num_latents"] == NUM_PICTURES * 4
    assert result["pictures"] == list(range(NUM_PICTURES))
    assert len(result["variance"]) == NUM_PICTURES
    for place, variance in enumerate(result["variance"]):
        # A variance in float64 of the same float32 numbers.
        assert variance == pytest.approx(pictures[:, place].double().var().item(), rel=1e-6)
        assert variance == pytest.approx((1 - 0.15 * place) ** 2 * result["variance"][0], rel=1e-5)


def test_bins_hold_their_pictures_with_the_documents_labels(make_context: MakeContext, judges: Judges) -> None:
    result = long_generation(make_context())
    pictures, labels = drawn_pictures(judges)
    assert result["first_picture"] == [0, 2, 4]
    for number, start in enumerate(result["first_picture"]):
        # The control begins anew at every bin, so it does not fade any further.
        for name, shown in (("free", pictures[:, start : start + 2]), ("forced", pictures[:, :2])):
            check_scores({key: values[number] for key, values in result[name].items()}, shown, labels, judges)


def check_scores(scores: Mapping[str, float], pictures: Tensor, labels: Tensor, judges: Judges) -> None:
    panel, flat = judges.panel, pictures.flatten(0, 1)
    assert scores["accuracy"] == pytest.approx(panel.judge.accuracy(flat, labels.repeat_interleave(2)))
    assert scores["variance"] == pytest.approx(pictures.double().var().item(), rel=1e-5)
    for name, space, real in (
        ("frechet", panel.judge, panel.reference_features),
        ("frechet_second_space", panel.second_space, panel.reference_second_features),
    ):
        # Order within a bin changes nothing but the order of float sums.
        assert scores[name] == pytest.approx(frechet_distance(space.features(flat), real), rel=1e-4)


def test_excess_is_what_is_left_of_the_fading_after_the_control(make_context: MakeContext) -> None:
    result = long_generation(make_context())
    for name, values in result["excess"].items():
        assert values == [a - b for a, b in zip(result["free"][name], result["forced"][name], strict=True)]
        assert values[0] == 0, "the first bin has no past"
        assert result["drift"][name] == values[-1]
    # The judge's GroupNorm hardly sees contrast; the second space does.
    assert 0 < result["excess"]["frechet_second_space"][1] < result["drift"]["frechet_second_space"]
    steady = long_generation(make_context({**OPTIONS, "changes": {"fading": 0.0}}, name="steady"))
    assert set(steady["drift"].values()) == {0.0}, "every picture is the first one"


def test_the_floor_is_that_of_as_many_real_pictures_as_a_bin_has(make_context: MakeContext, judges: Judges) -> None:
    result = long_generation(make_context())
    real = judges.test.subset(torch.arange(NUM_DOCUMENTS * PER_BIN))
    assert result["floor"]["accuracy"] == judges.panel.judge.accuracy(real.images, real.labels)
    expected = frechet_distance(judges.panel.judge.features(real.images), judges.panel.reference_features)
    assert result["floor"]["frechet"] == pytest.approx(expected)
    json.dumps(result, allow_nan=False)


def test_the_picture_shows_ten_documents_and_the_first_picture_of_each_bin(make_context: MakeContext) -> None:
    context = make_context()
    long_generation(context)
    with Image.open(context.picture_path("documents")) as picture:
        assert picture.size == (3 * 68 + 4, 10 * 68 + 4)


@pytest.mark.parametrize("cut_at", [0, 2, 5])
def test_after_a_kill_only_the_missing_documents_are_drawn(make_context: MakeContext, cut_at: int) -> None:
    whole: Journal = []
    expected = long_generation(make_context(journal=whole, name="whole"))
    journal: Journal = []
    with pytest.raises(PowerCutError):
        long_generation(make_context(journal=journal, cut_at=cut_at))
    assert long_generation(make_context(journal=journal)) == expected
    assert journal == whole, "every document was drawn once"


def test_bins_that_do_not_divide_a_document_are_refused(make_context: MakeContext) -> None:
    with pytest.raises(ValueError, match="60 pictures do not make bins of 8"):
        LongGenerationOptions(num_pictures=60)
    with pytest.raises(ValueError, match="options of cell: 6 pictures do not make bins of 4"):
        long_generation(make_context({**OPTIONS, "pictures_per_bin": 4}))
