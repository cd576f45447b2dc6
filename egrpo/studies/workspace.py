"""A W&B workspace for a study: its runs alone, averaged over seeds, metrics in named sections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as panels
from wandb_workspaces import expr
from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace

from egrpo.base.errors import UserError

STEP = "trainer/global_step"  # optimizer steps, by which Lightning logs


def build_workspace(
    study: str, entity: str, project: str, group_by: str, columns: Sequence[str], sections: Mapping[str, Sequence[str]]
) -> Workspace:
    """The workspace as an object; nothing is sent.

    Args:
        study: Whose runs are shown, by their setting `study/name`.
        entity: W&B team or user.
        project: Of the runs.
        group_by: The setting whose runs are averaged, as the trackers have it ("study/setting").
        columns: Beside each run's name: "summary:METRIC", "config:SETTING".
        sections: Name -> metrics, a panel with the mean over runs and its spread each.

    Raises:
        UserError: there is no section, or a section without metrics.
    """
    empty = [name for name, metrics in sections.items() if not metrics]
    if empty or not sections:
        told = f"sections.{empty[0]} names no metric" if empty else "sections names no section"
        raise UserError(f"{told}: a workspace shows metrics; see docs/metrics.md for what there is")
    return Workspace(
        entity=entity,
        project=project,
        name=f"study: {study}",
        sections=[
            Section(name=name, is_open=at == 0, panels=[_panel(metric, group_by) for metric in metrics])
            for at, (name, metrics) in enumerate(sections.items())
        ],
        runset_settings=RunsetSettings(
            filters=[expr.Config("study/name") == study],
            groupby=[expr.Config(group_by)],
            pinned_columns=list(columns),
        ),
    )


def _panel(metric: str, group_by: str) -> panels.LinePlot:
    return panels.LinePlot(
        title=metric,
        x=panels.Metric(STEP),
        y=[metric],
        groupby=panels.Config(group_by),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def description(workspace: Workspace) -> dict[str, Any]:
    """The workspace as W&B stores it. (The library offers no public way to look at one before it is sent.)"""
    return json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
