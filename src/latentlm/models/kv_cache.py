"""Keys and values of past positions.

Row b keeps the key of position p in slot p, so rows may have different lengths: a query at position p sees the slots
up to p, whatever lies behind them. Slots of right padding are overwritten when the row reaches them.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class KVCache:
    """Cache for `num_rows` sequences of at most `max_length` positions, until `reserve` makes room for more.

    Shapes: L layers, R rows, H key-value heads, S max_length, Dh head_dim. Memory: 2·L·R·H·S·Dh elements.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_rows: int,
        num_kv_heads: int,
        head_dim: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (num_layers, num_rows, num_kv_heads, max_length, head_dim)
        # Zeros, not empty: masked slots are multiplied by zero in attention, and 0 · NaN is NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.max_length = max_length

    def reserve(self, length: int) -> None:
        """Make room for `length` positions, by at least as many again as there are, so that growing is seldom."""
        if length > self.max_length:
            more = max(length, 2 * self.max_length) - self.max_length
            self.keys, self.values = (F.pad(store, (0, 0, 0, more)) for store in (self.keys, self.values))
            self.max_length += more

    def view(self, positions: Int[Tensor, "B T"], *, length: int, rows: Int[Tensor, "B"] | None = None) -> "CacheView":
        """The part of the cache that one forward pass writes to and reads from.

        Args:
            positions: Position of every new token; it is written to that slot.
            length: Slots to read: one more than the largest position, known to the caller without a device sync.
            rows: Cache rows of the batch; None means all rows in order.

        Raises:
            ValueError: If the tokens do not fit into the cache.
        """
        if length > self.max_length:
            raise ValueError(
                f"the sequence needs {length} positions but the cache holds {self.max_length}; "
                "ask for fewer new tokens or allocate a longer cache"
            )
        return CacheView(self, positions, length, rows)


class CacheView:
    """One forward pass's window on a `KVCache`."""

    def __init__(self, cache: KVCache, positions: Tensor, length: int, rows: Tensor | None) -> None:
        self._cache = cache
        self._positions = positions
        self._length = length
        self._rows = rows
        num_rows = cache.keys.shape[1]
        self._write_rows = torch.arange(num_rows, device=positions.device) if rows is None else rows

    @property
    def attention_mask(self) -> Bool[Tensor, "B 1 T S"]:
        """Slot s is visible to a query at position p when s <= p."""
        slots = torch.arange(self._length, device=self._positions.device)
        return (slots <= self._positions[..., None])[:, None]

    def update(
        self, layer: int, keys: Float[Tensor, "B H T Dh"], values: Float[Tensor, "B H T Dh"]
    ) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        """Write the new keys and values of one layer; return all that the queries may look at."""
        result = []
        for store, new in ((self._cache.keys[layer], keys), (self._cache.values[layer], values)):
            # Advanced indices around the head axis put it last: (B, T, H, Dh).
            store[self._write_rows[:, None], :, self._positions] = new.transpose(1, 2).to(store.dtype)
            window = store[:, :, : self._length]
            result.append((window if self._rows is None else window[self._rows]).to(new.dtype))
        return result[0], result[1]
