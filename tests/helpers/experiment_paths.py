"""What an experiment file shows of the results of its measurements."""

from pathlib import Path

from latentlm.experiments.definition import as_list, read_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def shown_paths(name: str, protocol: str) -> list[str]:
    """Dotted paths into the result of a protocol that tables and plots of an experiment file name."""
    definition = read_experiment(EXPERIMENTS / f"{name}.yaml")
    measured = {key for key, one in definition.measurements.items() if one.protocol == protocol}
    tables = [part for part in definition.tables if measured.issuperset(as_list(part.of))]
    plots = [part for part in definition.plots if measured.issuperset(as_list(part.of))]
    paths = [column.path for table in tables for column in table.columns]
    paths += [path for table in tables for path in table.same] + [path for plot in plots for path in (plot.x, plot.y)]
    return [path.removeprefix("result.") for path in paths if path.startswith("result.")]
