"""Diffusion head: denoises one latent vector, conditioned on one hidden state (paper Section 2.1, Head Architecture).

A small residual network: input projection, blocks of pre-RMSNorm and SwiGLU under AdaLN-Zero, output projection. The
timestep and the hidden state modulate every block. It sees no other position: all context reaches it through the
hidden state, which is what makes the loss per token.

Shapes: "*n" any leading axes (latents; noises per latent), C latent_dim, D backbone hidden_size, W head width.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from latentlm.nn.adaln import AdaLNModulation, modulate
from latentlm.nn.feedforward import SwiGLU
from latentlm.nn.norm import RMSNorm
from latentlm.nn.timestep_embedding import TimestepEmbedding


@dataclass(frozen=True, kw_only=True)
class DiffusionHeadConfig:
    """Sizes of the head."""

    num_layers: int = 3
    """Residual blocks: 3 in the paper's scaling runs, 6 in Table 1 and Table 8."""
    hidden_size: int | None = None
    """Width W; None means the backbone's width."""
    intermediate_size: int | None = None
    """Width of the SwiGLU; None means the backbone's."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""

    def __post_init__(self) -> None:
        if self.num_layers < 0:
            raise ValueError(f"num_layers is {self.num_layers}; it must be at least 0, which leaves a linear head")
        for name in ("hidden_size", "intermediate_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or null for the backbone's")


class DiffusionBlock(nn.Module):
    """x + gate * FFN(modulate(norm(x)))."""

    def __init__(self, hidden_size: int, intermediate_size: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, eps=norm_eps)
        self.mlp = SwiGLU(hidden_size, intermediate_size)
        self.modulation = AdaLNModulation(hidden_size, 3)

    def forward(self, x: Float[Tensor, "*n W"], condition: Float[Tensor, "*m W"]) -> Float[Tensor, "*n W"]:
        shift, scale, gate = self.modulation(condition)
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))


class FinalLayer(nn.Module):
    """linear(modulate(norm(x))), zero at initialisation (AdaLN-Zero)."""

    def __init__(self, hidden_size: int, latent_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden_size, eps=norm_eps, elementwise_affine=False)
        self.modulation = AdaLNModulation(hidden_size, 2)
        self.linear = nn.Linear(hidden_size, latent_dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Float[Tensor, "*n W"], condition: Float[Tensor, "*m W"]) -> Float[Tensor, "*n C"]:
        shift, scale = self.modulation(condition)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiffusionHead(nn.Module):
    """epsilon_theta(x^t, t, h) of Eq. 3; what it predicts (noise, v, sample, velocity) is set by the process.

    Args:
        config: Sizes of the head.
        latent_dim: C.
        backbone_hidden_size: D, width of the hidden states that condition it.
        backbone_intermediate_size: Default width of the SwiGLU.
    """

    def __init__(
        self,
        config: DiffusionHeadConfig,
        *,
        latent_dim: int,
        backbone_hidden_size: int,
        backbone_intermediate_size: int,
    ) -> None:
        super().__init__()
        width = config.hidden_size or backbone_hidden_size
        intermediate_size = config.intermediate_size or backbone_intermediate_size
        self.hidden_proj = nn.Linear(backbone_hidden_size, width, bias=False)
        self.timestep_embedding = TimestepEmbedding(width)
        self.latent_proj = nn.Linear(latent_dim, width, bias=False)
        self.blocks = nn.ModuleList(
            DiffusionBlock(width, intermediate_size, config.norm_eps) for _ in range(config.num_layers)
        )
        self.final_layer = FinalLayer(width, latent_dim, config.norm_eps)

    def project_condition(self, hidden_states: Float[Tensor, "*m D"]) -> Float[Tensor, "*m W"]:
        """The hidden states' share of the condition: the same at every denoising step, so computed once per latent."""
        return self.hidden_proj(hidden_states)

    def denoise(self, noisy_latents: Float[Tensor, "*n C"], condition: Float[Tensor, "*m W"]) -> Float[Tensor, "*n C"]:
        """Prediction for `noisy_latents`.

        Args:
            noisy_latents: x^t.
            condition: `project_condition(hidden_states) + timestep_embedding(timesteps)`; broadcasts over leading axes.
        """
        x = self.latent_proj(noisy_latents)
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)

    def forward(
        self,
        noisy_latents: Float[Tensor, "*n C"],
        timesteps: Float[Tensor, "*t"] | Int[Tensor, "*t"],
        hidden_states: Float[Tensor, "*m D"],
    ) -> Float[Tensor, "*n C"]:
        """Prediction for `noisy_latents`; `timesteps` and `hidden_states` broadcast against their leading axes.

        Args:
            noisy_latents: x^t.
            timesteps: As the diffusion process counts them; a scalar serves all latents.
            hidden_states: h of the position before each latent.
        """
        return self.denoise(noisy_latents, self.project_condition(hidden_states) + self.timestep_embedding(timesteps))
