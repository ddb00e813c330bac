"""The speech tokenizer as the trainer sees it: losses, gradients kept apart, balance, what is logged and saved."""

import io
import itertools
import json
import wave
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_tones import SAMPLE_RATE, TONE_TOKENIZER, write_tones
from torch import Tensor

from latentlm.config import from_mapping
from latentlm.data.audio import AudioDataConfig, AudioMixtureConfig, WordStringConfig
from latentlm.tokenizers.speech import SpectrumConfig, SpeechTokenizer
from latentlm.training.losses.balancer import BalancerConfig
from latentlm.training.losses.spectral import MelLossConfig, MultiScaleMelDistance, STFTLossConfig
from latentlm.training.losses.waveform_adversarial import (
    PeriodDiscriminatorConfig,
    STFTDiscriminatorConfig,
    WaveformAdversarialConfig,
)
from latentlm.training.objectives.speech_reconstruction import SpeechLossConfig
from latentlm.training.objectives.speech_tokenizer import (
    SpeechTokenizerObjective,
    SpeechTokenizerRecipe,
    build_speech_tokenizer,
)
from latentlm.training.optim import OptimConfig
from latentlm.training.trainer import Trainer, TrainerConfig

MEL = MelLossConfig(window_lengths=(32, 128), num_mels=(5, 20))
GAN = WaveformAdversarialConfig(
    period=PeriodDiscriminatorConfig(periods=(2, 3), channels=(4, 8)),
    stft=STFTDiscriminatorConfig(window_lengths=(64,), band_edges=(0.0, 0.4, 1.0), num_channels=4),
)
OPTIM = OptimConfig(lr=1e-3, num_warmup_steps=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AudioDataConfig:
    return write_tones(tmp_path_factory.mktemp("tones"))


def make_recipe(data: AudioDataConfig | None, **changes) -> SpeechTokenizerRecipe:
    losses = SpeechLossConfig(**{"mel": MEL, "beta": 0.01, **changes.pop("losses", {})})
    return SpeechTokenizerRecipe(
        kind="speech_tokenizer",
        data=data,
        tokenizer=TONE_TOKENIZER,
        losses=losses,
        optim=OPTIM,
        discriminator_optim=OPTIM if losses.adversarial else None,
        trainer=TrainerConfig(num_steps=4, batch_size=4, ema_half_life_ratio=0.5, device="cpu", tensorboard=False),
        **changes,
    )


def make_objective(data: AudioDataConfig, **losses) -> SpeechTokenizerObjective:
    return build_speech_tokenizer(make_recipe(data, losses=losses))[0]


def make_batch(objective: SpeechTokenizerObjective, num_clips: int = 6, step: int = 0) -> dict[str, Tensor]:
    waveforms, keys = next(iter(objective.clips.training()))
    return objective.prepare({"audio": waveforms[:num_clips], "key": keys[:num_clips]}, step=step, seed=0)


def test_total_is_the_weighted_sum_of_the_named_losses(data: AudioDataConfig) -> None:
    objective = make_objective(data, beta=0.3, stft=STFTLossConfig(weight=2.0), waveform_weight=5.0, adversarial=GAN)
    batch = make_batch(objective)
    losses = objective.losses(batch, step=0, totals=objective.counts(batch))["tokenizer"]
    mean = objective.tokenizer.posterior(batch["audio"]).mean
    assert losses["regularizer"].item() == pytest.approx(mean.square().mean().item(), rel=1e-5)
    expected = 15 * losses["mel"] + 2 * losses["stft"] + 5 * losses["waveform"]
    expected = expected + losses["adversarial"] + 2 * losses["feature_matching"] + 0.3 * losses["regularizer"]
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_compare_reconstructions_of_noisy_latents_with_the_waveforms(data: AudioDataConfig) -> None:
    objective = make_objective(data)
    values = []
    for step in (0, 0, 1):
        batch = make_batch(objective, step=step)
        values.append(objective.losses(batch, step=step, totals=objective.counts(batch))["tokenizer"]["mel"].item())
    assert values[0] == values[1]  # the noise is a function of seed, step and key
    assert values[0] != values[2]
    batch = make_batch(objective)
    made = objective.training_pass(batch).reconstructions[:, : batch["audio"].shape[1]]
    distance = MultiScaleMelDistance(MEL, sample_rate=SAMPLE_RATE)(made, batch["audio"])
    assert values[0] == pytest.approx(distance.mean().item(), rel=1e-5)


@pytest.mark.parametrize("adversarial", [None, GAN])
@pytest.mark.parametrize("balancer", [None, BalancerConfig()])
def test_micro_batches_add_up_to_the_batch(data: AudioDataConfig, adversarial, balancer) -> None:
    values, gradients = [], []
    for parts in ((slice(0, 6),), (slice(0, 4), slice(4, 6))):
        objective = make_objective(data, adversarial=adversarial, balancer=balancer, waveform_weight=1.0)
        for step in range(2):  # a balancer only measures in the first
            batch = make_batch(objective, step=step)
            totals = objective.counts(batch)
            objective.zero_grad()
            summed: dict[str, float] = {}
            for part in parts:
                micro = {"audio": batch["audio"][part], "key": batch["key"][part], "noise_seed": batch["noise_seed"]}
                losses = objective.losses(micro, step=step, totals=totals)
                losses["tokenizer"]["total"].backward()
                for optimizer, named in losses.items():
                    for name, value in named.items():
                        label = f"{optimizer}/{name}"
                        summed[label] = summed.get(label, 0.0) + value.item()
        del summed["tokenizer/mean_std"]  # a deviation over a micro-batch is its own
        values.append(summed)
        gradient = objective.tokenizer.encoder.last.weight.grad
        assert gradient is not None
        gradients.append(gradient)
    assert values[0].keys() == values[1].keys()
    for label, value in values[0].items():
        assert values[1][label] == pytest.approx(value, rel=1e-4, abs=1e-6), label  # float32 sums in another order
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


def test_neither_optimizers_loss_reaches_the_others_parameters(data: AudioDataConfig) -> None:
    objective = make_objective(data, adversarial=GAN)
    assert objective.discriminator is not None
    batch = make_batch(objective)
    for optimizer, own, other in (
        ("tokenizer", objective.tokenizer, objective.discriminator),
        ("discriminator", objective.discriminator, objective.tokenizer),
    ):
        objective.zero_grad()
        losses = objective.losses(batch, step=0, totals=objective.counts(batch))
        losses[optimizer]["total"].backward()
        assert all(parameter.grad is None for parameter in other.parameters())
        assert all(parameter.grad is not None for parameter in own.parameters())


def test_the_discriminators_wait_for_their_start_step(data: AudioDataConfig) -> None:
    objective = make_objective(data, adversarial=replace(GAN, start_step=3))
    batch = make_batch(objective)
    totals = objective.counts(batch)
    before = objective.losses(batch, step=2, totals=totals)
    assert set(before) == {"tokenizer"}
    assert "adversarial" not in before["tokenizer"]
    assert set(objective.losses(batch, step=3, totals=totals)) == {"tokenizer", "discriminator"}


def test_a_balanced_gradient_has_the_size_it_was_given(data: AudioDataConfig) -> None:
    for total_norm in (1.0, 4.0):
        objective = make_objective(data, beta=0.0, balancer=BalancerConfig(total_norm=total_norm))
        batch = make_batch(objective)
        totals = objective.counts(batch)
        objective.losses(batch, step=0, totals=totals)
        made: list[Tensor] = []
        objective.tokenizer.decoder.register_forward_hook(lambda _, __, output, made=made: made.append(output))
        losses = objective.losses(batch, step=1, totals=totals)["tokenizer"]
        (gradient,) = torch.autograd.grad(losses["total"], made[0])
        # The only loss has all of it; its norm is the average, for the batch is the same in both steps.
        assert gradient.flatten(1).norm(dim=1).sum().item() == pytest.approx(total_norm, rel=1e-3)
        assert losses["norm_mel"].item() > 0


@pytest.mark.parametrize("spectrum", [SpectrumConfig(fft_size=40, hop_length=10), None])
def test_digital_silence_leaves_a_new_tokenizer_with_ordinary_gradients(data, spectrum) -> None:
    deep = replace(TONE_TOKENIZER, spectrum=spectrum, channels=(8,) * 5, depths=(3,) * 5, strides=(2, 2, 2, 2))
    objective, _, _ = build_speech_tokenizer(replace(make_recipe(data), tokenizer=deep))
    norms = []
    for silence in (1.0, 0.0):
        batch = make_batch(objective)
        batch["audio"] = batch["audio"].clone()
        batch["audio"][:, 200:] *= silence
        objective.zero_grad()
        objective.losses(batch, step=0, totals=objective.counts(batch))["tokenizer"]["total"].backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in objective.parameters() if p.grad is not None]))
    # With zero biases the second is infinite: 15 blocks, each with two norms whose slope at zero is 316.
    assert norms[1] < 10 * norms[0]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_losses_under_autocast_are_float32_and_near_the_exact_ones(data: AudioDataConfig, precision: str) -> None:
    objective = make_objective(data, adversarial=GAN, waveform_weight=1.0)
    batch = make_batch(objective)
    exact = objective.losses(batch, step=0, totals=objective.counts(batch))
    with torch.autocast("cpu", getattr(torch, precision)):
        rounded = objective.losses(batch, step=0, totals=objective.counts(batch))
    for optimizer, named in exact.items():
        for name, value in named.items():
            assert rounded[optimizer][name].dtype == torch.float32
            # bfloat16 keeps 8 bits: 0.4% per product, through a dozen layers.
            assert rounded[optimizer][name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


@pytest.mark.parametrize(
    "losses",
    [
        {},
        {"adversarial": replace(GAN, start_step=2), "balancer": BalancerConfig(), "waveform_weight": 0.1},
    ],
)
def test_training_moves_weights_and_leaves_a_tokenizer_that_encodes(data, losses, tmp_path: Path) -> None:
    objective, loader, recipe = build_speech_tokenizer(make_recipe(data, losses=losses))
    initial = {name: parameter.clone() for name, parameter in objective.named_parameters()}
    trainer = replace(recipe.trainer, sample_every=2)
    Trainer(objective, loader, trainer, tmp_path, recipe=recipe, evaluations=objective.evaluations()).fit()
    moved = {name for name, parameter in objective.named_parameters() if not torch.equal(parameter, initial[name])}
    assert moved == set(initial)
    for name in ("model", "model_raw"):
        tokenizer = SpeechTokenizer.from_pretrained(tmp_path / name)
        waveforms = torch.cat([clips for clips, _ in objective.clips.training()])
        latents = tokenizer.encode(waveforms, generator=torch.Generator().manual_seed(0))
        # 15 clips, each with its own sigma: the deviation is known to about a quarter.
        assert latents.std().item() == pytest.approx(1, rel=0.5)
    report = json.loads((tmp_path / "model" / "tokenizer_report.json").read_text())
    assert len(report["channels"]) == 4
    assert report["num_examples"] == 5  # a quarter of 20
    assert (report["frame_rate"], report["floats_per_second"]) == (50, 200)
    assert report["bits_per_second"] == pytest.approx(5 * report["bits_per_example"])  # of 0.2 s
    assert "200 floats" in (tmp_path / "model" / "tokenizer_report.md").read_text()
    evaluation = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["evaluation"]
    assert set(evaluation) == {"mel_distance_mean", "mel_distance_sample", "si_sdr_mean", "si_sdr_sample"}
    assert (tmp_path / "samples" / "step_000002.png").is_file()


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(data: AudioDataConfig, tmp_path: Path) -> None:
    losses = {"adversarial": replace(GAN, start_step=1), "balancer": BalancerConfig(ema_decay=0.9)}
    weights = []
    for name, cuts in (("whole", []), ("cut", [1, 3])):
        for num_batches in (*cuts, None):
            objective, loader, recipe = build_speech_tokenizer(make_recipe(data, losses=losses))

            def limited(start: int, loader=loader, stop=num_batches):
                return itertools.islice(loader(start), None if stop is None else stop - start)

            trainer = Trainer(
                objective, limited, replace(recipe.trainer, checkpoint_every=1), tmp_path / name, recipe=recipe
            )
            if num_batches is None:
                trainer.fit()
            else:
                with pytest.raises(ValueError, match="ended"):
                    trainer.fit()
        weights.append(objective.state_dict())
    assert any("balancer.norm_sum" in name for name in weights[0])
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor), name


