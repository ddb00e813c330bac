"""Decoding: every format and layout comes out right, and no file does harm."""

import io
import os
import struct
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.data.audio import decode_audio, read_header, stream_audio
from latentlm.data.records import BadRecord

RATE = 24000


def decode(data, name="clip", **options):
    return decode_audio(data, name, **{"sample_rate": RATE, "max_seconds": 20.0, **options})


def frequency(waveform: np.ndarray, sample_rate: int = RATE) -> float:
    """Of the strongest partial, Hz."""
    window = waveform * np.hanning(len(waveform))
    return float(np.argmax(np.abs(np.fft.rfft(window))) * sample_rate / len(waveform))


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 44100),
        ("WAV", "PCM_U8", 8000),
        ("WAV", "FLOAT", 24000),
        ("FLAC", "PCM_24", 96000),
        ("OGG", "VORBIS", 16000),
        ("OGG", "OPUS", 48000),
        ("MP3", "MPEG_LAYER_III", 22050),
        ("AIFF", "PCM_16", 11025),
    ],
)
def test_every_format_gives_the_tone_that_was_written(tone, encoded, kind, subtype, rate):
    waveform = decode(encoded(tone(440, 1.0, rate), rate, kind, subtype))
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - RATE) <= 1  # the resampler rounds to a sample
    assert abs(frequency(waveform) - 440) <= 1.0  # one bin of a second
    middle = waveform[RATE // 4 : 3 * RATE // 4]
    # 0.354 is the root mean square of a sine of peak 0.5; lossy codecs keep a tone within a few percent.
    assert abs(float(np.sqrt(np.mean(middle**2))) - 0.354) < 0.02


def test_samples_at_their_own_rate_are_those_of_the_file(tone, encoded):
    written = np.round(tone(300, 0.2, RATE) * 32768) / 32768
    np.testing.assert_array_equal(decode(encoded(written, RATE)), written.astype(np.float32))


def test_eight_channels_at_192_khz_are_averaged(tone, encoded):
    left = np.stack([tone(440, 0.5, 192000) * (channel == 3) for channel in range(8)], axis=1)
    waveform = decode(encoded(left, 192000, "WAV", "PCM_16"))
    assert abs(len(waveform) - RATE // 2) <= 1
    # One of eight channels: 0.5 / 8 is left; the window's edges and 16 bits cost less than a percent.
    assert abs(np.abs(waveform[2000:-2000]).max() - 0.0625) < 1e-3


def test_a_block_at_a_time_is_the_same_as_all_at_once(tone, encoded, monkeypatch):
    data = encoded(tone(440, 1.0, 44100), 44100)
    whole = decode(data)
    monkeypatch.setattr("latentlm.data.audio.decoding._BLOCK_VALUES", 777)
    # The resampler keeps its state in float32; its blocks are added up in another order.
    np.testing.assert_allclose(decode(data), whole, atol=1e-6)


def test_a_stream_of_blocks_is_the_whole_and_every_block_is_small(tone, encoded, monkeypatch):
    data = encoded(tone(440, 5.0, 44100), 44100)
    monkeypatch.setattr("latentlm.data.audio.decoding._BLOCK_VALUES", 4410)
    blocks = list(stream_audio(data, "clip", sample_rate=RATE, max_seconds=20.0))
    # A tenth of a second, and what the resampler held back of the one before.
    assert max(map(len, blocks)) < 2 * 0.1 * RATE
    np.testing.assert_array_equal(np.concatenate(blocks), decode(data))


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_a_missing_library_is_named_by_its_extra(tone, encoded, monkeypatch, library):
    data = encoded(tone(440, 0.1))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'latentlm\[audio\]'"):
        decode(data)


@settings(deadline=None, max_examples=25)
@given(start=st.integers(0, 7999), length=st.integers(1, 9000))
def test_a_stretch_is_that_part_of_the_whole(start, length):
    generator = np.random.Generator(np.random.PCG64(0))
    samples = (generator.integers(-20000, 20000, 8000) / 32768).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="FLAC")
    found = decode(
        buffer.getvalue(), sample_rate=8000, offset_seconds=start / 8000, duration_seconds=float(length / 8000)
    )
    np.testing.assert_array_equal(found, samples[start : start + length])


def test_ten_milliseconds_and_silence_are_results(encoded):
    assert len(decode(encoded(np.full(80, 0.1, dtype=np.float32)))) == 240
    assert not decode(encoded(np.zeros(800, dtype=np.float32))).any()


def test_what_passes_full_scale_slightly_is_clipped(tone, encoded):
    waveform = decode(encoded(tone(440, 0.1, RATE, peak=1.5), RATE, "WAV", "FLOAT"))
    assert waveform.max() == 1.0
    assert waveform.min() == -1.0


def wav_of_floats(samples) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array(samples, dtype=np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


HOSTILE = {
    "empty": (b"", "empty file"),
    "text": (b"this is no sound at all, whatever it is called\n" * 50, "not a sound file that can be decoded"),
    "header alone": (b"RIFF\x24\x00\x00\x00WAVE", "not a sound file that can be decoded"),
    "no samples": (wav_of_floats([]), "holds no samples"),
    "NaN": (wav_of_floats([0.0, float("nan"), 0.0]), "NaN or infinite"),
    "infinite": (wav_of_floats([0.0, float("-inf"), 0.0]), "NaN or infinite"),
    "not scaled": (wav_of_floats([0.0, 12000.0, -3.0]), "samples up to 12000.*not scaled"),
    "an ELF program": (b"\x7fELF" + bytes(500), "not a sound file that can be decoded"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused_with_the_name_and_the_reason(case):
    data, reason = HOSTILE[case]
    with pytest.raises(BadRecord, match=rf"^clip\.wav: .*{reason}"):
        decode(data, "clip.wav")


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_too(case, tmp_path, write):
    path = write(tmp_path / "a.wav", HOSTILE[case][0])
    with pytest.raises(BadRecord, match=HOSTILE[case][1]):
        decode(path)


def test_one_sample_at_a_high_rate_is_refused_as_nothing(encoded):
    with pytest.raises(BadRecord, match="less than one sample at 24000 Hz"):
        decode(encoded(np.full(1, 0.1, dtype=np.float32), 192000))


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_a_truncated_flac_or_mp3_is_refused(tone, encoded, ratio):
    for kind in ("FLAC", "MP3"):
        generator = np.random.Generator(np.random.PCG64(0))
        noisy = tone(440, 2.0, RATE) + generator.normal(0, 0.05, 2 * RATE).astype(np.float32)
        data = encoded(noisy, RATE, kind)
        with pytest.raises(BadRecord, match=r"cut short|lost sync|not a sound file"):
            decode(data[: int(len(data) * ratio)])


def test_a_stream_that_was_cut_gives_what_is_there(tone, encoded):
    data = encoded(tone(440, 1.0, RATE), RATE, "WAV", "PCM_16")
    assert len(decode(data[: 44 + 2 * 9000])) == 9000


def test_a_header_of_unknown_length_is_read_to_the_end(tone, encoded):
    data = bytearray(encoded(tone(440, 0.5, RATE), RATE, "WAV", "PCM_16"))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert len(decode(bytes(data))) == RATE // 2


def test_too_long_is_said_before_anything_is_decoded(encoded, monkeypatch):
    data = encoded(np.zeros(8000 * 30, dtype=np.float32))
    monkeypatch.setattr("soundfile.SoundFile.read", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(BadRecord, match=r"30\.0 s of sound, above the limit of 20 s"):
        decode(data)


def test_a_header_that_claims_hours_is_refused(encoded):
    data = bytearray(encoded(np.zeros(800, dtype=np.float32)))
    data[21] |= 0x0F  # of FLAC's STREAMINFO: the upper bits of the 36-bit number of samples
    data[22:26] = b"\xff\xff\xff\xff"
    with pytest.raises(BadRecord, match=r"above the limit|not a sound file"):
        decode(bytes(data))


def test_absurd_rates_and_channels_are_refused(encoded):
    slow = bytearray(encoded(np.zeros(80, dtype=np.float32), 8000, "WAV", "PCM_16"))
    slow[24:28] = struct.pack("<I", 1)
    with pytest.raises(BadRecord, match="a rate of 1 Hz"):
        decode(bytes(slow))
    with pytest.raises(BadRecord, match="100 channels"):
        decode(encoded(np.zeros((80, 100), dtype=np.float32), 8000, "WAV", "PCM_16"))


def test_kinds_outside_the_list_are_refused(tone, encoded):
    with pytest.raises(BadRecord, match="of the kind AU"):
        decode(encoded(tone(440, 0.1), 8000, "AU", "PCM_16"))


def test_what_is_no_file_is_refused_without_waiting(tmp_path, write):
    os.mkfifo(tmp_path / "pipe.wav")
    for name in ("pipe.wav", "missing.wav", "."):
        with pytest.raises(BadRecord, match="not a regular file"):
            decode(tmp_path / name)
    with pytest.raises(BadRecord, match="without a header"):
        decode(write(tmp_path / "samples.raw", bytes(1000)))


def test_a_stretch_outside_the_file_is_refused(tone, encoded):
    with pytest.raises(BadRecord, match=r"nothing at 2\.000 s"):
        decode(encoded(tone(440, 1.0)), offset_seconds=2.0)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_damaged_file_is_a_waveform_or_a_bad_record_at_every_byte(tone, encoded, kind):
    good = encoded(tone(440, 0.3, RATE), RATE, kind)
    generator = np.random.Generator(np.random.PCG64(1))
    for trial in range(80):
        place = int(generator.integers(len(good)))
        flipped = bytes([good[place] ^ (1 << int(generator.integers(8)))])
        damaged = good[:place] if trial % 4 == 0 else good[:place] + flipped + good[place + 1 :]
        try:
            waveform = decode(damaged)
        except BadRecord:  # any other exception fails the test
            continue
        assert torch.isfinite(torch.from_numpy(waveform)).all()
        assert np.abs(waveform).max() <= 1.0


def test_a_header_is_read_without_decoding(tone, encoded):
    header = read_header(encoded(np.stack([tone(440, 0.5)] * 2, axis=1)), "clip")
    assert (header.num_frames, header.sample_rate, header.num_channels) == (4000, 8000, 2)
    assert header.seconds == 0.5
