"""The dual encoder: learns pairs, is reproducible, cached, and reads captions whatever stands beside them."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from latentlm.evaluation import dual_encoder as dual_encoder_module
from latentlm.evaluation.dual_encoder import DualEncoder, DualEncoderConfig, load_dual_encoder, train_dual_encoder
from latentlm.storage import StorageError

TINY = DualEncoderConfig(
    num_features=16, width=8, text_width=16, num_text_layers=1, num_steps=5, batch_size=8, max_shift=1
)
CAPTIONS = ("red left", "red right", "green left", "green right", "blue left", "blue right")


def pairs(count: int, seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    """uint8 pictures with one half in one colour, under noise, and their captions."""
    generator = torch.Generator().manual_seed(seed)
    captions = [CAPTIONS[i % 6] for i in range(count)]
    images = torch.randint(0, 80, (count, 3, 8, 8), generator=generator)
    for image, caption in zip(images, captions, strict=True):
        color, side = caption.split()
        half = slice(0, 4) if side == "left" else slice(4, 8)
        image[["red", "green", "blue"].index(color), :, half] += 150
    return images.to(torch.uint8), captions


def encoder(config: DualEncoderConfig = TINY) -> DualEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DualEncoder(config, num_channels=3).eval()


def test_features_are_unit_vectors_and_a_caption_does_not_feel_its_neighbours():
    model = encoder()
    alone, together = model.caption_features(["red cat"]), model.caption_features(["red cat", "a much longer caption"])
    # float32 convolutions of another length.
    torch.testing.assert_close(alone[0], together[0], atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for features in (model.picture_features(images), together):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    torch.testing.assert_close(model.picture_features(images)[1:2], model.picture_features(images[1:2]))


def test_case_does_not_count():
    model = encoder()
    assert torch.equal(model.caption_features(["OK hand"]), model.caption_features(["ok Hand"]))


def test_the_loss_is_the_mean_cross_entropy_of_both_directions():
    model = encoder()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    captions = torch.tensor([[97, 98], [99, 100], [101, 102], [103, 104]])
    pictures = model.picture_features(images)
    texts = model.caption_features(["ab", "cd", "ef", "gh"])
    logits = pictures @ texts.T / 0.07
    expected = -(logits.log_softmax(dim=1).diag().mean() + logits.log_softmax(dim=0).diag().mean()) / 2
    # float32 in another order.
    torch.testing.assert_close(model(images, captions), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [8, 28, 64])
def test_pictures_of_any_side_are_read_at_32_pixels_at_most(side):
    model = encoder()
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert model.picture_features(images).shape == (2, 16)
    if side == 64:
        smaller = F.avg_pool2d(images, 2)
        torch.testing.assert_close(model.picture_features(images), model.picture_features(smaller))


def test_training_finds_the_captions_of_pictures_it_never_saw():
    config = replace(TINY, num_steps=60, lr=1e-2)
    model = train_dual_encoder(config, *pairs(120))
    images, captions = pairs(60, seed=1)
    similarity = model.picture_features(images.float() / 127.5 - 1) @ model.caption_features(list(CAPTIONS)).T
    right = similarity.argmax(dim=1) == torch.tensor([CAPTIONS.index(caption) for caption in captions])
    # Three colours on two sides, told apart at a glance; chance is 17%.
    assert right.double().mean() > 0.9


def test_the_same_seed_trains_the_same_encoder_whatever_was_drawn_before():
    state = torch.random.get_rng_state()
    first = train_dual_encoder(TINY, *pairs(30))
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator was moved"
    with torch.random.fork_rng():
        torch.rand(7)
        second = train_dual_encoder(TINY, *pairs(30))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other = train_dual_encoder(replace(TINY, seed=1), *pairs(30))
    assert not torch.equal(other.caption_features(["red"]), first.caption_features(["red"]))


def test_a_batch_never_holds_two_pictures_of_one_caption(monkeypatch):
    batches = []
    loss = DualEncoder.forward

    def watched(self, images, caption_bytes):
        batches.append(caption_bytes)
        return loss(self, images, caption_bytes)

    monkeypatch.setattr(DualEncoder, "forward", watched)
    images, captions = pairs(30)
    captions[0] = captions[0].upper()  # the same caption in another case
    train_dual_encoder(TINY, images, captions)
    assert len(batches) == 5
    for batch in batches:
        assert len(batch) == len(batch.unique(dim=0)) == 6, "all six captions, each once"


def test_the_second_call_trains_nothing_and_gives_the_same_encoder(tmp_path, monkeypatch):
    images, captions = pairs(30)
    first, fingerprint = load_dual_encoder(images, captions, cache_dir=tmp_path, config=TINY)
    monkeypatch.setattr(dual_encoder_module, "train_dual_encoder", None)
    state = torch.random.get_rng_state()
    again, same_fingerprint = load_dual_encoder(images, captions, cache_dir=tmp_path, config=TINY)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator was moved"
    assert same_fingerprint == fingerprint
    assert not again.training
    assert torch.equal(again.caption_features(["red left"]), first.caption_features(["red left"]))


def test_other_pixels_captions_or_settings_are_another_folder(tmp_path):
    images, captions = pairs(12)
    changed = images.clone()
    changed[3, 0, 0, 0] += 1
    cases = [
        (images, captions, TINY),
        (changed, captions, TINY),
        (images, [*captions[:-1], "blue Right"], TINY),
        (images, captions, replace(TINY, pixel_noise=0.2)),
    ]
    found = {load_dual_encoder(*case[:2], cache_dir=tmp_path, config=case[2])[1] for case in cases}
    assert len(found) == len(list(tmp_path.iterdir())) == len(cases)


def test_a_damaged_cache_is_refused(tmp_path):
    images, captions = pairs(12)
    _, fingerprint = load_dual_encoder(images, captions, cache_dir=tmp_path, config=TINY)
    path = tmp_path / fingerprint[:16] / "dual_encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="is damaged"):
        load_dual_encoder(images, captions, cache_dir=tmp_path, config=TINY)


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    images, captions = pairs(12)
    with pytest.raises(ValueError, match="in pairs, but got 12 and 11"):
        load_dual_encoder(images, captions[:-1], cache_dir=tmp_path, config=TINY)
    with pytest.raises(ValueError, match="all captions are the same"):
        train_dual_encoder(TINY, images, ["Red", "red"] * 6)
    with pytest.raises(ValueError, match=r"1 to 128 bytes, but 'éé.*has 130; raise max_caption_bytes"):
        train_dual_encoder(TINY, images, ["é" * 65, *captions[1:]])
    with pytest.raises(ValueError, match="but '' has 0"):
        train_dual_encoder(TINY, images, ["", *captions[1:]])
    with pytest.raises(ValueError, match="loss is nan; lower its lr"):
        train_dual_encoder(replace(TINY, lr=1e30), images, captions)
    assert not list(tmp_path.iterdir())


def test_pictures_that_it_cannot_read_are_refused():
    with pytest.raises(ValueError, match="3 channels, but got 1"):
        encoder().picture_features(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="not all finite"):
        encoder().picture_features(torch.full((2, 3, 8, 8), torch.nan))