def test_evaluations_tell_a_good_tokenizer_from_an_untrained_one(data: AudioDataConfig, monkeypatch) -> None:
    objective = make_objective(data)
    (evaluate,) = objective.evaluations()
    untrained = evaluate(objective, 0)
    assert evaluate(objective, 1) == untrained  # the same clips, the same noise
    monkeypatch.setattr(objective, "copies", lambda waveforms, keys, seed: {"itself": waveforms})
    perfect = evaluate(objective, 0)
    assert perfect["mel_distance_itself"] == 0 < untrained["mel_distance_mean"]
    assert perfect["si_sdr_itself"] > 50 > untrained["si_sdr_mean"]


def test_samples_show_and_play_originals_and_two_kinds_of_reconstructions(data: AudioDataConfig) -> None:
    objective = make_objective(data)
    grid = objective.sample_grid(seed=0)
    # Four clips of 0.2 s: 21 frames of a hundredth, enlarged fourfold to 64 pixels at least; three rows of 80 mels.
    assert grid.shape == (3, 4 + 3 * (4 * 80 + 4), 4 + 4 * (4 * 21 + 4))
    assert torch.equal(grid, objective.sample_grid(seed=0))
    assert not torch.equal(grid, objective.sample_grid(seed=1))
    files = objective.sample_files(seed=0)
    assert set(files) == {f"{number}_{kind}.wav" for number in range(4) for kind in ("original", "mean", "sample")}
    with wave.open(io.BytesIO(files["0_original.wav"])) as file:
        assert (file.getframerate(), file.getnframes()) == (SAMPLE_RATE, SAMPLE_RATE // 5)


def test_statistics_are_measured_with_the_weights_that_are_saved(data: AudioDataConfig, tmp_path: Path) -> None:
    objective = make_objective(data)
    objective.save_pretrained(tmp_path / "model")
    first = objective.tokenizer.statistics.scale.item()
    with torch.no_grad():
        objective.tokenizer.encoder.last.weight.mul_(100)
    objective.save_pretrained(tmp_path / "model")
    assert objective.tokenizer.statistics.scale.item() < first
    loaded = SpeechTokenizer.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.statistics.scale, objective.tokenizer.statistics.scale)


