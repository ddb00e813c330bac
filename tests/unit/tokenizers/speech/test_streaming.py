"""Recordings that stream through a tokenizer come out as whole ones do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_speech import DESIGNS, HOP_LENGTH, sound, tiny_speech_codec, tiny_speech_tokenizer

from latentlm.tokenizers.speech import stream_through


@pytest.mark.parametrize("design", DESIGNS)
@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 5 * HOP_LENGTH), min_size=1, max_size=6), quantized=st.booleans())
def test_chunks_come_back_as_the_whole_does(design: str, sizes: list[int], quantized: bool) -> None:
    tokenizer = tiny_speech_codec(design) if quantized else tiny_speech_tokenizer(design)
    if (
        design == "harmonic"
    ):  # random weights are ten times as loud as speech, and phases sum up how pitches are rounded
        tokenizer.decoder.last.projection.weight.data.mul_(0.1)
    whole = sound(1, sum(sizes))
    back = torch.cat(list(stream_through(tokenizer, whole[0].split(sizes))))
    assert len(back) == sum(sizes)
    if sum(sizes):
        tokens = tokenizer.encode(whole) if quantized else tokenizer.encode(whole, sample=False)
        torch.testing.assert_close(back, tokenizer.decode(tokens, num_samples=sum(sizes))[0], atol=1e-5, rtol=0)


def test_sound_comes_out_before_all_of_it_is_in() -> None:
    read = 0

    def chunks():
        nonlocal read
        for _ in range(50):
            read += 1
            yield sound(HOP_LENGTH)

    stream = stream_through(tiny_speech_tokenizer(), chunks())
    heard = 0
    while heard == 0:
        heard += len(next(stream))
    assert read < 5
