"""One optimizer step: accumulation by counts, bad numbers, several optimizers, precisions."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from toy_training import BATCH_SIZE, ToyDataset, ToyGan, ToyObjective, make_recipe

from latentlm.training.ema import ExponentialMovingAverage
from latentlm.training.objective import Objective
from latentlm.training.step import OptimizationStep, StepResult, fetch


def make_step(objective: Objective, *, precision: str = "float32", num_steps: int = 10) -> OptimizationStep:
    ema = ExponentialMovingAverage(objective.ema_modules(), half_life_steps=2.0)
    return OptimizationStep(objective, num_steps=num_steps, precision=precision, ema=ema, seed=0)


def everything(take_step: OptimizationStep) -> dict[str, Tensor]:
    """Weights, averages and optimizer state, copied."""
    tensors = {f"weight {name}": p for name, p in take_step.objective.named_parameters()}
    tensors |= {f"average {name}": average for name, average in take_step.ema.state_dict().items()}
    for optimizer_name, optimizer in take_step.optimizers.items():
        for index, entry in enumerate(optimizer.state.values()):
            tensors |= {f"{optimizer_name} {index} {key}": value for key, value in entry.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def test_four_unequal_micro_batches_equal_one_large_batch() -> None:
    whole = {
        name: torch.cat([ToyDataset(4)[index][name] for index in range(4)]) for name in ("inputs", "label", "mask")
    }
    whole = {name: x.double() if x.is_floating_point() else x for name, x in whole.items()}
    results = []
    for sizes in ([4 * BATCH_SIZE], [1, 12, 4, 7]):
        objective = ToyObjective(make_recipe(dropout=0.0)).double()
        parts = [
            dict(zip(whole, columns, strict=True))
            for columns in zip(*(x.split(sizes) for x in whole.values()), strict=True)
        ]
        assert len({part["mask"].sum().item() for part in parts}) == len(parts), "the counts should differ"
        take_step = make_step(objective)
        result = take_step(parts, 0)
        results.append((result, [p.grad for p in objective.parameters() if p.grad is not None]))
    (one, one_grads), (many, many_grads) = results
    # float64: only the order of sums differs. Losses are reported in float32.
    torch.testing.assert_close(many_grads, one_grads, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(many.values, one.values, rtol=1e-6, atol=0)


def test_the_reported_losses_norm_and_learning_rate_are_those_of_the_step() -> None:
    objective = ToyObjective(make_recipe(dropout=0.0))
    reference = copy.deepcopy(objective)
    take_step = make_step(objective)
    [record] = fetch([(1, take_step([ToyDataset(1)[0]], 0))])
    batch = ToyDataset(1)[0]
    loss = reference.losses(batch, step=0, totals=reference.counts(batch))["model"]["total"]
    loss.backward()
    squares = [p.grad.square().sum() for p in reference.parameters() if p.grad is not None]
    assert record.values["model/total"] == loss.item()
    assert record.values["model/twice"] == 2 * loss.item()
    assert record.values["model/grad_norm"] == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-5)
    assert record.values["model/lr"] == pytest.approx(0.01 / 3)
    assert (record.step, record.skipped, record.bad) == (1, False, False)


def test_gradients_are_clipped_to_the_norm_before_the_step() -> None:
    objective = ToyObjective(make_recipe())
    objective.optim = type(objective.optim)(lr=0.01, grad_clip=1e-3)
    [record] = fetch([(1, make_step(objective)([ToyDataset(1)[0]], 0))])
    grads = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    assert record.values["model/grad_norm"] > 0.1
    assert grads.norm().item() == pytest.approx(1e-3, rel=1e-3)  # PyTorch adds 1e-6 to the norm it divides by


class Poisoned(ToyObjective):
    """Turns a chosen number bad at chosen steps."""

    place = "loss"
    value = float("nan")
    steps: tuple[int, ...] = ()

    def losses(
        self, batch: Mapping[str, Tensor], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        if step in self.steps and self.place == "input":
            batch = {**batch, "inputs": batch["inputs"].clone()}
            batch["inputs"][0, 0] = self.value
        losses = super().losses(batch, step=step, totals=totals)
        total = losses["model"]["total"]
        if step in self.steps and self.place == "loss":
            losses["model"]["total"] = total + self.value
        if step in self.steps and self.place == "one gradient":
            losses["model"]["total"] = total + _PoisonGradient.apply(self.body[0].bias, self.value)
        return losses


class _PoisonGradient(torch.autograd.Function):
    """Adds zero, but with one bad entry in the gradient."""

    @staticmethod
    def forward(context: object, parameter: Tensor, value: float) -> Tensor:
        context.shape, context.value = parameter.shape, value  # pyright: ignore[reportAttributeAccessIssue]
        return parameter.new_zeros(())

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = torch.zeros(context.shape)  # pyright: ignore[reportAttributeAccessIssue]
        gradient[0] = context.value  # pyright: ignore[reportAttributeAccessIssue]
        return gradient, None


@pytest.mark.parametrize("micro_step", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["input", "loss", "one gradient"])
def test_a_step_with_a_bad_number_changes_no_bit_and_the_next_one_counts_again(
    place: str, value: float, micro_step: int
) -> None:
    objective = Poisoned(make_recipe())
    objective.place, objective.value = place, value
    take_step = make_step(objective)
    batches = [ToyDataset(9)[index] for index in range(9)]
    take_step(batches[:3], 0)
    before = everything(take_step)

    calls = iter(range(3))
    original = Poisoned.losses

    def poison_one_micro_step(batch: Mapping[str, Tensor], **arguments: object) -> dict[str, dict[str, Tensor]]:
        objective.steps = (1,) if next(calls) == micro_step else ()
        return original(objective, batch, **arguments)  # pyright: ignore[reportArgumentType]

    objective.losses = poison_one_micro_step  # pyright: ignore[reportAttributeAccessIssue]
    [record] = fetch([(2, take_step(batches[3:6], 1))])
    assert (record.skipped, record.bad) == (True, True)
    assert not differing(before, everything(take_step))

    del objective.losses
    objective.steps = ()
    [record] = fetch([(3, take_step(batches[6:], 2))])
    assert not record.skipped
    assert "weight body.0.weight" in differing(before, everything(take_step))


def test_no_optimizer_gets_a_gradient_from_another_ones_loss() -> None:
    gan = ToyGan()
    alone = copy.deepcopy(gan)
    batch = ToyDataset(1)[0]
    totals = gan.counts(batch)
    make_step(gan)([batch], 0)
    for name in ("generator", "discriminator"):
        parameters = list(getattr(alone, name).parameters())
        loss = alone.losses(batch, step=0, totals=totals)[name]["total"]
        expected = torch.autograd.grad(loss, parameters)
        actual = [p.grad for p in getattr(gan, name).parameters()]
        torch.testing.assert_close(
            actual, list(expected), rtol=1e-6, atol=1e-8
        )  # the same float32 graph, sums reordered


def test_an_optimizer_without_a_loss_takes_no_step() -> None:
    gan = ToyGan(train_discriminator_from=1)
    take_step = make_step(gan)
    before = everything(take_step)
    take_step([ToyDataset(1)[0]], 0)
    after = {name: p.detach().clone() for name, p in gan.named_parameters()}
    assert all(torch.equal(before[f"weight {n}"], p) for n, p in after.items() if n.startswith("discriminator"))
    assert not torch.equal(before["weight generator.weight"], after["generator.weight"])
    take_step([ToyDataset(1)[0]], 1)
    assert not torch.equal(after["discriminator.0.weight"], gan.discriminator[0].weight)


def test_a_bad_number_in_one_optimizer_holds_back_the_other_too() -> None:
    gan = ToyGan()
    take_step = make_step(gan)
    before = everything(take_step)
    batch = ToyDataset(1)[0]
    batch["target"][0] = float("inf")  # reaches the discriminator by the real example, the generator by its error
    assert fetch([(1, take_step([batch], 0))])[0].skipped
    assert all(torch.equal(before[f"weight {n}"], p) for n, p in gan.named_parameters())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_keeps_weights_in_float32_and_follows_the_float32_gradient(precision: str) -> None:
    results: dict[str, tuple[StepResult, list[Tensor]]] = {}
    for name in ("float32", precision):
        objective = ToyObjective(make_recipe(dropout=0.0))
        take_step = make_step(objective, precision=name)
        if name == "float16":
            take_step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        result = take_step([ToyDataset(1)[0]], 0)
        results[name] = (result, [p.grad for p in objective.parameters() if p.grad is not None])
        assert all(p.dtype == torch.float32 for p in objective.parameters())
        assert not result.skipped.item()
    exact, reduced = results["float32"][1], results[precision][1]
    # bfloat16 keeps 8 bits, so products of a few layers agree to about one part in a hundred of the largest entry.
    for one, other in zip(exact, reduced, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0.03 * one.abs().max().item())


def test_a_float16_overflow_halves_the_scale_without_counting_as_bad_until_the_scale_is_one() -> None:
    objective = Poisoned(make_recipe())
    objective.place, objective.value, objective.steps = "one gradient", float("inf"), tuple(range(10))
    take_step = make_step(objective, precision="float16")
    take_step.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = everything(take_step)
    records = [fetch([(step + 1, take_step([ToyDataset(1)[0]], step))])[0] for step in range(4)]
    assert [record.skipped for record in records] == [True] * 4
    assert [record.bad for record in records] == [False, False, True, True]  # at scales 4, 2, 1, 0.5
    assert all(torch.equal(before[f"weight {n}"], p) for n, p in objective.named_parameters())


def test_activation_checkpointing_changes_no_gradient() -> None:
    grads = []
    for enabled in (False, True):
        objective = ToyObjective(make_recipe())
        if enabled:
            objective.enable_activation_checkpointing()
        torch.manual_seed(0)
        make_step(objective)([ToyDataset(1)[0]], 0)
        grads.append([p.grad for p in objective.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_every_trainable_parameter_must_have_exactly_one_owner() -> None:
    orphaned = ToyGan()
    orphaned.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no optimizer owns extra\.weight, extra\.bias"):
        make_step(orphaned)
    shared = ToyGan()
    shared.discriminator = shared.generator  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="belongs to two optimizer groups"):
        make_step(shared)
