"""The two ends of a run: the untouched model is measured before it, the trained one is reported after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer

from egrpo import distributed
from egrpo.provenance import write_json
from egrpo.training.metrics import peak_memory_gb
from egrpo.training.module import GRPOModule
from egrpo.training.report import gains, save_curves, save_samples, summarise, table
from egrpo.training.settings import RolloutSettings
from egrpo.training.validation import PART, Row, held_out, load_rows, save_rows, score_names

log = logging.getLogger(__name__)


def validate(trainer: Trainer, module: GRPOModule, data: LightningDataModule) -> list[Row]:
    """Rows of one validation, one a prompt."""
    trainer.validate(module, datamodule=data, verbose=False)
    return module.validation.rows


def measure_untouched(
    trainer: Trainer,
    module: GRPOModule,
    data: LightningDataModule,
    folder: Path,
    baseline_temperatures: list[float],
    kept: bool,
) -> dict[str, list[Row]]:
    """Validation of the model before training: "before" at the run's temperature, and colder ones for comparison.

    Args:
        kept: Take what an earlier part of the run measured, where it is there.
    """
    usual = module.validation.rollout.temperature
    wanted = {f"temperature_{t}": t for t in baseline_temperatures} | {"before": usual}
    out = {}
    for name, temperature in wanted.items():
        path = folder / "validation" / f"{name}.npz"
        if kept and distributed.from_first(path.exists()):
            out[name] = load_rows(path)
            continue
        module.validation.with_temperature(temperature, "" if name == "before" else f"{name}/")
        out[name] = validate(trainer, module, data)
        if trainer.is_global_zero:
            save_rows(path, out[name])
    module.validation.with_temperature(usual)
    return out


def measure_trained(trainer: Trainer, module: GRPOModule, data: LightningDataModule) -> list[Row]:
    """Validation of the trained model; the one that ended the training where there was one."""
    if module.validation.finished_at == trainer.global_step:
        return module.validation.rows
    return validate(trainer, module, data)


def measure_under(
    trainer: Trainer, module: GRPOModule, data: LightningDataModule, rollouts: Mapping[str, RolloutSettings]
) -> dict[str, list[Row]]:
    """Validation of the trained model with samples drawn otherwise, by name; logged as val/NAME/..."""
    usual, out = module.validation.rollout, {}
    for name, rollout in rollouts.items():
        module.validation.rollout, module.validation.prefix = rollout, f"{name}/"
        out[name] = validate(trainer, module, data)
    module.validation.rollout, module.validation.prefix = usual, ""
    return out


@contextmanager
def part(name: str) -> Iterator[None]:
    """A part of the report, which nothing depends on: a fault in it is a warning with its traceback, and no more."""
    try:
        yield
    except Exception:
        log.warning("%s could not be reported; the run itself is whole", name, exc_info=True)


def report_run(
    folder: Path,
    trainer: Trainer,
    module: GRPOModule,
    untouched: Mapping[str, list[Row]],
    trained: list[Row],
    further: Mapping[str, list[Row]],
    seconds: float,
    origin: Mapping[str, Any],
) -> None:
    """Writes samples, curves and summary, and prints the result; the folder is the last line.

    A part that fails is left out with a warning: whatever it is, `summary.json` says that the run came to its end.

    Args:
        untouched: What `measure_untouched` gave.
        trained: What `measure_trained` gave.
        further: What `measure_under` gave.
        seconds: Of the whole run.
        origin: Further entries of the summary: what ran, and with which settings.
    """
    summary: dict[str, Any] = {
        "validation": {},
        "seconds": {"total": seconds, **module.clock.total},
        "steps": trainer.global_step,
        "peak_memory_gb": peak_memory_gb(),
        "seed": module.seed,
        **origin,
    }
    with part("the curves"):
        save_curves(folder / "metrics.csv", folder / "curves.png")
    if trained:  # trainer.limit_val_batches=0 leaves nothing to report
        before = untouched["before"]
        judges = list(module.validation.judges) or ["reward"]
        with part("the validation after training"):
            save_rows(folder / "validation" / "after.npz", trained)
        with part("the samples"):
            save_samples(folder / "samples", before, trained, judges[0])
        summaries: dict[str, Any] = summary["validation"]
        for name, rows in {**untouched, "after": trained, **further}.items():
            with part(f"the summary of validation {name}"):
                summaries[name] = summarise(rows)
        with part("the tables"):
            print(table(summaries, judges))
            names = score_names([*held_out(before), *held_out(trained)])
            parts = [name for name in names if name.startswith(PART)]
            print(table(summaries, ["reward", *parts]))
        with part("the gains"):
            summaries["gain"] = gains(before, trained)
    write_json(folder / "summary.json", summary)
    print(f"{trainer.global_step} steps in {seconds:.0f} s. Look at samples/before_after.png and curves.png.")
    print(folder)
