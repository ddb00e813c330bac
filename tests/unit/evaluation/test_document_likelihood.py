"""Likelihoods of text in documents: those of the model itself, whatever stands beside a document in its row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_documents import picture, tiny_multimodal_recipe
from torch.nn import functional as F

from latentlm.catalog import build
from latentlm.data.documents import RawDocument
from latentlm.evaluation.document_likelihood import (
    choice_nlls,
    document_nlls,
    score_text,
    text_after_picture,
    whole_piece,
)
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.objectives.documents import picture_reader, with_size

TEXT = ByteTokenizer()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An untrained objective, and what reads pictures for it."""
    folder: Path = tmp_path_factory.mktemp("likelihood")
    recipe = tiny_multimodal_recipe(folder, drop_cond_prob=0.5)
    objective, _, _ = build(recipe)
    data = with_size("mixed", recipe.sources["mixed"].settings, objective.tokenizer)
    return objective, picture_reader(data, objective.tokenizer)


def caption(number: int, text: str, *, key: int | None = None) -> RawDocument:
    return RawDocument((picture(number), text), number if key is None else key, f"caption {number}")


DOCUMENTS = [caption(1, "is one"), caption(2, "is two, and long"), caption(3, "three"), caption(4, "x")]


def log_likelihood_of_text(objective: Any, text: str) -> float:
    """Nats of a text and its end after a beginning, straight from the backbone."""
    ids = torch.tensor([[TEXT.eos_id, *TEXT.encode(text), TEXT.eos_id]])
    model = objective.model
    with torch.no_grad():
        hidden = model.transformer(model.embed_tokens(ids), torch.arange(ids.shape[1])[None])
        return float(F.cross_entropy(model.logits(hidden)[0, :-1], ids[0, 1:], reduction="sum"))


def test_nats_of_a_text_are_those_of_the_model_and_of_every_token_with_its_end(opened: Any) -> None:
    objective, reader = opened
    texts = ["a text", "another", "third one, longer"]
    pieces = [whole_piece(RawDocument((text,), i, text), TEXT, reader) for i, text in enumerate(texts)]
    nll, counts = document_nlls(objective, pieces)
    assert counts.tolist() == [len(text) + 1 for text in texts]
    expected = [log_likelihood_of_text(objective, text) for text in texts]
    # The objective gives means in float32, which are multiplied back.
    assert nll.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows_per_batch", [1, 2, 16])
def test_what_shares_a_row_or_a_batch_with_a_document_does_not_matter(opened: Any, rows_per_batch: int) -> None:
    objective, reader = opened
    pieces = [whole_piece(document, TEXT, reader) for document in DOCUMENTS]
    together, counts = document_nlls(objective, pieces, rows_per_batch=rows_per_batch)
    alone = [document_nlls(objective, [piece]) for piece in pieces]
    assert counts.tolist() == [int(count) for _, count in alone]
    # Rounding of other matrix sizes, in float32.
    assert together.tolist() == pytest.approx([float(nll) for nll, _ in alone], rel=1e-5)


def test_text_after_a_picture_is_counted_without_the_picture_and_its_switches(opened: Any) -> None:
    objective, reader = opened
    nll, counts = text_after_picture(objective, DOCUMENTS, TEXT, reader)
    assert counts.tolist() == [len(document.parts[1]) + 1 for document in DOCUMENTS]  # type: ignore[arg-type]
    # Two captions of one picture under one key differ by what they say alone: their common beginning cancels.
    short, long = caption(1, "ab"), caption(1, "abc")
    (of_short, of_long), _ = text_after_picture(objective, [short, long], TEXT, reader)
    assert 0 < float(of_short) < float(of_long) + 10
    # With the model's head at its start every token is about as likely: nats per token are near log of all ids.
    uniform = torch.log(torch.tensor(float(objective.model.config.vocabulary.size))).item()
    assert (nll / counts).tolist() == pytest.approx([uniform] * len(DOCUMENTS), rel=0.1)


def test_another_picture_makes_another_likelihood_and_the_same_one_the_same(opened: Any) -> None:
    objective, reader = opened
    documents = [caption(1, "words", key=9), caption(1, "words", key=9), caption(2, "words", key=9)]
    nlls = [float(text_after_picture(objective, [document], TEXT, reader)[0]) for document in documents]
    assert nlls[0] == nlls[1] != nlls[2]


