"""One model learns three documents by heart: text, labels, pictures and sound run through the same code.

Free decoding is given the first letter or the label of each and writes the rest: text, then a span that the model
opens, fills and closes by itself, then text again.
"""

import dataclasses

import pytest
import torch
from tiny_models import tiny_mixed_config

from latentlm.generation.generator import Generator
from latentlm.generation.requests import DoneEvent, GenerationRequest, TextSamplingConfig
from latentlm.models.latentlm import LatentLM
from latentlm.sequence import Document, LabelPart, LatentPart, Part, SequenceBuilder, TextPart
from latentlm.tokenizers.text import ByteTokenizer

NUM_STEPS = 400


def part(modality: str, count: int, seed: int) -> LatentPart:
    latent_dim = {"image": 6, "speech": 3}[modality]
    return LatentPart(modality, torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed)))


# What is given, and what has to follow.
DOCUMENTS: list[tuple[Part, tuple[Part, ...]]] = [
    (TextPart("a"), (TextPart(" cat: "), part("image", 6, 1), TextPart(" purrs"))),
    (LabelPart(2), (part("image", 4, 2), TextPart("two"))),
    (TextPart("s"), (TextPart("ay "), part("speech", 3, 3), TextPart(", see "), part("image", 2, 4), TextPart("!"))),
]


@pytest.fixture(scope="module")
def overfitted() -> tuple[LatentLM, SequenceBuilder]:
    config = tiny_mixed_config()
    # More noises per latent: the same steps teach the heads more.
    modalities = {
        name: dataclasses.replace(item, num_noises_per_latent=32, continue_loss_weight=1.0)
        for name, item in config.modalities.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LatentLM(dataclasses.replace(config, modalities=modalities))
    builder = SequenceBuilder(config.vocabulary, list(config.modalities), ByteTokenizer())
    documents = [Document((given, *rest), key) for key, (given, rest) in enumerate(DOCUMENTS)]
    # Two documents share a row, one is padded.
    sequences = [builder.build(document) for document in documents]
    batch = builder.collate([[sequences[0], sequences[1]], [sequences[2]]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        model(batch, noise_seed=step)["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), builder


def test_free_decoding_reproduces_the_documents(overfitted: tuple[LatentLM, SequenceBuilder]) -> None:
    model, builder = overfitted
    requests = [
        GenerationRequest(
            prompt=Document((given,)), max_new_tokens=60, text=TextSamplingConfig(temperature=0.0), seed=seed
        )
        for seed, (given, _) in enumerate(DOCUMENTS)
    ]
    events = Generator(model, builder).stream(requests)
    answers = {event.request: event for event in events if isinstance(event, DoneEvent)}
    for index, (_, expected) in enumerate(DOCUMENTS):
        actual = answers[index].document.parts
        assert answers[index].finish_reason == "eos"
        assert [type(one) for one in actual] == [type(one) for one in expected]
        for one, other in zip(actual, expected, strict=True):
            if isinstance(one, LatentPart) and isinstance(other, LatentPart):
                assert one.modality == other.modality
                assert one.latents.shape == other.latents.shape
                error = (one.latents - other.latents).square().mean().sqrt()
                assert error < 0.25  # strangers differ by 1.4; a few hundred steps come to below 0.1
            else:
                assert one == other
