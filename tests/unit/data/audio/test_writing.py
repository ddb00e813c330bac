"""WAV files and streams, read back by another library."""

import io

import numpy as np
import pytest
import soundfile
import torch

from latentlm.data.audio import WavEncoder, wav_header, write_wav


def test_a_written_file_holds_the_waveform_to_16_bits(tmp_path):
    waveform = torch.linspace(-1.2, 1.2, 1000)
    write_wav(tmp_path / "a.wav", waveform, 24000)
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 24000
    # Half a step of 16 bits, and the reader's 32768 against the writer's 32767.
    np.testing.assert_allclose(samples, waveform.clamp(-1, 1), atol=0.5 / 32767 + 1 / 32767)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.wav"]


def test_nan_is_refused_and_leaves_the_old_file(tmp_path):
    write_wav(tmp_path / "a.wav", torch.zeros(10), 8000)
    with pytest.raises(ValueError, match="NaN"):
        write_wav(tmp_path / "a.wav", torch.tensor([0.0, float("nan")]), 8000)
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 10


def test_an_empty_waveform_is_a_valid_file(tmp_path):
    write_wav(tmp_path / "a.wav", torch.zeros(0), 8000)
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 0


def test_a_stream_of_chunks_is_the_whole(tmp_path):
    waveform = torch.sin(torch.arange(5000) / 7)
    encoder = WavEncoder(24000)
    stream = b"".join(
        encoder.encode(chunk) for chunk in (waveform[:0], waveform[:1], waveform[1:3000], waveform[3000:])
    )
    write_wav(tmp_path / "a.wav", waveform, 24000)
    whole = (tmp_path / "a.wav").read_bytes()
    assert stream[44:] == whole[44:]
    assert len(soundfile.read(io.BytesIO(stream))[0]) == 5000
    assert WavEncoder(24000, "pcm").encode(waveform) == whole[44:]


def test_more_samples_than_a_header_can_count_are_refused():
    with pytest.raises(ValueError, match="write several"):
        wav_header(48000, 2**31)
