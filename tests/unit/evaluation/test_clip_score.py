"""The CLIP score with a tiny random CLIP, against its definition; and what is refused."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_clip import save_tiny_clip

from latentlm.evaluation.clip_score import HESSEL_PREFIX, ClipJudge
from latentlm.evaluation.scores_table import scores_table

transformers = pytest.importorskip("transformers")

CAPTIONS = ["a cat", "two dogs on a very long walk", "red!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(transformers, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def judge(folder: Path) -> ClipJudge:
    return ClipJudge(folder, batch_size=2)


def images(count: int = 3, channels: int = 3) -> torch.Tensor:
    """8-bit pictures in [-1, 1]."""
    pixels = torch.randint(256, (count, channels, 16, 16), generator=torch.Generator().manual_seed(1))
    return pixels.float() / 127.5 - 1


def by_hand(folder: Path, captions: list[str]) -> torch.Tensor:
    """One picture at a time, through the parts of CLIP: pooled, projected, divided by the norm."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    cosines = []
    for image, caption in zip(images(), captions, strict=True):
        pixels = ((image + 1) * 127.5).round().to(torch.uint8).movedim(0, -1).numpy()
        seen = processor(text=[caption], images=[Image.fromarray(pixels)], return_tensors="pt")
        with torch.no_grad():
            picture = model.visual_projection(model.vision_model(seen["pixel_values"]).pooler_output)
            text = model.text_projection(model.text_model(seen["input_ids"]).pooler_output)
        cosines.append(torch.cosine_similarity(picture.double(), text.double()))
    return torch.cat(cosines)


@pytest.mark.parametrize("prefix", ["", HESSEL_PREFIX])
def test_the_score_is_a_hundred_times_the_cosine_and_clip_s_is_hessels(judge, folder, prefix):
    expected = by_hand(folder, [prefix + caption for caption in CAPTIONS])
    cosines = judge.cosines(images(), CAPTIONS, prefix=prefix)
    # float32 networks on batches of another size and padding.
    torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
    scores = judge.score(images(), CAPTIONS, prefix=prefix)
    assert scores.num_pictures == 3
    assert scores.clip_score == pytest.approx(100 * expected.mean().item(), abs=1e-3)
    assert scores.clip_s == pytest.approx(2.5 * expected.clamp_min(0).mean().item(), abs=1e-4)
    assert (expected < 0).any(), "or the clipping of negative cosines was not seen"
    assert f"| model | 3 | {scores.clip_score:.2f} | {scores.clip_s:.3f} |" in scores_table({"model": scores})
    assert scores.as_json()["num_pictures"] == 3


def test_captions_beyond_the_context_are_cut_and_grey_pictures_are_read(judge):
    assert judge.cosines(images(1, channels=1), ["word " * 100]).shape == (1,)


def test_unequal_numbers_and_diverged_pictures_are_refused(judge):
    with pytest.raises(ValueError, match="in pairs, but got 3 and 1"):
        judge.score(images(), ["a cat"])
    with pytest.raises(ValueError, match="not all finite"):
        judge.score(images() * torch.nan, CAPTIONS)


def test_a_folder_that_is_no_clip_is_refused_in_a_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*config\.json.* CLIP weights that you bring"):
        ClipJudge(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'"):
        ClipJudge(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="pickled weights are never read"):
        ClipJudge(tmp_path)


def test_weights_without_their_tokenizer_or_with_tensors_missing_are_refused(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    with pytest.raises(ValueError, match="not a CLIP folder that transformers can read"):
        ClipJudge(tmp_path)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"miss \['text_projection\.weight'\]"):
        ClipJudge(tmp_path)


def test_a_missing_library_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it then fails as if it were not installed
    with pytest.raises(ImportError, match=r"latentlm\[hf\]"):
        ClipJudge(folder)
