"""Our CIDEr-D against COCO's caption code."""

import pytest

from latentlm.evaluation.captions import cider

REFERENCES = [
    ["a man rides a brown horse on the beach", "a person on a horse near the sea", "man riding a horse at the beach"],
    ["two cats sleep on a red sofa", "a pair of cats lying on a couch"],
    ["a red bus on a city street", "a bus drives down the street", "the bus is red", "a double decker bus in a city"],
    ["a plate of food with a fork", "food on a plate"],
    ["a dog catches a frisbee in the park", "a dog jumps for a frisbee on the grass"],
    ["pizza", "a pizza on a table"],
]
CANDIDATES = [
    "a man riding a horse on the beach",
    "a couch with two cats on a red couch and a red couch",
    "the bus is red",
    "a a a a a plate plate of food with a very long list of other words that nobody has ever asked for",
    "a cat in the park",
    "pizza",
]

# pycocoevalcap 1.2 on these texts (split at spaces): `Cider().compute_score({i: references}, {i: [candidate]})[1]`.
EXPECTED = [
    3.4867931236746537,
    0.7866701805546092,
    3.1357734623799827,
    0.046463788916535,
    1.2162720315758841,
    1.9577585594402247,
]


def test_cider_agrees_with_the_coco_caption_code():
    # float64 sums in another order.
    assert cider(CANDIDATES, REFERENCES, tokenize=str.split) == pytest.approx(EXPECTED, rel=1e-12)
