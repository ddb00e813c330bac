"""How Transfusion reads with a cache: tokens that are there to stay, and pictures that are still being denoised.

Both are one pass of the backbone over new positions. A picture under way stands where the stream's cache ends, and what
it writes there is overwritten by the next evaluation, and at last by the finished picture.

Shapes: S streams, T new positions, N latents of a picture, C latent_dim.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentlm.baselines.transfusion.model import Transfusion
from latentlm.generation.rows import Stream, Token
from latentlm.models.kv_cache import CacheView, KVCache


class PictureView(CacheView):
    """A window on the cache in which a position sees up to its reach, not only up to itself.

    Args:
        cache: The cache.
        positions: Slot of every new token.
        reach: The last slot that each of them sees; every slot up to it is written by this pass or was before.
        length: Slots to read.
        rows: Cache rows of the batch.
    """

    def __init__(
        self,
        cache: KVCache,
        positions: Int[Tensor, "S T"],
        *,
        reach: Int[Tensor, "S T"],
        length: int,
        rows: Int[Tensor, "S"],
    ) -> None:
        super().__init__(cache, positions, length, rows)
        self._slots = torch.arange(length, device=reach.device)
        self._reach = reach

    @property
    def attention_mask(self) -> Bool[Tensor, "S 1 T slots"]:
        """Slot s is visible to a query whose reach is r when s <= r."""
        return (self._slots <= self._reach[..., None])[:, None]


class StreamReader:
    """Passes of a model over streams, which keep their place in the cache themselves.

    Args:
        model: In evaluation mode.
        cache: One row per stream; its last slot belongs to padding.
    """

    def __init__(self, model: Transfusion, cache: KVCache) -> None:
        self.model = model
        self.cache = cache

    @torch.no_grad()
    def read_pending(self, streams: list[Stream]) -> None:
        """Every stream reads its pending tokens, pictures among them clean, and keeps its last hidden state."""
        model, device, width = self.model, self.model.device, max(len(stream.pending) for stream in streams)
        input_ids = torch.full((len(streams), width), model.config.vocabulary.pad_id)
        reach = torch.zeros_like(input_ids)
        flat_positions: list[int] = []
        latents = [torch.zeros(0, model.config.image.latent_dim, device=device)]
        for b, stream in enumerate(streams):
            reach[b, : len(stream.pending)] = stream.length + torch.tensor(_reach(stream.pending))
            for t, token in enumerate(stream.pending):
                if isinstance(token, int):
                    input_ids[b, t] = token
                else:
                    flat_positions.append(b * width + t)
                    latents.append(token[1][None])
        starts = torch.tensor([stream.length for stream in streams])
        counts = torch.tensor([len(stream.pending) for stream in streams])
        length = int((starts + counts).max())
        self.cache.reserve(length + 1)
        columns = torch.arange(width)
        # Right padding goes to the cache's last slot, which no row ever reaches and no query sees.
        positions = torch.where(columns < counts[:, None], starts[:, None] + columns, self.cache.max_length - 1)
        latent_positions = torch.tensor(flat_positions, dtype=torch.long, device=device)
        hidden_states = model.decode_step(
            input_ids.to(device),
            torch.cat(latents),
            latent_positions,
            torch.full_like(latent_positions, model.clean_timestep),
            positions.to(device),
            self._view(streams, positions, reach, length=length),
        )
        last = hidden_states[torch.arange(len(streams), device=device), (counts - 1).to(device)]
        for stream, hidden_state in zip(streams, last, strict=True):
            stream.length += len(stream.pending)
            stream.pending = []
            stream.hidden_state = hidden_state

    @torch.no_grad()
    def predict(
        self, streams: list[Stream], noisy_latents: Float[Tensor, "S N C"], timestep: Float[Tensor, ""]
    ) -> Float[Tensor, "S N C"]:
        """One evaluation of the network, on a picture behind what each stream has read; float32.

        Args:
            streams: With nothing pending.
            noisy_latents: x_t of each picture.
            timestep: As the diffusion process counts it.
        """
        num_streams, num_latents, _ = noisy_latents.shape
        device = self.model.device
        starts = torch.tensor([stream.length for stream in streams])
        positions = starts[:, None] + torch.arange(num_latents)
        length = int(positions.max()) + 1
        self.cache.reserve(length + 1)
        reach = positions[:, -1:].expand_as(positions)
        hidden_states = self.model.decode_step(
            torch.full_like(positions, self.model.config.vocabulary.pad_id).to(device),
            noisy_latents.flatten(0, 1),
            torch.arange(num_streams * num_latents, device=device),
            timestep.expand(num_streams * num_latents),
            positions.to(device),
            self._view(streams, positions, reach, length=length),
        )
        is_latent = torch.ones(num_streams, num_latents, dtype=torch.bool, device=device)
        return self.model.predict(hidden_states, timestep.expand(num_streams), is_latent).float()

    def _view(self, streams: list[Stream], positions: Tensor, reach: Tensor, *, length: int) -> PictureView:
        device = self.model.device
        rows = torch.tensor([stream.cache_row for stream in streams], device=device)
        return PictureView(self.cache, positions.to(device), reach=reach.to(device), length=length, rows=rows)


def _reach(tokens: list[Token]) -> list[int]:
    """For each token the last of these that it sees: itself, or the last latent of its picture."""
    reach = list(range(len(tokens)))
    for t in reversed(range(len(tokens) - 1)):
        if not isinstance(tokens[t], int) and not isinstance(tokens[t + 1], int):
            reach[t] = reach[t + 1]
    return reach
