"""The codec language model: rows, both networks, losses, sampling, training."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tiny_codec_lm import tiny_codec_lm_config, tiny_codec_lm_recipe
from tiny_models import randomise
from tiny_speech import RECORDED_RATE, tiny_speech_codec, tiny_speech_recipe, tiny_speech_tokenizer
from torch import Tensor

from latentlm.baselines.codec_lm.model import AUTOREGRESSIVE, NON_AUTOREGRESSIVE, CodecLM
from latentlm.baselines.codec_lm.rows import (
    UNKNOWN,
    CodecUtterance,
    autoregressive_tokens,
    non_autoregressive_tokens,
    pack,
)
from latentlm.baselines.codec_lm.sampling import CodecSamplingConfig, sample_first_codes
from latentlm.catalog import RECIPE_CLASSES, build, load
from latentlm.config import load_recipe
from latentlm.models.latentlm import LatentLM
from latentlm.sequence import IGNORE_LABEL
from latentlm.training import speech_documents
from latentlm.training.trainer import Trainer

RECIPES = Path(__file__).parents[3] / "recipes"
END, BEGIN, BOS = 16, 257, 256


def utterance(text: str, num_frames: int, *, seed: int = 0, group: int = 0) -> CodecUtterance:
    codes = torch.randint(16, (num_frames, 3), generator=torch.Generator().manual_seed(seed))
    return CodecUtterance([BOS, *text.encode()], codes, key=seed, group=group)


def model_of(**changes: object) -> CodecLM:
    return randomise(CodecLM(tiny_codec_lm_config(**changes))).eval()


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "group_size", "expected"),
    [
        (3, 1, [["c0"], ["c1"], ["c2"], ["end"]]),
        (5, 2, [["c0", "c1"], ["c2", "c3"], ["c4", "end"]]),
        (4, 2, [["c0", "c1"], ["c2", "c3"], ["end", "-"]]),
        (1, 4, [["c0", "end", "-", "-"]]),
    ],
)
def test_the_end_stands_behind_the_last_code_whatever_the_length(
    num_frames: int, group_size: int, expected: list[list[str]]
) -> None:
    said = utterance("hi", num_frames)
    tokens = autoregressive_tokens(said, begin_id=BEGIN, end_code=END, group_size=group_size)
    names = {END: "end", IGNORE_LABEL: "-"}
    first = said.codes[:, 0].tolist()
    labels = tokens.labels[3:].tolist()  # begin of text and two bytes predict nothing
    spelt = [[f"c{first[len(expected[0]) * m + g]}" if "c" in name else name for g, name in enumerate(row)]
             for m, row in enumerate(expected)]  # fmt: skip
    assert [[names.get(code, f"c{code}") for code in row] for row in labels] == spelt
    assert (tokens.labels[:3] == IGNORE_LABEL).all()
    assert tokens.text_ids.tolist() == [BOS, *b"hi", BEGIN] + [UNKNOWN] * (num_frames // group_size)
    assert tokens.codes[4:].flatten().tolist() == first[: num_frames // group_size * group_size]


def test_frames_of_the_prompt_show_all_their_codes_and_the_others_those_below_the_level() -> None:
    said = utterance("hi", 5)
    tokens = non_autoregressive_tokens(said, num_prompt_frames=2, level=1, begin_id=BEGIN)
    assert torch.equal(tokens.codes[4:6], said.codes[:2])
    assert torch.equal(tokens.codes[6:, 0], said.codes[2:, 0])
    assert (tokens.codes[6:, 1:] == UNKNOWN).all()
    assert (tokens.codes[:4] == UNKNOWN).all()
    assert tokens.labels[:, 0].tolist() == [IGNORE_LABEL] * 6 + said.codes[2:, 1].tolist()


def test_utterances_of_a_row_do_not_see_each_other_and_padding_changes_nothing() -> None:
    model = model_of(group_size=2)
    said, other = utterance("one", 7, seed=1), utterance("two", 4, seed=2)
    together = model.batch([[other, said], [said, other, other]], noise_seed=0)
    alone = model.batch([[said]], noise_seed=0)
    for network, of_both, of_one in (
        (model.autoregressive, together.autoregressive, alone.autoregressive),
        (model.non_autoregressive, together.non_autoregressive, alone.non_autoregressive),
    ):
        both, one = network.hidden_states(of_both), network.hidden_states(of_one)
        length = int((of_one.document_ids[0] == 0).sum())
        start = int((of_both.document_ids[0] == 0).sum())
        # Longer rows sum attention in another order.
        torch.testing.assert_close(both[0, start : start + length], one[0, :length], rtol=0, atol=1e-5)
        torch.testing.assert_close(both[1, :length], one[0, :length], rtol=0, atol=1e-5)


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_group_is_predicted_from_the_text_and_the_groups_before_it(group_size: int) -> None:
    model, said = model_of(group_size=group_size), utterance("hi", 8)
    codes = said.codes.clone()
    codes[4:, 0] = (codes[4:, 0] + 1) % 16
    changed = dataclasses.replace(said, codes=codes)
    before, after = (
        model.autoregressive.hidden_states(model.batch([[one]], noise_seed=0).autoregressive)[0]
        for one in (said, changed)
    )
    first_changed = 4 + 4 // group_size  # text and begin, then the groups of the first four frames
    torch.testing.assert_close(before[:first_changed], after[:first_changed], rtol=0, atol=1e-6)  # same sums
    assert not torch.allclose(before[first_changed], after[first_changed], atol=1e-3)


def test_other_codes_are_predicted_from_all_frames_but_not_from_codes_that_are_not_known_yet() -> None:
    model, said = model_of(), utterance("hi", 6)

    def hidden_states(codes: Tensor) -> Tensor:
        tokens = non_autoregressive_tokens(
            dataclasses.replace(said, codes=codes), num_prompt_frames=2, level=1, begin_id=BEGIN
        )
        return model.non_autoregressive.hidden_states(pack([[tokens]], num_codes=3, num_targets=1))[0]

    def changed(frame: int, code: int) -> Tensor:
        codes = said.codes.clone()
        codes[frame, code] = (codes[frame, code] + 1) % 16
        return hidden_states(codes)

    before = hidden_states(said.codes)
    assert torch.equal(changed(4, 1), before)
    assert torch.equal(changed(4, 2), before)
    assert not torch.allclose(changed(5, 0)[6], before[6], atol=1e-4)  # a frame behind it
    assert not torch.allclose(changed(1, 2)[6], before[6], atol=1e-4)  # the prompt's last code


def test_the_level_changes_what_is_made_of_the_same_frames() -> None:
    model, said = model_of(), utterance("hi", 4)
    rows = pack(
        [[non_autoregressive_tokens(said, num_prompt_frames=4, level=1, begin_id=BEGIN)]], num_codes=3, num_targets=1
    )
    second = dataclasses.replace(rows, levels=2 * rows.levels)
    network = model.non_autoregressive
    assert not torch.allclose(network.hidden_states(rows)[0, :8], network.hidden_states(second)[0, :8], atol=1e-3)


# -- losses -----------------------------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing_loses_the_log_of_the_choices() -> None:
    model = model_of(group_size=2)
    torch.nn.init.zeros_(model.autoregressive.embed_codes.weight)
    torch.nn.init.zeros_(model.non_autoregressive.embed_codes.weight)
    losses = model(model.batch([[utterance("hi", 5), utterance("", 4, seed=1)]], noise_seed=0))
    assert losses[AUTOREGRESSIVE].item() == pytest.approx(math.log(17), rel=1e-6)  # the end is a choice too
    assert losses[NON_AUTOREGRESSIVE].item() == pytest.approx(math.log(16), rel=1e-6)
    assert losses["total"].item() == pytest.approx(math.log(17 * 16), rel=1e-6)


def test_every_code_and_every_end_counts_once() -> None:
    model = model_of(group_size=2, max_prompt_ratio=0.0)
    rows = [[utterance("hi", 5), utterance("", 4, seed=1, group=1)], [utterance("x", 7, seed=2, group=1)], []]
    batch = model.batch(rows, noise_seed=0, group_names=("a", "b"))
    assert model.loss_counts(batch) == {
        AUTOREGRESSIVE: 16 + 3,
        f"{AUTOREGRESSIVE}/a": 6,
        f"{AUTOREGRESSIVE}/b": 13,
        NON_AUTOREGRESSIVE: 16,
        f"{NON_AUTOREGRESSIVE}/a": 5,
        f"{NON_AUTOREGRESSIVE}/b": 11,
    }
    nothing = model(model.batch([[]], noise_seed=0))
    assert nothing["total"].item() == 0


def test_micro_batches_add_up_to_the_batch() -> None:
    model = model_of(group_size=2)
    rows = [[utterance("hi", 5)], [utterance("x", 9, seed=1), utterance("yes", 3, seed=2)]]
    whole = model.batch(rows, noise_seed=3, group_names=("a",))
    totals = model.loss_counts(whole)
    parts = [model(model.batch([row], noise_seed=3, group_names=("a",)), totals=totals) for row in rows]
    for name, loss in model(whole).items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss)


def test_levels_and_prompts_are_drawn_anew_and_depend_on_the_key_alone() -> None:
    model, said = model_of(), [utterance("hi", 12, seed=seed) for seed in range(40)]
    first, again, later = (model.batch([said], noise_seed=seed).non_autoregressive for seed in (0, 0, 1))
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, later.labels)
    alone = model.batch([said[7:8]], noise_seed=0).non_autoregressive
    of_seventh = first.document_ids[0] == 7
    assert torch.equal(first.labels[0][of_seventh], alone.labels[0][: int(of_seventh.sum())])
    levels = first.levels[0][first.positions[0] == 0][:40]
    assert set(levels.tolist()) == {1, 2}
    prompts = [12 - int((first.labels[0][first.document_ids[0] == n] != IGNORE_LABEL).sum()) for n in range(40)]
    assert set(prompts) == set(range(6))  # half of the frames at most


def test_the_loss_reaches_every_weight() -> None:
    model = model_of(group_size=2)
    batch = model.batch([[utterance("hi", 9, seed=seed) for seed in range(6)]], noise_seed=0)
    model(batch)["total"].backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


# -- sampling ---------------------------------------------------------------------------------------------------------


def drawn(history: list[int], config: CodecSamplingConfig, *, uniform: float) -> int:
    logits = torch.tensor([3.0, 1.0, 0.0, -1.0])
    return int(
        sample_first_codes(
            logits[None],
            torch.tensor([history], dtype=torch.long),
            config,
            torch.tensor([[0.5, uniform]]),
            allowed=torch.ones(1, len(logits), dtype=torch.bool),
        )
    )


def test_a_code_that_repeats_too_often_is_drawn_again() -> None:
    config = CodecSamplingConfig(temperature=0.0, repetition_window=4, repetition_threshold=0.25)
    assert drawn([1, 0, 2, 3], config, uniform=0.999) == 0  # a quarter does not exceed a quarter
    assert drawn([1, 0, 2, 0], config, uniform=0.999) == 3
    assert drawn([UNKNOWN] * 4, config, uniform=0.999) == 0
    off = dataclasses.replace(config, repetition_window=0)
    assert drawn([], off, uniform=0.999) == 0


def test_the_second_draw_comes_from_the_whole_distribution() -> None:
    config = CodecSamplingConfig(temperature=0.2, top_p=0.1, repetition_window=2, repetition_threshold=0.5)
    counts = torch.zeros(4)
    for step in range(200):
        counts[drawn([0, 0], config, uniform=(step + 0.5) / 200)] += 1
    expected = torch.tensor([3.0, 1.0, 0.0, -1.0]).softmax(-1)
    assert (counts / 200 - expected).abs().max() < 0.01  # a grid of two hundred: two of its cells


def test_what_is_not_allowed_never_comes() -> None:
    config = CodecSamplingConfig(repetition_window=2, repetition_threshold=0.0)
    logits = torch.tensor([[0.0, 0.0, 9.0]]).repeat(50, 1)
    allowed = torch.tensor([[True, True, False]]).repeat(50, 1)
    uniform = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    codes = sample_first_codes(logits, torch.full((50, 2), 0), config, uniform, allowed=allowed)
    assert set(codes.tolist()) == {0, 1}


@pytest.mark.parametrize(
    "options",
    [{"top_p": 0.0}, {"temperature": -1.0}, {"repetition_threshold": 1.5}, {"other_temperature": -0.1}],
)
def test_sampling_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CodecSamplingConfig(**options)  # pyright: ignore[reportArgumentType]


# -- training ---------------------------------------------------------------------------------------------------------


def test_recordings_train_the_model_and_what_was_trained_speaks(tmp_path: Path) -> None:
    objective, make_batches, recipe = build(tiny_codec_lm_recipe(tmp_path, trainer__batch_size=32))
    codec = tiny_speech_codec(sample_rate=RECORDED_RATE)
    assert recipe.model.tokenizer_fingerprint == codec.fingerprint()
    assert (recipe.model.num_text_ids, recipe.model.num_codes, recipe.model.num_quantizers) == (257, 16, 3)
    Trainer(objective, make_batches, recipe.trainer, tmp_path / "run", recipe=recipe).fit()
    assert all(parameter.grad is None for parameter in objective.speech_tokenizer.parameters())
    held_out = objective.evaluations()[0](objective, 0)
    assert {"held_out/autoregressive", "held_out/non_autoregressive/untranscribed"} <= held_out.keys()
    pipeline = load(tmp_path / "run" / "model")
    assert pipeline.kind == "codec_lm"
    assert pipeline.sampling == {"speech": recipe.speech_generation}
    (said,) = pipeline.speak(["one"], [None])
    assert len(said.waveform) == 30 * len(said.tokens) > 0


def test_a_dropped_text_leaves_what_an_untranscribed_recording_has(tmp_path: Path) -> None:
    objective, make_batches, _ = build(tiny_codec_lm_recipe(tmp_path, drop_cond_prob=0.999))
    batch = objective.prepare(next(make_batches(0)), step=0, seed=0)
    text_ids = batch.autoregressive.text_ids
    assert set(text_ids.flatten().tolist()) == {BOS, BEGIN, UNKNOWN}
    whole, make_batches, _ = build(tiny_codec_lm_recipe(tmp_path, drop_cond_prob=0.0))
    batch = whole.prepare(next(make_batches(0)), step=0, seed=0)
    assert bytes(id for id in batch.autoregressive.text_ids.flatten().tolist() if 0 <= id < 256).startswith(b"say")


def test_a_sound_too_long_for_its_text_goes_without_it(tmp_path: Path) -> None:
    objective, make_batches, _ = build(tiny_codec_lm_recipe(tmp_path, max_length=9))
    for number in range(4):
        batch = objective.prepare(next(make_batches(number)), step=0, seed=0)
        assert torch.isfinite(objective.losses(batch, step=0, totals=objective.counts(batch))["model"]["total"])


def test_codes_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(**changes: object) -> Tensor:
        objective, make_batches, _ = build(tiny_codec_lm_recipe(tmp_path, **changes))
        return objective.prepare(next(make_batches(0)), step=0, seed=0).autoregressive.codes

    cached = {f"sources__{name}__speech__cache": str(tmp_path / "cache") for name in ("spoken", "untranscribed")}
    in_memory, first = batches(), batches(**cached)
    monkeypatch.setattr(speech_documents, "encode_recordings", None)  # would fail if it were called
    again = batches(**cached)
    assert torch.equal(in_memory, first)
    assert torch.equal(in_memory, again)


def test_recipes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not end with its sound"):
        tiny_codec_lm_recipe(tmp_path, sources__spoken__speech__templates=["{speech}{text}"])
    with pytest.raises(ValueError, match="recordings alone"):
        tiny_codec_lm_recipe(tmp_path, sources__spoken={"data": {"path": "x.jsonl"}})
    with pytest.raises(ValueError, match="reads no pictures"):
        tiny_codec_lm_recipe(tmp_path, tokenizer="somewhere")
    with pytest.raises(ValueError, match="--speech_tokenizer"):
        build(tiny_codec_lm_recipe(tmp_path, speech_tokenizer=None))
    tiny_speech_tokenizer(sample_rate=RECORDED_RATE).save_pretrained(tmp_path / "latents")
    with pytest.raises(ValueError, match="not a 'speech_codec'"):
        build(tiny_codec_lm_recipe(tmp_path, speech_tokenizer=str(tmp_path / "latents")))
    with pytest.raises(ValueError, match="two codes of a frame"):
        CodecLM(tiny_codec_lm_config(num_quantizers=1))


def test_models_of_latents_read_no_codes(tmp_path: Path) -> None:
    tiny_speech_codec(sample_rate=RECORDED_RATE).save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="not a 'speech_tokenizer'"):
        build(tiny_speech_recipe(tmp_path, speech_tokenizer=str(tmp_path / "codec")))


def test_the_recipe_has_the_parameters_of_latentlm() -> None:
    latentlm, codec_lm, codec = (
        load_recipe(RECIPES / f"{name}.yaml", [], RECIPE_CLASSES)
        for name in ("speech_digits", "codec_lm_digits", "speech_digits_codec")
    )
    quantizer = codec.tokenizer.quantizer
    config = dataclasses.replace(
        codec_lm.model,
        num_text_ids=257,
        num_codes=quantizer.quantizer.num_codes,
        num_quantizers=quantizer.num_quantizers,
    )
    vocabulary = dataclasses.replace(latentlm.model.vocabulary, num_text_ids=257)
    with torch.device("meta"):
        models = CodecLM(config), LatentLM(dataclasses.replace(latentlm.model, vocabulary=vocabulary))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) / 1e6 for model in models]
    assert sizes == pytest.approx([9.78, 9.73], abs=0.01)
    spoken = [recipe.sources["spoken"] for recipe in (latentlm, codec_lm)]
    assert spoken[0] == spoken[1]
