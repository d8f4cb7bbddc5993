"""The workspace of a W&B project as code: the charts of `panels.py`, samples, and the runs side by side.

The only file that imports wandb_workspaces.
"""

from __future__ import annotations

import re
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from distgan.tracking import panels
from distgan.tracking.panels import Panel

AXIS = "progress/images_seen"
NOW = (
    AXIS,
    "progress/restarts",
    "throughput/images_per_second",
    "eval/fid_best",
    "health/nonfinite_steps",
)
PICTURES = ("samples/ema_grid", "samples/real_grid")
HISTOGRAMS = ("d_logits/real", "d_logits/fake")
COMPARED = ("optimizer.learning_rate", "objective.r1.gamma", "train.global_batch", "seed")
"""Settings beside the score in which runs are compared."""


def build(project: str, entity: str) -> Any:
    """The workspace of a project; nothing is sent."""
    sections = [
        _section("Now", [reports.ScalarChart(title=name.partition("/")[2], metric=name) for name in NOW]),
        _section("Samples", [reports.MediaBrowser(title=name, media_keys=[name], num_columns=1) for name in PICTURES]),
    ]
    for title, charts in panels.SECTIONS.items():
        more = _precision_recall() if title == panels.QUALITY else []
        if title == "Balance":
            more = [reports.LinePlot(title=f"{name}, histogram", x=AXIS, y=[name]) for name in HISTOGRAMS]
        sections.append(_section(title, [_line_plot(each) for each in charts] + more))
    sections.append(_section("Across runs", _across_runs()))
    settings = workspaces.WorkspaceSettings(x_axis=AXIS)
    return workspaces.Workspace(entity=entity, project=project, name="distgan", sections=sections, settings=settings)


def as_json(workspace: Any) -> str:
    """What is sent to the server, as indented JSON."""
    return workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)


def _section(title: str, charts: list[Any]) -> Any:
    return workspaces.Section(name=title, panels=charts, is_open=True)


def _line_plot(panel: Panel) -> Any:
    options: dict[str, Any] = {"title": panel.title, "x": AXIS, "log_y": panel.log or None}
    if any("*" in key for key in panel.keys):
        return reports.LinePlot(metric_regex=pattern(panel), **options)
    return reports.LinePlot(y=list(panel.keys), **options)


def pattern(panel: Panel) -> str:
    """The keys of a panel as a regular expression."""
    return "|".join(f"^{re.escape(key).replace(re.escape('*'), '.*')}$" for key in panel.keys)


def _precision_recall() -> list[Any]:
    return [
        reports.ScatterPlot(
            title="Precision against recall",
            x=reports.SummaryMetric("eval/recall"),
            y=reports.SummaryMetric("eval/precision"),
        )
    ]


def _across_runs() -> list[Any]:
    columns = [reports.ParallelCoordinatesPlotColumn(reports.Config(name)) for name in COMPARED]
    columns.append(reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric("eval/fid_best"), log=True))
    return [
        reports.ParallelCoordinatesPlot(title="Settings and the best score", columns=columns),
        reports.LinePlot(title="Frechet distance over hours", x="RelativeTime(Process)", y=["eval/fid"], log_y=True),
        reports.RunComparer(diff_only="split"),
    ]
