"""Tiny objectives, a loader and a recipe: what the tests of the trainer train."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from latentlm.pretrained import unique_tensors
from latentlm.storage import publish_folder, read_tensors, write_tensors
from latentlm.training.objective import Objective
from latentlm.training.optim import OptimConfig, OptimizerGroups, parameter_groups
from latentlm.training.trainer import Trainer, TrainerConfig

BATCH_SIZE = 6


@dataclass(frozen=True, kw_only=True)
class ToyRecipe:
    """What a toy run is made of."""

    kind: str = "toy"
    dropout: float = 0.2
    hidden_size: int = 8
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.01, num_warmup_steps=3))
    trainer: TrainerConfig


class ToyObjective(Objective):
    """A masked regression with an embedding and dropout, which draws from PyTorch's global generator."""

    kind = "toy"
    frozen_children: ClassVar[tuple[str, ...]] = ("teacher",)

    def __init__(self, recipe: ToyRecipe) -> None:
        super().__init__()
        self.optim = recipe.optim
        self.use_checkpointing = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(5, 4)
            self.body = nn.Sequential(
                nn.Linear(4, recipe.hidden_size),
                nn.GELU(),
                nn.Dropout(recipe.dropout),
                nn.Linear(recipe.hidden_size, 4),
            )
            self.teacher = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).requires_grad_(False).eval()
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        return {"model": OptimizerGroups(self.optim, parameter_groups([self.embedding, self.body], self.optim))}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        return {"targets": batch["mask"].sum()}

    def losses(
        self, batch: Mapping[str, Tensor], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        self.num_batches += 1
        inputs = batch["inputs"] + self.embedding(batch["label"])
        output = checkpoint(self.body, inputs, use_reentrant=False) if self.use_checkpointing else self.body(inputs)
        errors = (output - self.teacher(batch["inputs"])).square().mean(-1)
        loss = (errors * batch["mask"]).sum() / totals["targets"]
        return {"model": {"total": loss, "twice": 2 * loss}}

    def ema_modules(self) -> dict[str, nn.Module]:
        return {"embedding": self.embedding, "body": self.body}

    def sample_grid(self, *, seed: int) -> Tensor:
        torch.rand(3)  # a sampler that draws from the global generator must not disturb the run
        return torch.full((3, 4, 5), 128, dtype=torch.uint8)

    def save_pretrained(self, folder: Path) -> None:
        publish_folder(
            folder, lambda staging: write_tensors(staging / "model.safetensors", unique_tensors(self)), replace=True
        )

    def enable_activation_checkpointing(self) -> None:
        self.use_checkpointing = True


class ToyGan(Objective):
    """A generator and a discriminator that do nothing themselves to keep their gradients apart."""

    kind = "toy_gan"

    def __init__(self, *, train_discriminator_from: int = 0) -> None:
        super().__init__()
        self.train_discriminator_from = train_discriminator_from
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.generator = nn.Linear(4, 4)
            self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))

    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        optim = OptimConfig(lr=0.01, num_warmup_steps=0, grad_clip=None)
        return {
            name: OptimizerGroups(optim, parameter_groups([getattr(self, name)], optim))
            for name in ("generator", "discriminator")
        }

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        return {"items": len(batch["inputs"])}

    def losses(
        self, batch: Mapping[str, Tensor], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        fake = self.generator(batch["inputs"])
        on_fake, on_real = self.discriminator(fake), self.discriminator(batch["target"])
        reconstruction = (fake - batch["target"]).square().mean(-1).sum() / totals["items"]
        losses = {"generator": {"total": reconstruction - on_fake.sum() / totals["items"], "mse": reconstruction}}
        if step >= self.train_discriminator_from:
            hinge = (1 - on_real).relu().sum() + (1 + on_fake).relu().sum()
            losses["discriminator"] = {"total": hinge / totals["items"]}
        return losses

    def ema_modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def save_pretrained(self, folder: Path) -> None:
        publish_folder(
            folder, lambda staging: write_tensors(staging / "model.safetensors", self.state_dict()), replace=True
        )


class ToyDataset(Dataset):
    """Batch b as a function of b alone."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        mask = torch.rand(BATCH_SIZE, generator=generator) < 0.6
        mask[0] = True
        return {
            "inputs": torch.randn(BATCH_SIZE, 4, generator=generator),
            "target": torch.randn(BATCH_SIZE, 4, generator=generator),
            "label": torch.randint(5, (BATCH_SIZE,), generator=generator),
            "mask": mask.float(),
        }


def make_loader(start_batch: int, *, num_workers: int = 0) -> Iterator[Mapping[str, Any]]:
    """Batches from `start_batch` on, many more than a test takes."""
    dataset = ToyDataset(100_000)
    sampler = range(start_batch, len(dataset))
    return iter(DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=num_workers))


def make_recipe(*, dropout: float = 0.2, hidden_size: int = 8, lr: float = 0.01, **trainer: Any) -> ToyRecipe:
    """A recipe without TensorBoard, whose import costs more than the toy's training."""
    settings = {"num_steps": 8, "batch_size": BATCH_SIZE, "checkpoint_every": 2, "device": "cpu", "tensorboard": False}
    return ToyRecipe(
        dropout=dropout,
        hidden_size=hidden_size,
        optim=OptimConfig(lr=lr, num_warmup_steps=3),
        trainer=TrainerConfig(**{**settings, **trainer}),
    )


def make_trainer(run_dir: Path, recipe: ToyRecipe, **arguments: Any) -> Trainer:
    """What the same command would build each time."""
    settings = {"objective": ToyObjective(recipe), "make_loader": make_loader, **arguments}
    return Trainer(config=recipe.trainer, run_dir=run_dir, recipe=recipe, **settings)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their clock."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def final_state(run_dir: Path) -> dict[str, bytes | list]:
    """Everything that two equal runs must have in common, to the bit: every step's numbers, and every final file."""
    last = max((run_dir / "checkpoints").glob("step_*"))
    files = [path for folder in (last, run_dir / "model", run_dir / "model_raw") for path in sorted(folder.iterdir())]
    state = {str(path.relative_to(run_dir)): path.read_bytes() for path in files if path.suffix == ".safetensors"}
    # The run-time type checks of the tests (beartype) draw from Python's generator, so its state proves nothing here.
    random_path = next(path for path in files if path.name == "random_00000.safetensors")
    state[str(random_path.relative_to(run_dir))] = [
        (name, tensor.tolist()) for name, tensor in read_tensors(random_path).items() if not name.startswith("python")
    ]
    return {"metrics": read_metrics(run_dir), **state}
