"""Judges that the user brings: tiny random networks and a stand-in program go through the same doors as the real."""

import json
import stat
from pathlib import Path

import pytest
import torch

from latentlm.evaluation.speech.foreign_scorers import Utmos, Visqol
from latentlm.evaluation.speech.interfaces import PairScorer, Recogniser, SpeakerEncoder, SpeechScorer, Unscorable
from latentlm.evaluation.speech.transformers_judges import TransformersRecogniser, WavlmSpeakerEncoder

pytest.importorskip("soxr")

RATE = 8000


def clip(num_samples: int = RATE, *, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def program(folder: Path, body: str) -> Path:
    path = folder / "visqol"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_visqol_gets_two_wav_files_and_its_score_is_read(tmp_path: Path):
    body = (
        f'echo "$@" > {tmp_path}/arguments; '
        'for word in "$@"; do case "$word" in *.wav) head -c 4 "$word" > /dev/null || exit 9;; esac; done; '
        'echo "MOS-LQO:\t\t4.25"'
    )
    scorer = Visqol(program(tmp_path, body))
    assert isinstance(scorer, PairScorer)
    assert scorer.score(clip(), clip(seed=1), RATE) == {"ViSQOL ↑": 4.25}
    arguments = (tmp_path / "arguments").read_text()
    assert "--use_speech_mode" in arguments
    assert "--reference_file" in arguments
    assert "--degraded_file" in arguments


def test_visqol_without_a_score_is_counted_and_without_a_program_refused(tmp_path: Path):
    with pytest.raises(Unscorable, match="no score"):
        Visqol(program(tmp_path, "echo nothing")).score(clip(), clip(), RATE)
    with pytest.raises(Unscorable, match="silence"):
        Visqol(program(tmp_path, "echo MOS-LQO: 5")).score(torch.zeros(RATE), clip(), RATE)
    with pytest.raises(ValueError, match="build"):
        Visqol(tmp_path / "none")


def test_a_program_that_is_none_is_said_so(tmp_path: Path):
    path = tmp_path / "visqol"
    path.write_text("no program")
    with pytest.raises(ValueError, match="did not run"):
        Visqol(path).score(clip(), clip(), RATE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's own
def test_utmos_is_read_from_a_torchscript_file(tmp_path: Path):
    class Loudness(torch.nn.Module):
        def forward(self, waveform: torch.Tensor) -> torch.Tensor:
            return 1 + waveform.abs().amax(dim=1)

    torch.jit.trace(Loudness(), torch.zeros(1, 100)).save(str(tmp_path / "utmos.pt"))
    scorer = Utmos(tmp_path / "utmos.pt")
    assert isinstance(scorer, SpeechScorer)
    value = scorer.score(clip(), RATE)["UTMOS ↑"]
    # Resampling to 16 kHz moves the peak.
    assert value == pytest.approx(1 + clip().abs().max().item(), abs=0.1)
    with pytest.raises(Unscorable, match=r"0\.5 s"):
        scorer.score(clip(1000), RATE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's own
def test_utmos_without_its_file_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(ValueError, match="trace"):
        Utmos(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="no TorchScript"):
        Utmos(tmp_path / "text.pt")


# -- transformers ------------------------------------------------------------------------------------------------------

SMALL_WAV2VEC = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [8, 8],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("ctc") / "tiny-hubert"
    folder.mkdir()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{c: 5 + i for i, c in enumerate("ABCDE")}}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000)
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    config = transformers.HubertConfig(vocab_size=10, pad_token_id=0, **SMALL_WAV2VEC)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.HubertForCTC(config).save_pretrained(folder)
    return folder


def test_a_ctc_network_of_transformers_writes_letters(ctc_folder: Path):
    recogniser = TransformersRecogniser(ctc_folder)
    assert isinstance(recogniser, Recogniser)
    assert recogniser.label == "tiny-hubert WER"
    clips = [clip(), clip(2 * RATE, seed=1)]
    texts = recogniser.transcribe(clips, RATE)
    assert texts == [recogniser.transcribe([one], RATE)[0] for one in clips]
    assert set("".join(texts)) <= set("ABCDE ")


def test_folders_without_weights_or_of_something_else_are_refused(ctc_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json"):
        TransformersRecogniser(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["HubertForCTC"]}))
    with pytest.raises(ValueError, match="pickled"):
        TransformersRecogniser(tmp_path)
    with pytest.raises(ValueError, match="WavLMForXVector"):
        WavlmSpeakerEncoder(ctc_folder)


def test_a_folder_that_misses_tensors_is_refused_instead_of_left_random(ctc_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    for file in ctc_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="miss"):
        TransformersRecogniser(tmp_path)


def test_wavlm_gives_unit_vectors(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tiny-wavlm"
    config = transformers.WavLMConfig(
        **SMALL_WAV2VEC, tdnn_dim=[16, 16], tdnn_kernel=[3, 1], tdnn_dilation=[1, 1], xvector_output_dim=12
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.WavLMForXVector(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=True).save_pretrained(folder)
    encoder = WavlmSpeakerEncoder(folder)
    assert isinstance(encoder, SpeakerEncoder)
    assert "tiny-wavlm" in encoder.label
    vector = encoder.embed(clip(), RATE)
    assert vector.norm() == pytest.approx(1.0, abs=1e-5)  # float32
    # Normalised as the feature extractor would: the level does not matter.
    torch.testing.assert_close(encoder.embed(0.1 * clip(), RATE), vector, atol=1e-3, rtol=0)
    with pytest.raises(Unscorable):
        encoder.embed(torch.zeros(RATE), RATE)


def test_an_encoder_decoder_of_transformers_writes_text_and_hears_one_window(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tiny-whisper"
    folder.mkdir()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    vocabulary = {token: index for index, token in enumerate([*"abcdefghij", "Ġ", *special])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "WhisperTokenizer", "additional_special_tokens": special[1:]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    transformers.WhisperProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=2),
        tokenizer=transformers.WhisperTokenizer.from_pretrained(folder, local_files_only=True),
    ).save_pretrained(folder)
    end, start = vocabulary["<|endoftext|>"], vocabulary["<|startoftranscript|>"]
    config = transformers.WhisperConfig(
        vocab_size=len(vocabulary), num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_source_positions=100, max_target_positions=20, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 6
    model.save_pretrained(folder)
    recogniser = TransformersRecogniser(folder, label="Whisper WER")
    assert recogniser.label == "Whisper WER"
    clips = [clip(), clip(2 * RATE, seed=1)]
    texts = recogniser.transcribe(clips, RATE)
    assert texts == recogniser.transcribe(clips, RATE), "greedy"
    assert set("".join(texts)) <= set("abcdefghij ")
    with pytest.raises(ValueError, match="longer than the 2 s"):
        recogniser.transcribe([clip(2 * RATE + 1)], RATE)
