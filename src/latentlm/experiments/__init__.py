"""Experiments: files that say what is trained, measured and shown; a runner for them; pages of results."""

from latentlm.experiments.definition import ExperimentDefinition, read_experiment
from latentlm.experiments.expansion import Cell, Expansion, Run, expand
from latentlm.experiments.protocol import MeasureContext, Protocol, remembered
from latentlm.experiments.rendering import page_text, render
from latentlm.experiments.results import Comparison, Summary, compare, summarise
from latentlm.experiments.runner import Experiment, Tools, run_experiment
from latentlm.experiments.stopwatch import Stopwatch
from latentlm.storage import waiting_lock

__all__ = [
    "Cell",
    "Comparison",
    "Expansion",
    "Experiment",
    "ExperimentDefinition",
    "MeasureContext",
    "Protocol",
    "Run",
    "Stopwatch",
    "Summary",
    "Tools",
    "compare",
    "expand",
    "page_text",
    "read_experiment",
    "remembered",
    "render",
    "run_experiment",
    "summarise",
    "waiting_lock",
]