def test_activation_checkpointing_leaves_the_gradient_as_it_is(data: AudioDataConfig) -> None:
    gradients = []
    for recompute in (False, True):
        objective = make_objective(data)
        if recompute:
            objective.enable_activation_checkpointing()
        batch = make_batch(objective)
        objective.losses(batch, step=0, totals=objective.counts(batch))["tokenizer"]["total"].backward()
        gradients.append(objective.tokenizer.encoder.last.weight.grad)
    assert torch.equal(*gradients)


def test_groups_are_mixed_by_weight(data: AudioDataConfig) -> None:
    groups = {name: replace(data, only_speakers=[f"speaker_{number}"]) for number, name in enumerate(("one", "two"))}
    recipe = make_recipe(None, mixture=AudioMixtureConfig(groups=groups, weights={"one": 3.0}))
    _, loader, _ = build_speech_tokenizer(recipe)
    batches = list(itertools.islice(loader(0), 4))
    groups_met = torch.cat([batch["group"] for batch in batches])
    assert torch.bincount(groups_met).tolist() == [12, 4]
    assert all(batch["audio"].shape == (4, 400) for batch in batches)


def copy_with_texts(data: AudioDataConfig, folder: Path) -> WordStringConfig:
    """The recordings as single words, and how they are joined."""
    for path in Path(data.path).rglob("*.wav"):
        copy = folder / path.relative_to(data.path)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.with_suffix(".txt").write_text("word")
    return WordStringConfig(num_utterances=7, min_words=2, max_words=3, min_gap_seconds=0.0, max_gap_seconds=0.01)


