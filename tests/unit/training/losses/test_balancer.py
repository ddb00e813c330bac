"""The loss balancer: shares of the gradient, micro-batches, checkpoints, and steps that went bad."""

import pytest
import torch
from torch import Tensor

from latentlm.training.losses.balancer import BalancerConfig, LossBalancer

WEIGHTS = {"quiet": 1.0, "loud": 3.0}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_losses(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Two losses per clip whose gradients differ by orders of magnitude and point elsewhere."""
    return {
        "quiet": 1e-3 * (outputs - targets).abs().mean(dim=1),
        "loud": 1e4 * (outputs * targets).sum(dim=1),
    }


def gradient(balancer: LossBalancer, outputs: Tensor, targets: Tensor, *, step: int, num_clips: float) -> Tensor:
    outputs = outputs.clone().requires_grad_()
    total = balancer(some_losses(outputs, targets), outputs, num_clips=num_clips, step=step)
    (found,) = torch.autograd.grad(total, outputs)
    return found


def test_each_loss_has_its_share_of_the_gradient_whatever_its_scale() -> None:
    outputs, targets = noise(4, 50), noise(4, 50, seed=1)
    balancer = LossBalancer(BalancerConfig(total_norm=2.0), WEIGHTS)
    assert gradient(balancer, outputs, targets, step=0, num_clips=4.0).abs().max() == 0  # only measured
    found = gradient(balancer, outputs, targets, step=1, num_clips=4.0)
    expected = torch.zeros(4, 50)
    for name, share in (("quiet", 0.25), ("loud", 0.75)):
        raw = outputs.clone().requires_grad_()
        (own,) = torch.autograd.grad(some_losses(raw, targets)[name].sum(), raw)
        expected += 2.0 * share * own / own.norm(dim=1).mean()
    assert torch.allclose(found, expected / 4, rtol=1e-4, atol=1e-7)  # float32, through a scale of 2^12


def test_the_value_is_the_weighted_sum_although_the_gradient_is_not_its() -> None:
    outputs, targets = noise(4, 50).requires_grad_(), noise(4, 50, seed=1)
    losses = some_losses(outputs, targets)
    balancer = LossBalancer(BalancerConfig(), WEIGHTS)
    for step in range(2):
        total = balancer(losses, outputs, num_clips=4.0, step=step)
    plain = sum(WEIGHTS[name] * values.mean().item() for name, values in losses.items())
    assert total.item() == pytest.approx(plain, rel=1e-5)


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts = (LossBalancer(BalancerConfig(), WEIGHTS) for _ in range(2))
    for step in range(4):
        outputs, targets = noise(6, 50, seed=step), noise(6, 50, seed=100 + step)
        one = gradient(whole, outputs, targets, step=step, num_clips=6.0)
        others = [
            gradient(parts, outputs[part], targets[part], step=step, num_clips=6.0)
            for part in (slice(0, 4), slice(4, 6))
        ]
        assert torch.allclose(torch.cat(others), one, rtol=1e-5)  # float32 sums in another order
    for (name, one), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5), name


def test_the_average_forgets_by_its_decay() -> None:
    balancer = LossBalancer(BalancerConfig(ema_decay=0.5), WEIGHTS)
    targets = noise(2, 50, seed=1)
    norms = []
    for step, size in enumerate((1.0, 2.0, 4.0)):
        gradient(balancer, noise(2, 50), size * targets, step=step, num_clips=2.0)
        norms.append(1e4 * size * targets.norm(dim=1).mean().item())
    gradient(balancer, noise(2, 50), targets, step=3, num_clips=2.0)  # takes in what step 2 left
    expected = (0.25 * norms[0] + 0.5 * norms[1] + norms[2]) / 1.75
    assert balancer.average_norms()["loud"].item() == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_joins_later_is_measured_first_and_then_heard() -> None:
    balancer = LossBalancer(BalancerConfig(), WEIGHTS)
    outputs, targets = noise(2, 50), noise(2, 50, seed=1)

    def pull(names: tuple[str, ...], step: int) -> Tensor:
        raw = outputs.clone().requires_grad_()
        losses = {name: values for name, values in some_losses(raw, targets).items() if name in names}
        (found,) = torch.autograd.grad(balancer(losses, raw, num_clips=2.0, step=step), raw)
        return found

    pull(("quiet",), 0)
    alone = pull(("quiet",), 1)
    joined = pull(("quiet", "loud"), 2)
    assert torch.allclose(joined, alone / 4, rtol=1e-5)  # its share has gone from 1 to 1/4, the other is not heard yet
    assert not torch.allclose(pull(("quiet", "loud"), 3), joined, rtol=0.1)


def test_a_restored_balancer_continues_bit_for_bit() -> None:
    first = LossBalancer(BalancerConfig(), WEIGHTS)
    for step in range(3):
        gradient(first, noise(2, 50, seed=step), noise(2, 50, seed=9), step=step, num_clips=2.0)
    second = LossBalancer(BalancerConfig(), WEIGHTS)
    second.load_state_dict(first.state_dict())
    for step in range(3, 5):
        arguments = noise(2, 50, seed=step), noise(2, 50, seed=9)
        one = gradient(first, *arguments, step=step, num_clips=2.0)
        assert torch.equal(one, gradient(second, *arguments, step=step, num_clips=2.0))


def test_numbers_that_are_not_finite_leave_no_trace() -> None:
    balancer = LossBalancer(BalancerConfig(), WEIGHTS)
    outputs, targets = noise(2, 50), noise(2, 50, seed=1)
    gradient(balancer, outputs, targets, step=0, num_clips=2.0)
    gradient(balancer, outputs, targets, step=1, num_clips=2.0)
    before = balancer.average_norms()
    assert not gradient(balancer, outputs, targets * torch.inf, step=2, num_clips=2.0).isfinite().all()
    gradient(balancer, outputs, targets, step=3, num_clips=2.0)
    after = balancer.average_norms()
    assert after["loud"].isfinite()
    assert after["loud"].item() == pytest.approx(before["loud"].item(), rel=1e-5)


def test_evaluation_mode_measures_nothing() -> None:
    balancer = LossBalancer(BalancerConfig(), WEIGHTS).eval()
    gradient(balancer, noise(2, 50), noise(2, 50, seed=1), step=0, num_clips=2.0)
    assert all(not buffer.any() for buffer in balancer.state_dict().values())


def test_unknown_losses_and_senseless_settings_are_refused() -> None:
    balancer = LossBalancer(BalancerConfig(), {"quiet": 1.0})
    outputs = noise(2, 50).requires_grad_()
    with pytest.raises(ValueError, match="not for loud"):
        balancer(some_losses(outputs, outputs), outputs, num_clips=2.0, step=0)
    with pytest.raises(ValueError, match="ema_decay"):
        BalancerConfig(ema_decay=1.0)
    with pytest.raises(ValueError, match="total_norm"):
        BalancerConfig(total_norm=0.0)
