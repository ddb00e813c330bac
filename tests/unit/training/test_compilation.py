"""Compiled layers compute what the layers as written compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_kinds import save_tiny_tokenizers, tiny_recipe
from torch import Tensor, nn
from torch.nn import functional as F
from toy_training import ToyDataset, ToyGan, final_state

from latentlm.catalog import build
from latentlm.config import dump_recipe
from latentlm.training.compilation import compile_layers, uncompiled
from latentlm.training.ema import ExponentialMovingAverage
from latentlm.training.step import OptimizationStep


class Layers(nn.Module):
    """Two equal layers in a list, as the networks here have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x


class LayeredGan(ToyGan):
    """Two losses are differentiated through one graph of compiled layers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.generator, self.discriminator = Layers(), Layers()  # pyright: ignore[reportAttributeAccessIssue]


def gan_losses(*, compiled: bool) -> list[float]:
    gan = LayeredGan()
    if compiled:
        assert len(compile_layers(gan)) == 4
    ema = ExponentialMovingAverage(gan.ema_modules(), half_life_steps=1.0)
    step = OptimizationStep(gan, num_steps=3, precision="float32", ema=ema, seed=0)
    return [float(value) for i in range(3) for value in step([ToyDataset(3)[i]], i).values.values()]


def test_two_optimizers_share_a_graph_of_compiled_layers() -> None:
    # Fused kernels add up in another order.
    assert gan_losses(compiled=True) == pytest.approx(gan_losses(compiled=False), rel=1e-4)


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_and_the_samples_of_one_that_is_not(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizers(tmp_path / "tokenizers")["latents"]
    recipe = tiny_recipe("latentlm", tokenizer, trainer={"sample_every": 2})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    metrics = {}
    for compiled in ("false", "true"):
        # In a process of its own: what is compiled must not run through the tests' check of shapes.
        run_dir, environment = tmp_path / compiled, {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = ["-m", "latentlm", "train", str(tmp_path / "recipe.yaml"), "--trainer.compile", compiled, "--out"]
        subprocess.run([sys.executable, *command, str(run_dir)], check=True, env=environment, capture_output=True)
        metrics[compiled] = final_state(run_dir)["metrics"]
    plain, compiled_rows = metrics["false"], metrics["true"]
    assert len(plain) == len(compiled_rows) == 3  # two steps and the held-out loss
    for name in ("model/total", "model/grad_norm"):
        # Fused kernels add up in another order.
        expected = pytest.approx([row[name] for row in plain[:2]], rel=1e-4)
        assert [row[name] for row in compiled_rows[:2]] == expected
    assert any((tmp_path / "true" / "samples").iterdir())


def test_frozen_children_stay_as_they_are_and_sampling_does_not_compile(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizers(tmp_path / "tokenizers")["latents"]
    objective, make_loader, _ = build(tiny_recipe("latentlm", tokenizer))
    compiled = set(compile_layers(objective))
    assert compiled, "a model has layers"
    assert compiled.isdisjoint(objective.tokenizer.modules())
    before = num_graphs()
    with uncompiled():
        batch = objective.prepare(next(make_loader(0)), step=0, seed=0)
        objective.losses(batch, step=0, totals=objective.counts(batch))
    assert num_graphs() == before


def num_graphs() -> int:
    """Graphs that this process has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_cpu_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"apt install g\+\+"):
        compile_layers(LayeredGan())
