"""What the loop needs of `torch.distributed` when a launcher started several ranks; with one process it all vanishes.

Every rank sees its own batches and the same weights. Losses are normalised by counts summed over ranks, so gradients
add up by a plain sum and the result does not depend on how a batch was split.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This process's rank; 0 without torch.distributed."""
    return dist.get_rank() if _is_running() else 0


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if _is_running() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` summed over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank; all ranks get the same answer."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item())


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over ranks. A parameter that one rank did not use counts as zero there."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def copy_from_rank_0(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def gather(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every rank's `state`, by rank, on every rank."""
    gathered: list = [state] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, state)
    return gathered


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()
