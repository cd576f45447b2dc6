"""A study's table, `records.parquet`, one row an image, and the tokens beside it. docs/records.md has the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from egrpo.analysis.storage import part_path, tokens_path, whole
from egrpo.analysis.study import TokenTable
from egrpo.analysis.work import Unit, Work
from egrpo.base.errors import UserError

RECORDS = "records.parquet"
REWARD, JUDGE = "reward/", "judge/"  # before the names of rewards and judges
ENTROPIES = ("text_entropy", "image_entropy", "guided_entropy")
QUANTILES = {"q25": 0.25, "q50": 0.5, "q75": 0.75}

_KEYS = {
    **{"setting": pa.string(), "prompt": pa.string(), "prompt_index": pa.int64(), "task_type": pa.string()},
    **{"split": pa.string(), "plan": pa.string(), "plan_index": pa.int64(), "plan_id": pa.string()},
    **{"image_index": pa.int64(), "seed": pa.int64(), "file": pa.string(), "reward": pa.float64()},
}
_PLAN = {"plan_tokens": pa.int64(), "plan_truncated": pa.bool_()}


def schema(rewards: Sequence[str], judges: Sequence[str]) -> pa.Schema:
    """Columns and their types."""
    scores = [f"{REWARD}{name}" for name in rewards] + [f"{JUDGE}{name}" for name in judges]
    entropies = [f"{name}_{part}" for name in ENTROPIES for part in ("mean", "std", *QUANTILES)]
    columns = {**_KEYS, **dict.fromkeys(scores, pa.float64()), **_PLAN, **dict.fromkeys(entropies, pa.float64())}
    return pa.schema(list(columns.items()))


def distribution(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation (over all, ddof 0) and quartiles of an image's entropies; NaN where there are none."""
    if not len(values):
        return {f"{name}_{part}": float("nan") for part in ("mean", "std", *QUANTILES)}
    values = values.astype(np.float64)
    quartiles = np.quantile(values, list(QUANTILES.values()))
    told = {"mean": values.mean(), "std": values.std(), **dict(zip(QUANTILES, quartiles, strict=True))}
    return {f"{name}_{part}": float(value) for part, value in told.items()}


def write_part(work: Work, unit: Unit, rows: list[dict[str, Any]]) -> None:
    """Stores a unit's rows, which marks it as done."""
    table = pa.Table.from_pylist(rows, schema(work.reward_names, list(work.judges)))
    with whole(part_path(work.folder, unit)) as path:
        pq.write_table(table, path)


def is_done(work: Work, unit: Unit) -> bool:
    return part_path(work.folder, unit).is_file()


def write_records(work: Work) -> None:
    """Joins the parts of all units, in the order of settings, prompts, plans and images.

    Raises:
        FileNotFoundError: a unit is not done.
    """
    tables = [pq.read_table(part_path(work.folder, unit)) for unit in work.units]
    with whole(work.folder / RECORDS) as path:
        pq.write_table(pa.concat_tables(tables), path)


def read_records(folder: str | Path) -> pd.DataFrame:
    """The table of a finished study.

    Raises:
        UserError: there is none.
    """
    path = Path(folder) / RECORDS
    if not path.is_file():
        raise UserError(f"{folder} is not the folder of a finished study (no {RECORDS} in it)")
    return pd.read_parquet(path)


def write_tokens(path: Path, table: TokenTable, plan_index: Sequence[int], embeddings: np.ndarray | None) -> None:
    """Stores the tokens of n images; plans are shared, so each is written once.

    Args:
        path: Of the file.
        table: Of the images.
        plan_index: Plan of each image, counted from 0 on.
        embeddings: [n, D] of the images, or None.
    """
    first = [list(plan_index).index(plan) for plan in range(max(plan_index) + 1)]
    arrays: dict[str, Any] = {
        "codes": table.codes.astype(np.int32),
        "image_entropy": table.image_entropy,
        "guided_entropy": table.guided_entropy,
        "plan_index": np.array(plan_index, np.int32),
        "plan_lengths": np.array([len(table.plan_ids[i]) for i in first], np.int32),
        "plan_ids": np.concatenate([table.plan_ids[i] for i in first]).astype(np.int32),
        "plan_texts": np.array([text for i in first for text in table.plan_texts[i]], dtype=np.str_),
        "text_entropy": np.concatenate([table.text_entropy[i] for i in first]).astype(np.float32),
    }
    if embeddings is not None:
        arrays["embeddings"] = embeddings.astype(np.float32)
    with whole(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_tokens(folder: str | Path, setting: str, prompt_index: int) -> TokenTable:
    """The tokens of one setting's images of one prompt, rows as in the table.

    Raises:
        UserError: they were not drawn.
    """
    file = _load(folder, setting, prompt_index)
    ends = np.cumsum(file["plan_lengths"])[:-1]
    ids, texts, entropy = (np.split(file[name], ends) for name in ("plan_ids", "plan_texts", "text_entropy"))
    plans = file["plan_index"]
    return TokenTable(
        codes=file["codes"],
        image_entropy=file["image_entropy"],
        guided_entropy=file["guided_entropy"],
        plan_ids=[ids[plan] for plan in plans],
        plan_texts=[texts[plan].tolist() for plan in plans],
        text_entropy=[entropy[plan] for plan in plans],
    )


def read_embeddings(folder: str | Path, records: pd.DataFrame) -> np.ndarray | None:
    """[images, D] embeddings of the table's images in its order; None where no reward gives any."""
    units = records[["setting", "prompt_index"]].drop_duplicates()
    parts = [_load(folder, setting, index).get("embeddings") for setting, index in units.itertuples(index=False)]
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if len(there) == len(parts) else None


def _load(folder: str | Path, setting: str, prompt_index: int) -> Mapping[str, np.ndarray]:
    path = tokens_path(Path(folder), Unit(setting, prompt_index))
    if not path.is_file():
        raise UserError(f"{folder} has no tokens of setting {setting}, prompt {prompt_index} (no {path})")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
