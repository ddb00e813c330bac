"""The protocols by which experiments measure (`protocol:` in an experiment file), and what a recipe's run costs."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from latentlm.catalog import build
from latentlm.experiments.captioned_protocol import captioned_pictures
from latentlm.experiments.document_noise import document_noise
from latentlm.experiments.document_protocols import document_model
from latentlm.experiments.edited_protocol import edited_pictures
from latentlm.experiments.image_protocols import held_out_loss, image_generator, image_tokenizer
from latentlm.experiments.long_generation import long_generation
from latentlm.experiments.protocol import Protocol
from latentlm.experiments.speech_drift import speech_drift
from latentlm.experiments.speech_synthesis import text_to_speech
from latentlm.experiments.speech_tokenizers import speech_tokenizer

PROTOCOLS: dict[str, Protocol] = {
    "image_generator": image_generator,
    "image_tokenizer": image_tokenizer,
    "held_out_loss": held_out_loss,
    "long_generation": long_generation,
    "document_model": partial(document_model, build=build),
    "document_noise": partial(document_noise, build=build),
    "captioned_pictures": partial(captioned_pictures, build=build),
    "edited_pictures": partial(edited_pictures, build=build),
    "speech_tokenizer": speech_tokenizer,
    "text_to_speech": partial(text_to_speech, build=build),
    "speech_drift": speech_drift,
}


def cost_of_recipe(recipe: Any) -> Mapping[str, Any]:
    """What one run of a recipe costs, for the record of an experiment: images (or other items) seen in training."""
    trainer = recipe.trainer
    return {"items_seen": trainer.num_steps * trainer.batch_size * trainer.num_accumulation_steps}
