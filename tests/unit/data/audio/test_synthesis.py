"""The corpus of synthetic voices: its plan, its files, its resumption, and the programs behind it.

Two tests run espeak-ng and flite where they are installed; all others put stand-ins in their place.
"""

import argparse
import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from latentlm.cli import synthesize as verb
from latentlm.data.audio import AudioDataConfig, open_audio, synthesis, synthetic_voices
from latentlm.data.audio.synthesis import SynthesisConfig, plan_corpus, read_texts, synthesize
from latentlm.data.audio.synthetic_voices import SyntheticVoice, list_voices, require_engine, speak
from latentlm.data.records import BadRecord, DataError

VOICES = [SyntheticVoice("espeak-ng", accent, f"v{n}x") for accent in ("en-gb", "en-us") for n in range(60)]
VOICES += [SyntheticVoice("flite", name) for name in ("kal16", "awb", "rms", "slt")]
TEXTS = [(f"t{n}", f"sentence number {n}") for n in range(300)]
CONFIG = SynthesisConfig(shard_rows=8, limit=40, sample_rate=16000)


@pytest.fixture
def spoken(monkeypatch) -> list[str]:
    """Stand-ins for the programs; lists what was spoken. A sentence with "mute" in it fails."""
    said: list[str] = []

    def stand_in(text: str, voice: SyntheticVoice, *, words_per_minute: int, name: str) -> bytes:
        if "mute" in text:
            raise BadRecord(name, "wrote no sound")
        said.append(text)
        buffer = io.BytesIO()
        soundfile.write(buffer, np.sin(np.arange(2205 + len(text)) / 9), 22050, format="WAV")
        return buffer.getvalue()

    monkeypatch.setattr(synthesis, "speak", stand_in)
    monkeypatch.setattr(synthesis, "require_engine", lambda engine: f"{engine} 1")
    monkeypatch.setattr(
        synthesis, "list_voices", lambda engine, **_: [voice for voice in VOICES if voice.engine == engine]
    )
    return said


def test_no_voice_and_no_text_is_in_two_splits():
    plan = plan_corpus(TEXTS, VOICES, replace(CONFIG, limit=None, utterances_per_text=3))
    for kind in (lambda u: u.voice.variant or u.voice.name, lambda u: u.text):
        of_split = [{kind(utterance) for utterance in plan[split]} for split in plan]
        assert sum(map(len, of_split)) == len(set.union(*of_split))
    assert sum(map(len, plan.values())) == 900
    # A tenth of 300 texts each, by their hashes.
    assert 15 <= len({u.text for u in plan["test"]}) <= 50
    assert len({u.id for u in plan["train"]}) == len(plan["train"])


def test_the_split_of_a_voice_is_the_same_in_every_corpus():
    """Committed: these must not move when the rule is touched, or judges would have heard their test voices."""
    kinds = {voice: SyntheticVoice("flite", voice).split_kind for voice in ("kal16", "awb", "rms", "slt")}
    assert kinds == {"kal16": "train", "awb": "test", "rms": "train", "slt": "train"}
    for one, other in (("f2", "f2"), ("steph", "steph3"), ("klatt", "klatt6")):
        voices = (SyntheticVoice("espeak-ng", "en-gb", one), SyntheticVoice("espeak-ng", "en-us", other, 35))
        assert len({voice.split_kind for voice in voices}) == 1
    assert len({SyntheticVoice("espeak-ng", "en", f"{s}{n}").split_kind for s in "mf" for n in range(1, 9)}) > 1


def test_the_plan_is_a_function_of_texts_voices_and_seed():
    assert plan_corpus(TEXTS, VOICES, CONFIG) == plan_corpus(TEXTS, VOICES, CONFIG)
    assert plan_corpus(TEXTS, VOICES, CONFIG) != plan_corpus(TEXTS, VOICES, replace(CONFIG, seed=1))
    rates = [u.words_per_minute for u in plan_corpus(TEXTS, VOICES, CONFIG)["train"]]
    assert min(rates) >= 140
    assert max(rates) <= 200
    assert len(set(rates)) > 10


def test_flite_has_about_its_share():
    plan = plan_corpus(TEXTS, VOICES, replace(CONFIG, limit=None, flite_ratio=0.3))["train"]
    share = sum(u.voice.engine == "flite" for u in plan) / len(plan)
    assert share == pytest.approx(0.3, abs=0.1)  # three standard deviations of 240 draws


def test_a_split_without_voices_is_refused():
    with pytest.raises(DataError, match="none of the 1 voices belongs to the split"):
        plan_corpus(TEXTS, VOICES[:1], CONFIG)


def test_the_corpus_is_read_back_as_it_was_planned(tmp_path, spoken):
    description = synthesize(TEXTS, tmp_path / "corpus", CONFIG)
    assert len(spoken) == 40
    plan = plan_corpus(TEXTS, VOICES, CONFIG)
    assert sum(bool(utterances) for utterances in plan.values()) > 1
    for split in (split for split, utterances in plan.items() if utterances):
        config = AudioDataConfig(path=str(tmp_path / "corpus"), split=split, sample_rate=16000, validation_ratio=0.0)
        dataset = open_audio(config, part="train")
        assert dataset.texts == [utterance.text for utterance in plan[split]]
        assert dataset.speakers == [utterance.voice.speaker for utterance in plan[split]]
        assert set(dataset.source.column("split_kind")) == {split}
        assert set(dataset.source.column("native_sample_rate")) == {"22050"}
        for index in range(len(dataset)):
            assert dataset[index]["num_samples"] == round(float(dataset.seconds[index]) * 16000)
    assert description["splits"]["train"]["utterances"] == len(plan["train"])
    stored = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    assert stored == description
    assert stored["what"].startswith("synthesised")