def test_texts_about_one_picture_differ_by_what_they_say_alone(opened: Any) -> None:
    objective, reader = opened
    texts = ("a", "a longer one", "and one that is longer still")
    choices = [[caption(1, text) for text in texts], [caption(2, text) for text in texts[:2]]]
    first, second = choice_nlls(objective, choices, TEXT, reader)
    assert [len(first), len(second)] == [3, 2]
    for number, of_one in ((1, first), (2, second)):
        documents = [caption(number, text) for text in texts[: len(of_one)]]
        after, _ = text_after_picture(objective, documents, TEXT, reader)
        # What stands before the texts is the same for all; rounding of means in float32, multiplied back.
        assert (of_one - of_one[0]).tolist() == pytest.approx((after - after[0]).tolist(), abs=1e-3)
    alike = choice_nlls(objective, [[caption(1, "a"), caption(1, "a")]], TEXT, reader)[0]
    assert alike[0] == alike[1]


def test_noise_in_a_picture_changes_what_follows_it(opened: Any) -> None:
    objective, reader = opened

    def nats(noise_level: float) -> torch.Tensor:
        return text_after_picture(objective, DOCUMENTS, TEXT, reader, noise_level=noise_level)[0]

    clean = nats(0.0)
    # A thousandth of the schedule: noise of std 0.01 in latents of std 1 changes hardly anything.
    assert nats(0.001).tolist() == pytest.approx(clean.tolist(), rel=1e-3)
    least, *changes = [(nats(level) - clean).abs().sum().item() for level in (0.001, 0.1, 0.5, 1.0)]
    assert 0 < 3 * least < min(changes)
    assert len(set(changes)) == 3
    assert nats(0.5).equal(nats(0.5))


def test_noise_in_pictures_does_not_reach_text_without_them(opened: Any) -> None:
    objective, reader = opened
    pieces = [whole_piece(RawDocument(("a text",), 0, "text"), TEXT, reader)]
    assert document_nlls(objective, pieces, noise_level=1.0)[0] == document_nlls(objective, pieces)[0]


def test_a_level_of_noise_outside_the_schedule_is_refused(opened: Any) -> None:
    objective, reader = opened
    with pytest.raises(ValueError, match=r"noise level is 1\.5; it is a share of the schedule"):
        text_after_picture(objective, DOCUMENTS, TEXT, reader, noise_level=1.5)


def test_the_objective_is_left_as_it_was(opened: Any) -> None:
    objective, reader = opened
    objective.train()
    before = (objective.group_names, objective.drop_cond_prob, objective.training)
    document_nlls(objective, [whole_piece(DOCUMENTS[0], TEXT, reader)])
    assert (
        (objective.group_names, objective.drop_cond_prob, objective.training)
        == before
        == (("mixed", "text"), 0.5, True)
    )


def test_a_text_longer_than_a_row_is_cut_and_counts_only_the_bytes_of_its_targets(opened: Any) -> None:
    objective, _ = opened
    # 48 tokens a row: an end of text and 47 bytes, then 33 bytes and the end. The first byte of the second piece is
    # nobody's target; ends are targets without bytes.
    text = "x" * 80
    scores = score_text(objective, [RawDocument((text,), 0, "long")], TEXT)
    assert (scores.num_targets, scores.num_bytes) == (47 + 33, 79)


def test_perplexity_and_bits_follow_from_the_nats_of_all_documents(opened: Any) -> None:
    objective, _ = opened
    texts = ["one", "two words"]
    scores = score_text(objective, [RawDocument((text,), i, text) for i, text in enumerate(texts)], TEXT)
    assert scores.nll_nats == pytest.approx(sum(log_likelihood_of_text(objective, text) for text in texts), rel=1e-5)
    assert (scores.num_targets, scores.num_bytes) == (14, 12)


def test_a_document_with_a_picture_is_no_plain_text(opened: Any) -> None:
    with pytest.raises(ValueError, match="caption 1 holds a picture"):
        score_text(opened[0], [DOCUMENTS[0]], TEXT)
