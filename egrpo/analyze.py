"""`python -m egrpo.analyze +experiment=NAME`: how entropy and reward go together, in several settings at once.

Leaves in its folder: records.parquet, images/, tokens/, statistics.json, figures/, report.html, config.yaml. A study
that was stopped goes on in its own folder (hydra.run.dir=FOLDER); of a finished one the report is made again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from egrpo.analysis.records import read_embeddings, read_records, read_tokens, write_records
from egrpo.analysis.report import write_report
from egrpo.analysis.runs import make_runs
from egrpo.analysis.setup import decisive, description, work_of
from egrpo.analysis.shards import draw_all, number_of_processes
from egrpo.analysis.storage import claim, discard_partial
from egrpo.analysis.tracking import log_study
from egrpo.base.files import hold
from egrpo.entry import resume_in_folder, run, save_config


def analyze(cfg: DictConfig) -> None:
    """Trains what is missing, draws, scores, stores, reports."""
    folder, work = Path(cfg.run_dir), work_of(cfg)
    processes = number_of_processes(cfg.processes, cfg.model_device)
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    description(cfg, work, overrides)  # a wrong name is told before hours of drawing
    instantiate(cfg.logger)  # and so is a tracker that cannot be used
    with hold(folder, "the study in"):
        claim(folder, decisive(work))
        save_config(cfg, folder)
        make_runs(work.settings, cfg.threads)
        discard_partial(folder)
        draw_all(work, processes)
        write_records(work)
        records = read_records(folder)
        statistics = write_report(
            folder,
            records,
            description(cfg, work, overrides),
            tokens=partial(read_tokens, folder),
            embeddings=read_embeddings(folder, records),
        )
        log_study(list(instantiate(cfg.logger).values()), folder, records, statistics)
    print(folder)


if __name__ == "__main__":
    run(analyze, "analyze", resume=resume_in_folder)