def test_an_interrupted_run_makes_only_what_is_missing(tmp_path, spoken):
    synthesize(TEXTS, tmp_path / "whole", CONFIG)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "train-00001.parquet").unlink()
    spoken.clear()
    done: list[int] = []
    synthesize(TEXTS, tmp_path / "part", CONFIG, jobs=3, on_progress=done.append)
    assert len(spoken) == 8
    assert sum(done) == 40
    for name in files:
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_corpora_are_not_mixed_in_a_folder(tmp_path, spoken):
    synthesize(TEXTS, tmp_path / "corpus", CONFIG)
    with pytest.raises(DataError, match="holds another corpus"):
        synthesize(TEXTS, tmp_path / "corpus", replace(CONFIG, seed=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty"):
        synthesize(TEXTS, tmp_path / "mine", CONFIG)


def test_sentences_that_fail_are_left_out_and_listed_up_to_a_limit(tmp_path, spoken):
    texts = [(f"t{n}", f"sentence {n} {'mute' if n in (3, 90) else ''}") for n in range(100)]
    config = replace(CONFIG, limit=None)
    description = synthesize(texts, tmp_path / "a", config)
    assert sorted(failed.split(":")[0] for failed in description["failed"]) == ["t3-0", "t90-0"]
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "a").glob("*.parquet"))
    assert rows == 98
    # A second run, which makes nothing, still knows.
    assert synthesize(texts, tmp_path / "a", config)["failed"] == description["failed"]
    with pytest.raises(DataError, match=r"utterances failed; the last: .*wrote no sound"):
        synthesize([(str(n), f"mute {n}") for n in range(100)], tmp_path / "b", config)


def test_texts_are_lines_or_tables(tmp_path):
    (tmp_path / "lines.txt").write_text("\ufeffOne.\r\n\nThree.\n", encoding="utf-8")
    assert read_texts(tmp_path / "lines.txt") == [("1", "One."), ("3", "Three.")]
    (tmp_path / "a.tsv").write_text("id\ttext\ttext_normalized\na\t1\tone\nb\t2\ttwo\n\n")
    assert read_texts(tmp_path / "a.tsv") == [("a", "one"), ("b", "two")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no text"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (b"id\ttext\nonly one\n", ":2: 1 columns"),
    ],
)
def test_files_that_hold_no_texts_are_refused(tmp_path, data, reason):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read_texts(tmp_path / "a.txt")


def test_a_missing_program_is_named_with_its_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DataError, match="flite is not installed; on Debian and Ubuntu: apt-get install flite"):
        require_engine("flite")


def test_texts_never_become_commands_or_options(monkeypatch):
    seen = []

    def recording(command, **options):
        seen.append((command, options))
        return subprocess.CompletedProcess(command, 1, b"", b"no")

    monkeypatch.setattr(synthetic_voices.subprocess, "run", recording)
    text = "--help; $(touch owned) [[h@loU]]\n-f /etc/passwd"
    for voice in (SyntheticVoice("flite", "slt"), SyntheticVoice("espeak-ng", "en-us", "f2")):
        with pytest.raises(BadRecord, match="exit code 1: no"):
            speak(text, voice, words_per_minute=150, name="t")
    for command, options in seen:
        assert isinstance(command, list)
        assert "owned" not in " ".join(command)
        assert options["input"] == b"--help; $(touch owned) h@loU -f /etc/passwd\n"
        assert options["timeout"] > 0
        assert not options.get("shell")


def test_a_program_that_hangs_is_a_bad_record(monkeypatch, tmp_path):
    program = tmp_path / "flite"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(synthetic_voices, "_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(BadRecord, match=r"took more than 0\.2 s"):
        speak("hello", SyntheticVoice("flite", "slt"), words_per_minute=150, name="t")


@pytest.mark.parametrize("text", ["", "  [[ ]] ", "x" * 1001])
def test_sentences_of_no_or_absurd_length_are_refused(text):
    with pytest.raises(BadRecord, match="a sentence of"):
        speak(text, SyntheticVoice("flite", "slt"), words_per_minute=150, name="t")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engines", ["say"]),
        ("engines", []),
        ("pitches", [100]),
        ("flite_ratio", 2.0),
        ("min_words_per_minute", 20),
        ("shard_rows", 0),
        ("limit", 0),
        ("codec", "mp3"),
    ],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        replace(CONFIG, **{field: value})


@pytest.mark.parametrize("engine", synthetic_voices.ENGINES)
def test_installed_programs_speak_in_voices_that_differ(engine):
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    assert require_engine(engine)
    voices = list_voices(engine)
    assert len(voices) == len({voice.speaker for voice in voices})
    assert {voice.split_kind for voice in voices} >= {"train", "test"}
    first, last = (speak("One two three.", voice, words_per_minute=170, name="t") for voice in (voices[0], voices[-1]))
    assert first != last
    slow = speak("One two three.", voices[0], words_per_minute=110, name="t")
    assert len(slow) > 1.2 * len(first)


def run_verb(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(arguments), [])


def test_the_verb_renders_and_counts(tmp_path, spoken, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text for _, text in TEXTS))
    out = tmp_path / "corpus"
    assert run_verb(str(texts), "--out", str(out), "--limit", "20", "--shard-rows", "4", "--codec", "wav") == 0
    assert f"{out} holds synthesised speech: train " in capsys.readouterr().out
    assert len(spoken) == 20
    assert Path(out / "train-00000.parquet").is_file()


def test_the_verb_refuses_lists_that_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    for flags in (("--pitches", "high"), ("--words-per-minute", "150")):
        with pytest.raises(ValueError, match=flags[0]):
            run_verb(str(tmp_path / "a.txt"), "--out", str(tmp_path / "b"), *flags)
