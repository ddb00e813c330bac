"""Random numbers that depend on (seed, key) alone, not on the order in which they are drawn.

Each latent, image or document carries a 64-bit key. Its noise is a function of the step's seed and that key, so it is
the same whatever batch, packing order, rank or worker it meets, and a resumed run draws it again without any saved
generator state. The generator is SplitMix64 (Steele et al. 2014) evaluated at a counter; normals by Box-Muller.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def signed_int64(value: int) -> int:
    """The int64 with the same lowest 64 bits: any integer can be a seed."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = signed_int64(0x9E3779B97F4A7C15)
_MIX_1 = signed_int64(0xBF58476D1CE4E5B9)
_MIX_2 = signed_int64(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's >> copies the sign bit)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def combine_keys(*keys: int | Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Hash integers and integer tensors (broadcast together) into one int64 key; order matters."""
    # Numbers stay 0-dim on the CPU, where they mix with tensors of any device without making the host wait.
    result = torch.zeros((), dtype=torch.int64, device="cpu")
    for key in keys:
        key = torch.tensor(signed_int64(key), device="cpu") if isinstance(key, int) else key.long()
        result = _mix(result * _MIX_1 + _mix(key + _GOLDEN))
    return result


def keyed_uniform(
    seed: int | Int[Tensor, "*batch"], keys: Int[Tensor, "*batch"], shape: tuple[int, ...] = (), *, stream: int = 0
) -> Float[Tensor, "..."]:
    """Uniform numbers in the open interval (0, 1), float32, shape `keys.shape + shape`.

    Args:
        seed: For example the hash of run seed and step; a tensor gives every item its own.
        keys: One key per item; equal keys give equal numbers.
        shape: Numbers per item.
        stream: Separates draws for different purposes at the same seed and key.
    """
    count = math.prod(shape)
    bases = combine_keys(seed, stream, keys)
    counters = torch.arange(count, dtype=torch.int64, device=keys.device) * _GOLDEN
    bits = _mix(bases.reshape(-1, 1) + counters)
    # 23 bits and a half step: exactly representable in float32, never 0 and never 1.
    uniform = (_shift_right(bits, 41).float() + 0.5) * 2.0**-23
    return uniform.reshape((*keys.shape, *shape))


def keyed_normal(
    seed: int | Int[Tensor, "*batch"], keys: Int[Tensor, "*batch"], shape: tuple[int, ...] = (), *, stream: int = 0
) -> Float[Tensor, "..."]:
    """Standard normal numbers, float32, shape `keys.shape + shape`; arguments as in `keyed_uniform`."""
    uniform = keyed_uniform(seed, keys, (2, *shape), stream=stream)
    radius, angle = uniform.movedim(keys.dim(), 0)
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
