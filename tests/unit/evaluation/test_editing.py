"""Edits and their targets: perfect edits, copies and noise are told apart."""

import pytest
import torch
from torch import Tensor

from latentlm.evaluation.dual_encoder import DualEncoder, DualEncoderConfig
from latentlm.evaluation.editing import EditJudge, EditTargets, targets_of
from latentlm.evaluation.image_scores import PixelSpace

SHAPES, STYLES = ("a", "b", "c", "d", "e", "f"), ("x", "y")


def picture(shape: str, style: str) -> Tensor:
    """A pattern for each shape; the second style is its negative in one half."""
    generator = torch.Generator().manual_seed(SHAPES.index(shape))
    pattern = torch.rand(1, 8, 8, generator=generator) * 2 - 1
    return pattern if style == "x" else torch.cat([pattern[:, :4], -pattern[:, 4:]], dim=1)


@pytest.fixture(scope="module")
def judge() -> EditJudge:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = DualEncoder(DualEncoderConfig(num_features=16, width=8), num_channels=1).eval()
    everything = [(shape, style) for shape in SHAPES for style in STYLES]
    answers = [
        (number, picture(shape, style), {"shape": shape, "style": style})
        for number, (shape, style) in enumerate(everything)
    ]
    targets = targets_of([*answers, answers[3]], ["shape", "style"])
    return EditJudge(encoder, PixelSpace(), PixelSpace(), targets)


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Sources in x, targets in y, and the numbers of the targets."""
    sources = torch.stack([picture(shape, "x") for shape in SHAPES])
    targets = torch.stack([picture(shape, "y") for shape in SHAPES])
    return sources, targets, torch.arange(len(SHAPES)) * 2 + 1


def test_targets_are_different_records_found_by_their_number(judge: EditJudge) -> None:
    assert judge.targets.numbers == list(range(12))
    assert judge.targets.facts["shape"][7] == "d"
    assert judge.targets.places([11, 0]).tolist() == [11, 0]
    with pytest.raises(ValueError, match="there is no edit"):
        targets_of([], [])


def test_a_perfect_edit_finds_its_target_at_no_distance(judge: EditJudge) -> None:
    sources, targets, own = pairs()
    scores = judge.score(targets, sources, own)
    assert (scores.at_1.share, scores.at_5.share, scores.nearer_to_target.share) == (1, 1, 1)
    assert {name: share.share for name, share in scores.nearest.items()} == {"shape": 1, "style": 1}
    assert scores.pixel_error == scores.judge_distance == scores.second_distance == 0


def test_a_copy_finds_itself_and_not_its_target(judge: EditJudge) -> None:
    sources, targets, own = pairs()
    scores = judge.score(sources, sources, own)
    assert (scores.at_1.share, scores.nearer_to_target.share) == (0, 0)
    assert {name: share.share for name, share in scores.nearest.items()} == {"shape": 1, "style": 0}
    errors = (sources - targets).square().flatten(1).mean(dim=1)
    assert scores.pixel_error == pytest.approx(errors.mean().item(), rel=1e-6)  # float32 differences
    expected = (sources - targets).flatten(1).norm(dim=1).mean().item()
    assert scores.judge_distance == pytest.approx(expected, rel=1e-6)


def test_scores_are_plain_values(judge: EditJudge) -> None:
    sources, targets, own = pairs()
    written = judge.score(targets, sources, own).as_json()
    assert written["nearest"]["style"]["num"] == 6
    assert written["at_5"] == {"estimate": 1, "low": 1, "high": 1, "num": 6}


def test_a_tie_is_no_success() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = DualEncoder(DualEncoderConfig(num_features=16, width=8), num_channels=1).eval()
    same = torch.stack([picture("a", "x")] * 2)
    targets = EditTargets(numbers=[0, 1], images=same, facts={})
    scores = EditJudge(encoder, PixelSpace(), PixelSpace(), targets).score(same, same, torch.tensor([0, 1]))
    assert (scores.at_1.share, scores.at_5.share) == (0, 1)
