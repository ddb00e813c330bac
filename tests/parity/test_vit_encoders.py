"""Encoders with the weights of others give the others' hidden states, through the key maps."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig as TheirConfig
from transformers import ViTModel

from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.image_autoencoder import patchify
from latentlm.tokenizers.pretrained_encoders import load_encoder
from latentlm.tokenizers.vit import ViTConfig

SIZE, LAYERS, HEADS, PATCH, IMAGE = 32, 3, 4, 4, 16


def make_tokenizer(**changes) -> ImageTokenizer:
    sub_layer_norm = changes.pop("sub_layer_norm", False)
    vit = ViTConfig(
        hidden_size=changes.pop("hidden_size", SIZE),
        num_layers=changes.pop("num_layers", LAYERS),
        num_heads=HEADS,
        sub_layer_norm=sub_layer_norm,
    )
    settings = {"image_size": IMAGE, "patch_size": PATCH, **changes}
    return ImageTokenizer(ImageTokenizerConfig(encoder=vit, decoder=vit, **settings)).eval()


def encode(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    grid = tokenizer.grid(*images.shape[2:])
    with torch.no_grad():
        return tokenizer.encoder(patchify(images, tokenizer.config.patch_size), grid)


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Large enough to matter everywhere; norm weights around one."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    is_norm = ("norm", "_ln")
    return {
        name: tensor + 1 if name.endswith("weight") and any(word in name for word in is_norm) else tensor
        for name, tensor in tensors.items()
    }


@pytest.fixture
def huggingface() -> ViTModel:
    config = TheirConfig(
        hidden_size=SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * SIZE,
        image_size=IMAGE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
    )
    model = ViTModel(config, add_pooling_layer=True).eval()
    state = model.state_dict()
    model.load_state_dict(random_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}))
    return model


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_hidden_states_equal_huggingface_vit(huggingface: ViTModel, prefix: str) -> None:
    tokenizer = make_tokenizer()
    state = {prefix + name: tensor for name, tensor in huggingface.state_dict().items()}
    loaded = load_encoder(tokenizer.encoder, state, tokenizer.config)
    assert loaded.naming == "huggingface"
    assert loaded.missing == ()
    assert set(loaded.unused) == {prefix + "pooler.dense.weight", prefix + "pooler.dense.bias"}
    images = pictures(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        expected = huggingface(images).last_hidden_state[:, 1:]
    assert expected.std() > 0.1  # the weights do real work, a random bias of the key included
    assert torch.allclose(encode(tokenizer, images), expected, atol=1e-5, rtol=0)  # float32 through three layers


def test_saved_huggingface_files_load_whatever_names_their_version_writes(huggingface: ViTModel, tmp_path) -> None:
    huggingface.save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    loaded = load_encoder(tokenizer.encoder, tmp_path / "model.safetensors", tokenizer.config)
    assert loaded.missing == ()
    images = pictures(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        expected = huggingface(images).last_hidden_state[:, 1:]
    assert torch.allclose(encode(tokenizer, images), expected, atol=1e-5, rtol=0)  # float32 through three layers


def timm_names(huggingface: ViTModel) -> dict[str, Tensor]:
    """The same weights as timm stores them: query, key and value in one layer."""
    state = huggingface.state_dict()
    tensors = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "head.weight": torch.zeros(10, SIZE),
        "head.bias": torch.zeros(10),
    }
    for ending in ("weight", "bias"):
        tensors[f"patch_embed.proj.{ending}"] = state[f"embeddings.patch_embeddings.projection.{ending}"]
        tensors[f"norm.{ending}"] = state[f"layernorm.{ending}"]
        for layer in range(LAYERS):
            theirs, block = f"layers.{layer}.", f"blocks.{layer}."
            fused = [state[f"{theirs}attention.{part}_proj.{ending}"] for part in "qkv"]
            tensors[f"{block}attn.qkv.{ending}"] = torch.cat(fused)
            tensors[f"{block}attn.proj.{ending}"] = state[f"{theirs}attention.o_proj.{ending}"]
            tensors[f"{block}norm1.{ending}"] = state[f"{theirs}layernorm_before.{ending}"]
            tensors[f"{block}norm2.{ending}"] = state[f"{theirs}layernorm_after.{ending}"]
            for linear in ("fc1", "fc2"):
                tensors[f"{block}mlp.{linear}.{ending}"] = state[f"{theirs}mlp.{linear}.{ending}"]
    return tensors


def test_timm_names_give_the_same_encoder(huggingface: ViTModel, tmp_path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"model": timm_names(huggingface)}, path)
    tokenizer = make_tokenizer()
    loaded = load_encoder(tokenizer.encoder, path, tokenizer.config)
    assert (loaded.naming, loaded.missing) == ("timm", ())
    assert set(loaded.unused) == {"head.weight", "head.bias"}
    images = pictures(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        expected = huggingface(images).last_hidden_state[:, 1:]
    assert torch.allclose(encode(tokenizer, images), expected, atol=1e-5, rtol=0)  # float32 through three layers


def beit3_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as torchscale's multiway encoder has them, the language expert `.B` included."""
    shapes: dict[str, tuple[int, ...]] = {
        "beit3.text_embed.weight": (7, SIZE),
        "beit3.vision_embed.mask_token": (1, 1, SIZE),
        "beit3.vision_embed.cls_token": (1, 1, SIZE),
        "beit3.vision_embed.proj.weight": (SIZE, 3, PATCH, PATCH),
        "beit3.vision_embed.proj.bias": (SIZE,),
        "beit3.encoder.embed_positions.A.weight": (2 + 1 + (IMAGE // PATCH) ** 2, SIZE),
        "beit3.encoder.embed_positions.B.weight": (9, SIZE),
    }
    for expert in "AB":
        for layer in range(LAYERS):
            prefix = f"beit3.encoder.layers.{layer}."
            for part in "qkv":
                shapes[f"{prefix}self_attn.{part}_proj.{expert}.weight"] = (SIZE, SIZE)
                shapes[f"{prefix}self_attn.{part}_proj.{expert}.bias"] = (SIZE,)
            for ending in ("weight", "bias"):
                for norm in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
                    shapes[f"{prefix}{norm}.{expert}.{ending}"] = (SIZE,)
                shapes[f"{prefix}ffn.{expert}.ffn_layernorm.{ending}"] = (4 * SIZE,)
            shapes[f"{prefix}self_attn.out_proj.{expert}.weight"] = (SIZE, SIZE)
            shapes[f"{prefix}self_attn.out_proj.{expert}.bias"] = (SIZE,)
            shapes[f"{prefix}ffn.{expert}.fc1.weight"] = (4 * SIZE, SIZE)
            shapes[f"{prefix}ffn.{expert}.fc1.bias"] = (4 * SIZE,)
            shapes[f"{prefix}ffn.{expert}.fc2.weight"] = (SIZE, 4 * SIZE)
            shapes[f"{prefix}ffn.{expert}.fc2.bias"] = (SIZE,)
        for ending in ("weight", "bias"):
            shapes[f"beit3.encoder.layer_norm.{expert}.{ending}"] = (SIZE,)
    return shapes


def beit3_forward(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """BEiT-3's vision path as its paper describes it, written with functions only and none of our modules."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    x = F.conv2d(images, state["beit3.vision_embed.proj.weight"], state["beit3.vision_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["beit3.vision_embed.cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + state["beit3.encoder.embed_positions.A.weight"][torch.arange(x.shape[1]) + 2]
    for layer in range(LAYERS):
        prefix = f"beit3.encoder.layers.{layer}."
        inner = norm(x, f"{prefix}self_attn_layer_norm.A")
        heads = [
            linear(inner, f"{prefix}self_attn.{part}_proj.A").view(len(x), -1, HEADS, SIZE // HEADS).transpose(1, 2)
            for part in "qkv"
        ]
        scores = heads[0] @ heads[1].transpose(2, 3) / (SIZE // HEADS) ** 0.5
        mixed = (scores.softmax(dim=-1) @ heads[2]).transpose(1, 2).flatten(2)
        x = x + linear(norm(mixed, f"{prefix}self_attn.inner_attn_ln.A"), f"{prefix}self_attn.out_proj.A")
        inner = linear(norm(x, f"{prefix}final_layer_norm.A"), f"{prefix}ffn.A.fc1")
        x = x + linear(norm(F.gelu(inner), f"{prefix}ffn.A.ffn_layernorm"), f"{prefix}ffn.A.fc2")
    return norm(x, "beit3.encoder.layer_norm.A")[:, 1:]


def test_beit3_vision_expert_gives_the_same_hidden_states() -> None:
    state = random_tensors(beit3_shapes())
    tokenizer = make_tokenizer(sub_layer_norm=True)
    loaded = load_encoder(tokenizer.encoder, state, tokenizer.config)
    assert (loaded.naming, loaded.missing) == ("beit3", ())
    assert all(".B." in name or "text" in name or "mask" in name for name in loaded.unused)
    images = pictures(2, 3, IMAGE, IMAGE)
    expected = beit3_forward(state, images)
    assert expected.std() > 0.1
    assert torch.allclose(encode(tokenizer, images), expected, atol=1e-5, rtol=0)  # float32 through three layers


def test_sub_layer_norms_must_agree() -> None:
    tokenizer = make_tokenizer(sub_layer_norm=False)
    with pytest.raises(ValueError, match="sub_layer_norm to true"):
        load_encoder(tokenizer.encoder, random_tensors(beit3_shapes()), tokenizer.config)


def test_an_encoder_with_sub_layer_norms_refuses_a_plain_checkpoint(huggingface: ViTModel) -> None:
    tokenizer = make_tokenizer(sub_layer_norm=True)
    with pytest.raises(ValueError, match="sub_layer_norm to false"):
        load_encoder(tokenizer.encoder, huggingface.state_dict(), tokenizer.config)


def test_another_patch_size_and_channel_count_keep_the_projection_of_a_plain_grey_picture(
    huggingface: ViTModel,
) -> None:
    grey = torch.full((1, 1, IMAGE, IMAGE), 0.3)
    expected = huggingface.embeddings.patch_embeddings(grey.expand(-1, 3, -1, -1))[0, 0]
    for patch_size in (2, 8):
        tokenizer = make_tokenizer(patch_size=patch_size, num_channels=1)
        loaded = load_encoder(tokenizer.encoder, huggingface.state_dict(), tokenizer.config)
        assert loaded.missing == ()
        projected = tokenizer.encoder.input_projection(patchify(grey, patch_size))[0, 0]
        assert torch.allclose(projected, expected, atol=1e-5)  # float32 sums of 48 terms


def test_a_deeper_checkpoint_fills_a_shallower_encoder_and_says_what_it_left(huggingface: ViTModel) -> None:
    tokenizer = make_tokenizer(num_layers=2)
    loaded = load_encoder(tokenizer.encoder, huggingface.state_dict(), tokenizer.config)
    assert loaded.missing == ()
    assert "blocks.2.attention.query.weight" in loaded.unused


def test_a_shallower_checkpoint_is_refused(huggingface: ViTModel) -> None:
    tokenizer = make_tokenizer(num_layers=6)
    with pytest.raises(ValueError, match="fills only"):
        load_encoder(tokenizer.encoder, huggingface.state_dict(), tokenizer.config)


def test_another_width_is_refused_by_name(huggingface: ViTModel) -> None:
    tokenizer = make_tokenizer(hidden_size=64)
    with pytest.raises(ValueError, match="hidden_size"):
        load_encoder(tokenizer.encoder, huggingface.state_dict(), tokenizer.config)


def test_a_checkpoint_of_something_else_is_refused() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="no Vision Transformer"):
        load_encoder(tokenizer.encoder, {"conv1.weight": torch.zeros(3)}, tokenizer.config)
