"""From the table of images to `statistics.json`, `figures/` and `report.html`."""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from egrpo.analysis.figures import table_figures
from egrpo.analysis.statistics import compute, present
from egrpo.analysis.study import StudyDescription, TokenReader
from egrpo.analysis.style import Drawn
from egrpo.analysis.tables import all_tables, claim_rows, letter, number
from egrpo.analysis.token_figures import token_figures
from egrpo.base.files import write_whole

SAMPLE_PROMPTS = 6
SAMPLE_PIXELS = 192  # side of a sample in the report, at most


def write_report(
    folder: Path,
    records: pd.DataFrame,
    study: StudyDescription,
    *,
    tokens: TokenReader | None = None,
    embeddings: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes `statistics.json`, `figures/*.png` and `*.pdf`, and `report.html` into the study's folder.

    Args:
        folder: Of the study; image files of the table are relative to it.
        records: One row an image (columns in `egrpo.analysis.records`).
        study: What was asked.
        tokens: Reads the tokens of a setting's images of one prompt; without it what needs them is left out, and said.
        embeddings: [images, D] of the images, rows as in `records`; without them diversity is that of image tokens.

    Returns:
        What `statistics.json` holds.

    Raises:
        UserError: the table has no rows, lacks columns, or holds settings that the study does not name.
    """
    folder = Path(folder)
    if tokens is not None:
        tokens = functools.cache(tokens)  # every figure reads them again
    statistics = compute(records, study, tokens, embeddings)
    figures = folder / "figures"
    drawn = table_figures(figures, records, statistics, study) + token_figures(folder, records, study, tokens)
    statistics["figures_left_out"] = {about.name: about.reason for about in drawn if about.reason}
    _write(folder / "statistics.json", json.dumps(statistics, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    _write(folder / "report.html", render(folder, records, statistics, study, drawn))
    return statistics


def render(
    folder: Path, records: pd.DataFrame, statistics: dict[str, Any], study: StudyDescription, drawn: list[Drawn]
) -> str:
    """The report's HTML, with everything in it: no other file and no network is needed to read it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("egrpo.analysis", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "letter": letter}
    findings = [
        {**finding, "table": claim_rows(finding["claims"]), "within": claim_rows(finding["claims_within_prompts"])}
        for finding in statistics["findings"]
    ]
    pictures = [None if about.reason else _inline(folder / "figures" / f"{about.name}.png") for about in drawn]
    return environment.get_template("report.html.jinja").render(
        study=study,
        statistics=statistics,
        settings={name: study.settings[name] for name in present(records, study)},
        findings=findings,
        tables=all_tables(statistics, study),
        figures=list(zip(drawn, pictures, strict=True)),
        samples=samples(folder, records, study),
    )


def samples(folder: Path, records: pd.DataFrame, study: StudyDescription) -> list[dict[str, Any]]:
    """Evenly chosen prompts with every setting's first image; None where a setting has none or the file is missing."""
    prompts = np.sort(records["prompt_index"].unique())
    chosen = prompts[np.unique(np.linspace(0, len(prompts) - 1, min(SAMPLE_PROMPTS, len(prompts))).astype(int))]
    out = []
    for prompt in chosen:
        rows = records[records["prompt_index"] == prompt].sort_values(["plan_index", "image_index"])
        cells = []
        for name in present(records, study):
            first = rows[rows["setting"] == name].head(1)
            path = folder / first["file"].iloc[0] if len(first) else None
            there = path is not None and path.is_file()
            cells.append(
                {
                    "image": _inline(path, SAMPLE_PIXELS) if there and path else None,
                    "reward": float(first["reward"].iloc[0]) if len(first) else None,
                    "plan": str(first["plan"].iloc[0]) if len(first) else "",
                }
            )
        out.append({"prompt": str(rows["prompt"].iloc[0]), "cells": cells})
    return out


def _inline(path: Path, most: int | None = None) -> str:
    """A PNG as a data URI; shrunk to `most` pixels a side where it is larger."""
    content = path.read_bytes()
    if most is not None:
        with Image.open(path) as picture:
            if max(picture.size) > most:
                small, buffer = picture.convert("RGB"), io.BytesIO()
                small.thumbnail((most, most))
                small.save(buffer, "PNG")
                content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _write(path: Path, text: str) -> None:
    """Written whole or not at all."""
    write_whole(path, text.encode())
