"""The image head: a small ViT from the backbone's states of one picture to the prediction (LatentLM, Section 3.2.2).

    hidden_states of a picture ─▶ layers: attention within the picture, SwiGLU ─▶ final_layer ─▶ prediction
    timestep embedding ──────────────────────────────────────── AdaLN: shift, scale ──┘

The LatentLM paper gives its Transfusion "a 6-layer ViT as the image head", so that both models have as many parameters;
LatentLM spends them on its diffusion head. It says no more. At its sizes (Table 8) a head of six layers like the
backbone's has 336M parameters, LatentLM's 319M; with AdaLN-Zero in every layer it would be 487M. So the layers are
plain, and know the timestep from their input, whose latents carry its embedding; AdaLN is an option.

Shapes: P pictures, N latents of the largest, D hidden_size, C latent_dim.
"""

from jaxtyping import Bool, Float
from torch import Tensor, arange, nn

from latentlm.models.diffusion_head import FinalLayer
from latentlm.models.transformer import Attention, DecoderLayer, TransformerConfig
from latentlm.nn.adaln import AdaLNModulation, modulate
from latentlm.nn.feedforward import SwiGLU
from latentlm.nn.norm import RMSNorm
from latentlm.nn.rope import rotary_frequencies, rotary_tables


class ModulatedLayer(nn.Module):
    """x + gate attention(modulate(norm(x))), then the same with the SwiGLU (adaLN-Zero: DiT, Figure 3)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # Without weights: the scale of AdaLN takes their place.
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=False)
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.modulation = AdaLNModulation(config.hidden_size, 6)

    def forward(
        self,
        x: Float[Tensor, "P N D"],
        condition: Float[Tensor, "P 1 D"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "P 1 N N"],
    ) -> Float[Tensor, "P N D"]:
        attn_shift, attn_scale, attn_gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)
        normed = modulate(self.norm(x), attn_shift, attn_scale)
        x = x + attn_gate * self.self_attn(normed, rotary, attention_mask, 0, None)  # no cache, so no layer number
        return x + mlp_gate * self.mlp(modulate(self.norm(x), mlp_shift, mlp_scale))


class ImageHead(nn.Module):
    """What each latent of a picture predicts.

    Args:
        config: The backbone's: width, heads and norms are the same.
        num_layers: Of the ViT.
        latent_dim: C.
        adaln: Modulate every layer by the timestep, not only the last.
    """

    def __init__(self, config: TransformerConfig, *, num_layers: int, latent_dim: int, adaln: bool) -> None:
        super().__init__()
        self.config = config
        self.adaln = adaln
        layer = ModulatedLayer if adaln else DecoderLayer
        self.layers = nn.ModuleList(layer(config) for _ in range(num_layers))
        self.final_layer = FinalLayer(config.hidden_size, latent_dim, config.norm_eps)

    def forward(
        self,
        hidden_states: Float[Tensor, "P N D"],
        condition: Float[Tensor, "P D"],
        is_latent: Bool[Tensor, "P N"],
    ) -> Float[Tensor, "P N C"]:
        """Predictions; those of padding mean nothing.

        Args:
            hidden_states: The backbone's, of the latents of each picture.
            condition: Embedding of each picture's timestep.
            is_latent: False where a smaller picture is padded.
        """
        num_pictures, num_latents, _ = hidden_states.shape
        frequencies = rotary_frequencies(
            self.config.head_dim,
            theta=self.config.rope_theta,
            inclusive=self.config.rope_inclusive,
            device=hidden_states.device,
        )
        rotary = rotary_tables(arange(num_latents, device=hidden_states.device).expand(num_pictures, -1), frequencies)
        mask = is_latent[:, None, None, :].expand(-1, 1, num_latents, -1)
        x, condition = hidden_states, condition[:, None]  # (P, 1, D): the same for all latents of a picture
        for layer in self.layers:
            # Without a cache, layers need no number.
            x = layer(x, condition, rotary, mask) if self.adaln else layer(x, rotary, mask, 0, None)
        return self.final_layer(x, condition)
