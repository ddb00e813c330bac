"""`latentlm reconstruct`: a sound or a picture through a tokenizer and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_kinds import save_tiny_tokenizers, tiny_pipeline
from tiny_speech import RECORDED_RATE, sound, tiny_speech_codec, tiny_speech_tokenizer

from latentlm.cli.main import main
from latentlm.data.audio import decode_audio, write_wav

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "speech.wav"
    write_wav(path, sound(3 * RECORDED_RATE + 7), RECORDED_RATE)
    return path


@pytest.mark.parametrize("make", [tiny_speech_tokenizer, tiny_speech_codec])
def test_a_sound_comes_back_as_a_file_of_its_length(
    make, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make(sample_rate=RECORDED_RATE)
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(["reconstruct", str(recording), "--model", str(tmp_path / "model"), "--device", "cpu"]) == 0
    out = tmp_path / "speech_back.wav"
    back, rate = soundfile.read(out)
    assert (rate, len(back)) == (RECORDED_RATE, 3 * RECORDED_RATE + 7)
    whole = torch.from_numpy(decode_audio(recording, "it", sample_rate=RECORDED_RATE, max_seconds=10.0))[None]
    tokens = tokenizer.encode(whole) if make is tiny_speech_codec else tokenizer.encode(whole, sample=False)
    expected = tokenizer.decode(tokens, num_samples=whole.shape[1])[0].detach().numpy()
    np.testing.assert_allclose(back, expected, atol=1e-4)
    assert f"{out}: 3.00 s at {RECORDED_RATE} Hz" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("kind", ["latents", "codes"])
def test_a_picture_comes_back_in_the_size_of_training(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_tokenizers(tmp_path)[kind]
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "cat.png")
    out = tmp_path / "new" / "back.png"
    assert main(["reconstruct", str(tmp_path / "cat.png"), "--model", str(folder), "-o", str(out)]) == 0
    assert "PSNR" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width == picture.height == 8


def test_what_cannot_be_is_said_and_leaves_nothing_behind(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_speech_tokenizer(sample_rate=RECORDED_RATE).save_pretrained(tmp_path / "model")
    model = ["--model", str(tmp_path / "model")]
    text, short = tmp_path / "text.wav", tmp_path / "short.wav"
    text.write_text("not a sound at all")
    short.write_bytes(recording.read_bytes()[:44])
    for arguments, sentence in (
        (["nowhere.wav", *model], "there is no such file"),
        ([str(text), *model], "not a sound file that can be decoded"),
        ([str(short), *model], "holds no samples"),
        ([str(recording), *model, "-o", str(recording)], "would be written over what is read"),
        ([str(recording), *model, "-o", "back.png"], "back.png: sounds are written as .wav; choose another -o"),
    ):
        before = sorted(tmp_path.iterdir())
        assert main(["reconstruct", *arguments]) == 2
        assert sentence in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before


def test_a_picture_is_no_sound_and_a_generator_no_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny_tokenizers(tmp_path)["latents"]
    tiny_pipeline("latentlm", folder).save_pretrained(tmp_path / "model")
    Image.new("L", (8, 8)).save(tmp_path / "cat.png")
    for model, sentence in (
        (folder, "back.wav: pictures are written as .png; choose another -o"),
        (tmp_path / "model", "holds a 'latentlm', which is no tokenizer"),
    ):
        arguments = [str(tmp_path / "cat.png"), "--model", str(model), "-o", str(tmp_path / "new" / "back.wav")]
        assert main(["reconstruct", *arguments]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
