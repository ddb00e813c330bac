"""`latentlm say` and `latentlm voice`, as they are called."""

import dataclasses
import io
from pathlib import Path

import pytest
import soundfile
from tiny_models import randomise, tiny_mixed_config
from tiny_speech import RECORDED_RATE, sound, tiny_speech_tokenizer

from latentlm.cli.main import main
from latentlm.data.audio import write_wav
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.models.latentlm import LatentLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that speaks, a recording, and a model that does not."""
    folder = tmp_path_factory.mktemp("speaker")
    config = tiny_mixed_config()
    config = dataclasses.replace(config, modalities={"speech": config.modalities["speech"]})
    tokenizer = tiny_speech_tokenizer(sample_rate=RECORDED_RATE)
    LatentLMPipeline(randomise(LatentLM(config)), {"speech": tokenizer}).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    write_wav(folder / "anna.wav", 0.5 * sound(300), RECORDED_RATE)
    return folder


def say(folder: Path, *flags: str, text: str = "three") -> int:
    bounds = ["--no-guard", "--max-seconds", "0.1", "--steps", "2"]
    return main(["say", text, "--model", str(folder / "model"), *bounds, *flags])


def test_a_text_is_said_into_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--voice", str(folder / "anna.wav"), "--voice-text", "one two", "-o", str(tmp_path / "new" / "said.wav")]
    assert say(folder, *flags) == 0
    waveform, rate = soundfile.read(tmp_path / "new" / "said.wav")
    assert rate == RECORDED_RATE
    assert 0 < len(waveform) <= 240
    assert "s of sound" in capsys.readouterr().err


def test_a_voice_file_says_what_its_recording_says(folder: Path, tmp_path: Path) -> None:
    made = ["voice", str(folder / "anna.wav"), "--model", str(folder / "model"), "--text", "one two"]
    assert main([*made, "-o", str(tmp_path / "anna.safetensors")]) == 0
    heard = []
    for voice in (
        ["--voice", str(folder / "anna.wav"), "--voice-text", "one two"],
        ["--voice", str(tmp_path / "anna.safetensors")],
    ):
        assert say(folder, *voice, "-o", str(tmp_path / "said.wav")) == 0
        heard.append((tmp_path / "said.wav").read_bytes())
    assert heard[0] == heard[1]


def test_a_stream_holds_the_same_sound(
    folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert say(folder, "--seed", "3", "-o", str(tmp_path / "said.wav")) == 0
    expected, _ = soundfile.read(tmp_path / "said.wav", dtype="int16")
    capfdbinary.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("three\n"))
    assert say(folder, "--seed", "3", "--stream", "pcm", text="-") == 0
    streamed = capfdbinary.readouterr().out
    samples = [int.from_bytes(streamed[i : i + 2], "little", signed=True) for i in range(0, len(streamed), 2)]
    # Chunk by chunk convolutions sum in another order: a last bit of 16 may differ.
    assert max(abs(a - b) for a, b in zip(samples, expected.tolist(), strict=True)) <= 1
    assert say(folder, "--seed", "3", "--stream", "wav") == 0
    assert capfdbinary.readouterr().out[:4] == b"RIFF"


def test_wrong_use_is_a_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err.splitlines()[-1]

    model = ["--model", str(folder / "model")]
    monkeypatch.delenv("LATENTLM_MODEL", raising=False)
    (tmp_path / "text.wav").write_text("not a sound")
    assert "--model is missing" in refused("say", "three")
    assert "does not speak" in refused("say", "three", "--model", str(folder / "tokenizer"))
    assert "nothing to say" in refused("say", " ", *model)
    assert "does not exist" in refused("say", "three", *model, "--voice", str(tmp_path / "nobody.wav"))
    assert "text.wav" in refused("say", "three", *model, "--voice", str(tmp_path / "text.wav"))
    assert "leave -o out" in refused("say", "three", *model, "--stream", "wav", "-o", "x.wav")
    assert "take back" in refused("say", "three", *model, "--stream", "wav", "--retries", "1")
    assert "voice file already" in refused("voice", str(tmp_path / "anna.safetensors"), *model)
