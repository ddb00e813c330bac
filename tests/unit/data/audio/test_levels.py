"""Levels: pauses do not count, and what would clip does not."""

import numpy as np
import pytest

from latentlm.data.audio import active_level_db, normalize_level, report_levels

RATE = 8000


def test_the_level_of_a_sine_is_3_db_below_its_peak(tone):
    # Frames of 50 ms do not hold whole periods of 440 Hz.
    assert active_level_db(tone(440, 1.0, RATE, peak=1.0), RATE) == pytest.approx(-3.01, abs=0.02)


def test_pauses_do_not_change_the_level(tone):
    speech = tone(440, 1.0, RATE)
    paused = np.concatenate([np.zeros(RATE * 3, dtype=np.float32), speech, np.zeros(RATE, dtype=np.float32)])
    assert active_level_db(paused, RATE) == pytest.approx(active_level_db(speech, RATE), abs=0.01)


@pytest.mark.parametrize("peak", [0.001, 0.02, 0.9])
def test_clips_of_all_levels_come_to_the_same(tone, peak):
    scaled = normalize_level(tone(440, 1.0, RATE, peak=peak), RATE, -23.0)
    assert scaled.dtype == np.float32
    assert active_level_db(scaled, RATE) == pytest.approx(-23.0, abs=1e-3)


def test_a_gain_that_would_clip_is_reduced():
    click = np.zeros(RATE, dtype=np.float32)
    click[::400] = 0.5
    assert np.abs(normalize_level(click, RATE, -10.0)).max() == pytest.approx(1.0, abs=1e-6)


def test_silence_and_faint_noise_stay_as_they_are():
    for waveform in (np.zeros(100, dtype=np.float32), np.full(1000, 1e-5, dtype=np.float32)):
        assert normalize_level(waveform, RATE, -23.0) is waveform


def test_clipping_and_silence_are_reported(tone):
    loud = np.clip(tone(100, 0.5, RATE, peak=2.0), -1, 1)
    waveform = np.concatenate([loud, np.zeros(RATE // 2, dtype=np.float32)])
    report = report_levels(waveform, RATE)
    assert report.peak == 1.0
    assert report.silent_ratio == 0.5
    # |2 sin| >= 1 for two thirds of each period, and the loud half is half of all.
    assert report.clipped_ratio == pytest.approx(1 / 3, abs=0.01)
    assert report_levels(tone(100, 0.5, RATE, peak=0.9), RATE).clipped_ratio == 0.0
