"""`python -m egrpo.dashboard study=NAME entity=TEAM`: a W&B workspace for a study's runs.

Writes its description as JSON; with upload=true it is saved on W&B, where the runs are once `wandb sync` has sent them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from egrpo.base.errors import UserError
from egrpo.base.targets import claim_file
from egrpo.base.trackers import check_key
from egrpo.entry import run
from egrpo.provenance import write_json
from egrpo.studies.workspace import build_workspace, description


def dashboard(cfg: DictConfig) -> None:
    """Builds the workspace, writes it down, saves it on W&B where that is asked for.

    Raises:
        UserError: a name is empty, a column is neither of a summary nor of a setting, or upload=true without a key.
    """
    for key in ("study", "entity", "project"):
        if not str(cfg[key]).strip():
            raise UserError(f"{key}= is empty (a variable that is not set?): give its name")
    strange = [str(column) for column in cfg.columns if not str(column).startswith(("summary:", "config:"))]
    if strange:
        raise UserError(f"columns: {strange[0]}: give summary:METRIC or config:SETTING, such as summary:val/strict")
    sections = cast(dict[str, Any], OmegaConf.to_container(cfg.sections))
    workspace = build_workspace(cfg.study, cfg.entity, cfg.project, cfg.group_by, list(cfg.columns), sections)
    target = Path(cfg.target)
    claim_file(target, "target", "spec")
    write_json(target, description(workspace))
    panels = sum(len(metrics) for metrics in sections.values())
    print(f"{len(sections)} sections, {panels} panels: {', '.join(sections)}")
    if cfg.upload:
        check_key("upload=true")
        print(f"saved: {workspace.save().url}")
    else:
        print("not sent to W&B. With a key (`wandb login`), send the runs and then the workspace:")
        print(f"  wandb sync outputs/studies/{cfg.study}/*/*/wandb/offline-run-*")
        print(f"  python -m egrpo.dashboard study={cfg.study} entity={cfg.entity} project={cfg.project} upload=true")
    print(target)


if __name__ == "__main__":
    run(dashboard, "dashboard")
