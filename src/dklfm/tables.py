"""Table 1: every method of the experiments that compare several, and the paper's own figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from dklfm.artifacts import write_text
from dklfm.resources import resource_path
from dklfm.scores import OVER_FLOOR

_PUBLISHED = "paper/table1.csv"
_CAVEAT = (
    "Figures of the paper, whose noise, prior and normalisation are not stated: landmarks, not "
    "measurements on the same tasks. Its NLL is one column; its time is in seconds on its own "
    "machine, for Alfi on reaction–diffusion a lower bound."
)
_STYLE = """<style>
body { font-family: sans-serif; font-size: 14px; }
table { border-collapse: collapse; }
th, td { padding: 3px 10px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
</style>"""
_METRICS = {
    "latent_mse": "latent MSE",
    "latent_mse_z": "z",
    "latent_mse_shape": "shape",
    "output_mse": "output MSE",
    "force_nll": "force NLL",
    "output_nll": "output NLL",
    "force_coverage95": "coverage",
}
_OF_EVERY_SET = (OVER_FLOOR, "force_coverage50", "inference_cpu_s")


def comparison(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a run and method from scores.csv: means over its test tasks and over its seeds.

    ``latent_mse_se`` and ``latent_mse_median`` say how far the mean can be trusted, OVER_FLOOR how
    many times that of the fitted equation it is on the tasks of both; inference is
    the median CPU time of a task on one thread, ``once_cpu_s`` what simulation and training took
    before the first of them.
    """
    test = scores[(scores["split"] == "test") & (scores["seed"].astype(str) == "all")]
    several = test.groupby("run")["method"].nunique() > 1
    test = test[test["run"].map(several)]
    rows = []
    keys = ["run", "experiment", "prior", "method"]
    for key, group in test.groupby(keys, sort=False):
        found = group.set_index("metric")
        mean = found["mean"].get
        row: dict[str, object] = dict(zip(keys, key, strict=True))
        row["n_tasks"] = int(found["n_tasks"].max())
        for metric in _METRICS:
            row[metric] = mean(metric, np.nan)
            if metric == "latent_mse":
                row["latent_mse_se"] = found["se"].get(metric, np.nan)
                row["latent_mse_median"] = found["median"].get(metric, np.nan)
                row[OVER_FLOOR] = mean(OVER_FLOOR, np.nan)
        row["inference_cpu_s"] = found["median"]["inference_cpu_s"]
        row["once_cpu_s"] = mean("simulation_cpu_s", 0.0) + mean("training_cpu_s", 0.0)
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else [*keys, *_METRICS])


def every_set(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and calibration on every set of simulated test tasks, over all seeds, as text.

    Methods on the same tasks stand together.
    """
    chosen = scores[(scores["seed"].astype(str) == "all") & ~scores["split"].str.contains("/")]
    of_method = scores[scores["seed"].astype(str) != "all"].groupby(["run", "method"])["seed"]
    seeds = of_method.nunique().to_dict()
    rows = []
    for (run, method, split), group in chosen.groupby(["run", "method", "split"], sort=False):
        found = group.set_index("metric").reindex([*_METRICS, *_OF_EVERY_SET])
        mean, se, median = (found[name].map(_number) for name in ("mean", "se", "median"))
        error, ratio = (f"{mean[name]} ± {se[name]}" for name in ("latent_mse", OVER_FLOOR))
        if math.isnan(found["mean"]["latent_mse"]):
            continue
        rows.append(
            {
                "run": run,
                "set": split,
                "method": method,
                "seeds": seeds[run, method],
                "latent MSE ± se (median)": f"{error} ({median['latent_mse']})",
                "of the floor's": "–" if math.isnan(found["mean"][OVER_FLOOR]) else ratio,
                "95 %": mean["force_coverage95"],
                "50 %": mean["force_coverage50"],
                "output MSE": mean["output_mse"],
                "CPU s a task": median["inference_cpu_s"],
            }
        )
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    groups = table.groupby(["run", "set"], sort=False)
    return pd.concat([group for _, group in groups], ignore_index=True)


def published() -> pd.DataFrame:
    """Table 1 of the paper."""
    return pd.read_csv(resource_path(_PUBLISHED))


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader needs, as text."""
    shown = table[["method", "n_tasks"]].rename(columns={"n_tasks": "tasks"})
    error = table["latent_mse"].map(_number) + " ± " + table["latent_mse_se"].map(_number)
    error = error + " (" + table["latent_mse_median"].map(_number) + ")"
    shown["latent MSE ± se (median)"] = error.where(table["latent_mse"].notna(), "–")
    shown["of the floor's"] = table[OVER_FLOOR].map(_number)
    for metric, title in list(_METRICS.items())[1:]:
        shown[title] = table[metric].map(_number)
    shown["CPU s a task"] = table["inference_cpu_s"].map(_number)
    shown["CPU s once"] = table["once_cpu_s"].map(_number).where(table["once_cpu_s"] > 0, "–")
    return shown


def _paper_shown(table: pd.DataFrame) -> pd.DataFrame:
    titles = {
        "latent_mse": "latent MSE",
        "output_mse": "output MSE",
        "nll": "NLL",
        "inference_s": "s a task",
    }
    shown = table[["method", "mechanistic"]].copy()
    for column, title in titles.items():
        shown[title] = table[column].map(_number)
    return shown


def _blocks(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Titled tables: one a run, then the paper's, one an experiment."""
    blocks = [
        (f"{run} (prior {group['prior'].iloc[0]})", _shown(group))
        for run, group in table.groupby("run", sort=False)
    ]
    named = published().groupby("experiment", sort=False)
    return blocks + [(f"{name}, the paper", _paper_shown(group)) for name, group in named]


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    parts = [
        f"**{title}**\n\n{block.to_markdown(index=False, disable_numparse=True)}"
        for title, block in _blocks(table)
    ]
    return "\n\n".join([*parts, _CAVEAT]) + "\n"


def html(table: pd.DataFrame) -> str:
    """The table as a page."""
    parts = [
        f"<h3>{escape(title)}</h3>\n{block.to_html(index=False, border=0)}"
        for title, block in _blocks(table)
    ]
    return "\n".join([_STYLE, *parts, f"<p>{escape(_CAVEAT)}</p>"]) + "\n"


def latex(table: pd.DataFrame) -> str:
    """The table as LaTeX with the rules of booktabs."""
    parts = []
    for title, block in _blocks(table):
        escaped = block.rename(columns=lambda name: name.replace("±", r"$\pm$"))
        styler = escaped.map(_latex_text).style.hide(axis="index")
        body = styler.to_latex(hrules=True, column_format="l" + "r" * (block.shape[1] - 1))
        parts.append(f"% {title}\n{body}")
    return "\n".join([*parts, f"% {_CAVEAT}"]) + "\n"


def _latex_text(value: object) -> str:
    return str(value).replace("_", r"\_").replace("±", r"$\pm$").replace("–", "--")


def save(table: pd.DataFrame, stem: Path) -> None:
    """Write ``stem.csv``, with every digit, ``stem.html``, ``stem.md`` and ``stem.tex``."""
    texts: dict[str, Callable[[pd.DataFrame], str]] = {
        "csv": lambda whole: whole.to_csv(index=False),
        "html": html,
        "md": markdown,
        "tex": latex,
    }
    for suffix, render in texts.items():
        write_text(stem.with_name(f"{stem.name}.{suffix}"), render(table))
