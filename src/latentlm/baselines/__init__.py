"""The image generators that LatentLM is compared with: on the same tokens, by the same trainer, under one interface."""
