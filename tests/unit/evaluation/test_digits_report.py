"""The demo's report: the promised keys, and a text that shows the numbers."""

import json
from dataclasses import replace

from latentlm.evaluation.digits_report import DigitsReport
from latentlm.evaluation.image_scores import ImageComparison, ImageScores

SAMPLES = ImageScores(
    num_images=539,
    accuracy=0.97,
    classifier_score=9.1,
    frechet=0.8,
    frechet_second_space=1.2,
    kernel=0.01,
    kernel_second_space=0.02,
    precision=0.9,
    recall=0.8,
    nearest_train_share=0.015,
    nearest_train_distance=1.5,
    diversity=0.95,
    high_frequency=0.9,
)
COMPARISON = ImageComparison(
    samples=SAMPLES,
    real_test=replace(SAMPLES, accuracy=0.98, frechet=0.15, nearest_train_share=0.01),
    num_samples=539,
    num_real_test=539,
    num_reference=598,
    num_judge_train=597,
    judge_seed=3,
    split_seed=4,
)
REPORT = DigitsReport(
    comparison=COMPARISON,
    cfg_scale=1.5,
    num_inference_steps=20,
    solver="dpm_multistep",
    tokenizer_psnr=21.0,
    num_train=1195,
    seconds=155.58,
    stage_seconds={"tokenizer": 50.04, "model": 100.0},
    reused=(),
    seeds={"model": 7},
    parameters={"model": 1_200_000},
)


def test_the_json_holds_the_promised_keys_and_the_protocol():
    report = json.loads(json.dumps(REPORT.as_json()))
    headline = {
        "accuracy": 0.97,
        "accuracy_real_test": 0.98,
        "frechet_samples": 0.8,
        "frechet_real_test": 0.15,
        "cfg_scale": 1.5,
        "nearest_train_share": 0.015,
        "nearest_train_share_real_test": 0.01,
        "seconds": 155.6,
    }
    assert headline.items() <= report.items()
    assert report["num_samples"] == report["num_real_test"] == 539
    assert report["seeds"] == {"model": 7, "judge": 3, "judge_split": 4}
    assert {"latentlm", "torch", "python"} <= report["software"].keys()


def test_the_text_shows_samples_beside_real_digits_and_says_what_was_reused():
    text = REPORT.as_markdown()
    assert "| accuracy of the judge | 97.0% | 98.0% |" in text
    assert "| close to a training image | 1.5% | 1.0% |" in text
    assert "earlier run" not in text
    assert "earlier run in this folder, at least in part: model." in replace(REPORT, reused=("model",)).as_markdown()