def test_words_are_joined_and_cropped(data: AudioDataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = copy_with_texts(data, tmp_path)
    recipe = make_recipe(replace(data, path=str(tmp_path), crop_seconds=0.3), words=words)
    objective, loader, _ = build_speech_tokenizer(recipe)
    batch = next(loader(0))
    assert batch["audio"].shape == (4, 600)
    # Two words of 0.1 s at least and no pause: single ones would leave most crops half empty.
    assert batch["num_samples"].min() >= 400
    held_out = torch.cat([waveforms for waveforms, _ in objective.clips.held_out()])
    assert (held_out[:, 595:] == 0).all()  # a single clip of at most 0.29 s: the held-out part is too small to join any
    assert "held-out clips" in caplog.text
    with pytest.raises(ValueError, match=r"a mixture has its own: mixture.words, by group"):
        make_recipe(None, words=words, mixture=AudioMixtureConfig(groups={"one": data}))


def test_a_mixture_joins_the_words_of_the_groups_that_hold_words(data: AudioDataConfig, tmp_path: Path) -> None:
    words = copy_with_texts(data, tmp_path)
    cropped = replace(data, crop_seconds=0.3, validation_ratio=0.0)
    mixture = AudioMixtureConfig(
        groups={"read": cropped, "words": replace(cropped, path=str(tmp_path))}, words={"words": words}
    )
    _, loader, _ = build_speech_tokenizer(make_recipe(None, mixture=mixture))
    batches = loader(0)
    lengths = torch.cat([next(batches)["num_samples"] for _ in range(8)])
    # Single clips are at most 0.29 s long; joined ones fill the crop.
    assert (lengths < 590).any()
    assert (lengths == 600).any()
    with pytest.raises(ValueError, match=r"words name \['other'\], but the groups are read"):
        AudioMixtureConfig(groups={"read": cropped}, words={"other": words})


def test_recipes_whose_parts_do_not_fit_are_refused(data: AudioDataConfig) -> None:
    recipe = make_recipe(data)
    with pytest.raises(ValueError, match=r"8000 Hz but tokenizer\.sample_rate is 2000"):
        replace(recipe, data=replace(data, sample_rate=8000))
    with pytest.raises(ValueError, match="crop_seconds"):
        replace(recipe, data=replace(data, crop_seconds=None))
    with pytest.raises(ValueError, match="belong together"):
        replace(recipe, discriminator_optim=OPTIM)
    with pytest.raises(ValueError, match="one of the two"):
        replace(recipe, data=None)
    with pytest.raises(ValueError, match="nothing compares"):
        SpeechLossConfig(mel=None)


def test_a_recipe_is_read_from_plain_values(data: AudioDataConfig) -> None:
    mapping = {
        "kind": "speech_tokenizer",
        "data": {"path": data.path, "sample_rate": 2000, "crop_seconds": 0.2},
        "tokenizer": {
            "sample_rate": 2000,
            "spectrum": {"fft_size": 40, "hop_length": 10},
            "channels": [8, 8],
            "depths": [1, 1],
            "strides": [4],
        },
        "losses": {
            "mel": {"window_lengths": [32, 64], "num_mels": [5, 10]},
            "adversarial": {"stft": None, "period": {"channels": [4, 4]}},
            "balancer": {},
        },
        "optim": {"lr": 1e-3},
        "discriminator_optim": {"lr": 1e-3},
        "trainer": {"num_steps": 1, "batch_size": 1},
    }
    losses = from_mapping(SpeechTokenizerRecipe, mapping).losses
    assert losses.mel == MelLossConfig(window_lengths=(32, 64), num_mels=(5, 10))
    assert losses.adversarial is not None
    assert losses.adversarial.stft is None
    assert losses.weights == {"mel": 15.0, "adversarial": 1.0, "feature_matching": 2.0}
    assert losses.balancer == BalancerConfig()
