"""`python -m egrpo.evaluate benchmark=NAME`: from a model, a run or all its checkpoints to a benchmark's table.

Leaves in its folder: the images in the official layout, scores.json, table.md, .tex and .csv, egrpo/manifest.json,
config.yaml, and the tracker's run; of all checkpoints a folder each, curve.csv and curve.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.base.errors import UserError
from egrpo.benchmarks import Benchmark, Scores, build_table
from egrpo.benchmarks.curve import save_curve
from egrpo.benchmarks.evaluation import Assessed, assess, beside, compared, save_table
from egrpo.benchmarks.export import already_there, export, scored_since_drawn, scoring, told_label
from egrpo.benchmarks.states import State, states
from egrpo.benchmarks.tracking import log_scores
from egrpo.entry import overrides, resume_in_folder, run, save_config
from egrpo.generation import chosen, request_stamp
from egrpo.policies import given_settings, trained_settings
from egrpo.rewards.placement import pick_device


def evaluate(cfg: DictConfig) -> None:
    """Draws what is missing, scores, reads official results back, prints and logs the table."""
    torch.set_num_threads(cfg.threads)
    folder, benchmark = Path(cfg.run_dir), cast(Benchmark, instantiate(cfg.benchmark))
    instantiate(cfg.logger)  # a tracker that cannot be used says so before anything is drawn
    benchmark.items()  # first: bad prompts are told before any model is loaded
    others = compared(cfg.compare, benchmark)
    scores: dict[int, Scores] = {}
    rows: dict[str, Scores] = {}
    failures: dict[str, None] = {}  # in order, each once
    given = given_settings(overrides())
    for state in states(folder, cfg.model, cfg.ckpt_path, cfg.checkpoints, cfg.model_name, cfg.label, given):
        new = draw(cfg, benchmark, state) if cfg.export else 0
        label = state.label if cfg.export or cfg.label else told_label(state.folder)
        found = assessed(cfg, benchmark, state.folder, new)
        if found is None:
            continue
        failures |= dict.fromkeys(found.failures)
        if found.scores.results:
            scores[state.step] = rows[label] = found.scores
    if str(cfg.shard).startswith("1/"):  # one of the parts that share the folder
        save_config(cfg, folder)
    if rows:
        report(cfg, folder, benchmark, scores, beside(rows, others))
    if failures:
        raise UserError("\n".join([*failures, f"what was drawn and scored is kept in {folder}"]))
    print(folder)


def assessed(cfg: DictConfig, benchmark: Benchmark, folder: Path, new: int) -> Assessed | None:
    """The folder's scores; None where they are left to another of the processes that share its drawing.

    The one that draws the last image scores. Where two end together, only one of them does, and pays a judge.
    """
    only_read = not (cfg.export or cfg.score)
    parts = cfg.shard != "1/1"
    if parts and benchmark.missing(folder):
        return None
    with scoring(folder) as mine:
        if parts and (not mine or (new and scored_since_drawn(folder, benchmark))):
            print(f"{folder} is scored by another process")
            return None
        return assess(folder, benchmark, score=cfg.score, read_back=cfg.read_back, required=only_read)


def draw(cfg: DictConfig, benchmark: Benchmark, state: State) -> int:
    """Exports one state's images, and gives how many were drawn; its policy is released before anything is scored."""
    device = pick_device(cfg.model_device)
    trained = trained_settings(cfg.ckpt_path) if cfg.ckpt_path else {}
    stamp = request_stamp(state.stamp(), cfg.seed, OmegaConf.to_container(cfg.rollout, resolve=True), trained)
    if there := already_there(state.folder, benchmark, stamp):
        print(there)
        return 0
    policy = state.load()
    settings = chosen(policy, cfg.seed, cfg.rollout, trained)
    policy.to(device)
    print(f"{state.label}: images into {state.folder} (after a stop, hydra.run.dir={cfg.run_dir} goes on)", flush=True)
    size: dict[str, Any] = {"batch_size": cfg.batch_size, "shard": str(cfg.shard), "stamp": stamp}
    exported = export(state.folder, benchmark, policy, settings, state.label, **size)
    print(exported)
    return exported.new


def report(
    cfg: DictConfig, folder: Path, benchmark: Benchmark, scores: dict[int, Scores], rows: dict[str, Scores]
) -> None:
    """The table, printed, kept and logged; of several checkpoints the curve too."""
    table = build_table(benchmark.table, rows)
    save_table(folder, table)
    print(table.markdown())
    if cfg.checkpoints is not None:
        save_curve(folder, scores, benchmark.table)
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    log_scores(list(instantiate(cfg.logger).values()), scores, table, settings, folder)


if __name__ == "__main__":
    run(evaluate, "evaluate", resume=resume_in_folder)
