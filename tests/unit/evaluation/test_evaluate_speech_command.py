"""`latentlm evaluate` on a tiny tokenizer of sound and a tiny model that speaks: tables, and JSON with every number."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from spoken_tones import TONE_JUDGES, WORDS, write_spoken_tones
from tiny_models import randomise, tiny_mixed_config
from tiny_speech import tiny_speech_tokenizer
from toy_speech import RATE

from latentlm.cli import evaluate
from latentlm.config import to_mapping
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.latentlm import LatentLM

for library in ("pesq", "pystoi", "jiwer", "soxr"):
    pytest.importorskip(library)

JUDGES = ["--option", f"judges={json.dumps(TONE_JUDGES)}"]
SHORT = ["--option", "shape={num_words: 3, num_prompt_words: 2}", "--option", "protocols=[reference]"]
FEW = [*SHORT, "--option", "min_voice_trials=1", "--option", "voice_seconds=0.5", "--option", "num_timed=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer` and `speaker`, folders like finished runs'."""
    folder = tmp_path_factory.mktemp("runs")
    recordings = to_mapping(write_spoken_tones(folder / "tones"))
    words, sizes = to_mapping(WORDS), {"channels": [4, 6, 8], "depths": [1, 2, 1], "strides": [20, 20]}
    tokenizer = tiny_speech_tokenizer(sample_rate=RATE, strides=(20, 20))
    tokenizer.save_pretrained(folder / "tokenizer" / "model")
    trainer = {"num_steps": 1, "batch_size": 2}
    recipe = {"kind": "speech_tokenizer", "data": {**recordings, "crop_seconds": 0.5}, "words": words}
    recipe |= {"tokenizer": {"sample_rate": RATE, **sizes}, "optim": {"lr": 0.001}, "trainer": trainer}
    (folder / "tokenizer" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = tiny_mixed_config()
    config = replace(config, modalities={"speech": config.modalities["speech"]})
    pipeline = LatentLMPipeline(randomise(LatentLM(config)), {"speech": tokenizer}, {"speech": LatentSamplingConfig()})
    pipeline.save_pretrained(folder / "speaker" / "model")
    model = {"vocabulary": {"switch_tokens": True}, "transformer": to_mapping(config.transformer)}
    model["modalities"] = {"speech": {"latent_dim": 3}}
    source = {"speech": {"recordings": recordings, "words": words}}
    recipe = {"kind": "multimodal", "sources": {"spoken": source}, "model": model, "speech_tokenizer": "gone"}
    recipe |= {"optim": {"lr": 0.001}, "trainer": trainer}
    (folder / "speaker" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([*map(str, words)]), [])


def test_a_tokenizer_of_sound_is_scored_by_speakers_heard_and_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    flags = ["--num-samples", 2, "--option", "dnsmos=false", *JUDGES]
    assert call(folder / "tokenizer" / "model", "--judges", tmp_path / "cache", "--out", out, *flags) == 0
    content = json.loads((out / "scores.json").read_text())
    assert (content["kind"], content["options"]["num_utterances"]) == ("speech_tokenizer", 2)
    assert set(content["result"]["as_models_see"]) == {"seen", "unseen"}
    printed = capsys.readouterr().out
    for heading in ("## Reconstructions", "## Latents", "## The judge of words"):
        assert printed.count(f"{heading}\n") == 1
    distance = content["result"]["rows"]["sample"]["unseen"]["mel_distance"]["mean"]
    assert f"{distance:.3f}" in printed
    assert "PESQ-NB" in printed
    assert "PESQ-WB" not in printed, "nothing above 4 kHz"
    assert "20 frames a second, 60 floats a second" in printed
    assert printed.split("\nscores.json and")[0].strip() in (out / "scores.md").read_text()


def test_a_model_that_speaks_is_scored_in_voices_that_it_never_heard(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    flags = ["--num-samples", 4, "--cfg-scale", 1, 2, "--steps", 2, "--seed", 5, *FEW, *JUDGES]
    flags += ["--option", "num_validation_trials=2", "--option", "speaking={max_seconds: 0.1}"]
    assert call(folder / "speaker" / "model", "--judges", tmp_path / "cache", "--out", out, *flags) == 0
    content = json.loads((out / "scores.json").read_text())
    result = content["result"]
    assert (content["kind"], result["speakers"], result["heard"]) == ("latentlm", ["new"], ["high", "low"])
    assert [trial["changes"]["cfg_scale"] for trial in result["trials"]] == [1.0, 2.0]
    rows = result["reference"]["rows"]
    assert rows["free"]["settings"]["speaking"]["max_seconds"] == 0.1
    assert rows["free"]["settings"]["speaking"]["cfg_scale"] == result["chosen"]["cfg_scale"]
    assert (result["reference"]["num_trials"], result["reference"]["seed"]) == (4, 5)
    printed = capsys.readouterr().out
    assert "## Protocol reference" in printed
    assert "4 trials of seed 5; speakers: 1, recorded." in printed
    assert rows["free"]["similarity"]["estimate"] is None, "hardly anything is said in a tenth of a second"
    assert "too little was said" in printed
    assert "(judge unfit)" in printed, "it has learned for two steps"
    assert "| real recordings | " in printed
    assert (out / "reference.png").is_file()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("tokenizer", ["--cfg-scale", "2"], "there is no --cfg-scale"),
        ("tokenizer", ["--speakers", "new"], "there is no --speakers"),
        ("speaker", ["--part", "validation"], "there is no --part validation"),
        ("speaker", ["--measures", "text"], "there is no --measures"),
        ("speaker", ["--clip-weights", "x"], "there is no --clip-weights"),
        ("speaker", ["--option", "judge=1"], "judges"),
    ],
)
def test_flags_of_other_models_are_refused(
    folder: Path, tmp_path: Path, name: str, flags: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(folder / name / "model", "--out", tmp_path / "scores", *flags)
    assert not (tmp_path / "scores").exists()


def test_without_a_recipe_the_recordings_are_not_known(folder: Path, tmp_path: Path) -> None:
    tiny_speech_tokenizer(sample_rate=RATE).save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match="give --recipe FILE"):
        call(tmp_path / "alone", "--out", tmp_path / "scores")
