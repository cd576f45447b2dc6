"""How different the images and plans of one prompt are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse, stats
from sklearn.preprocessing import normalize

from egrpo.base.errors import UserError

SUBSETS = 20  # of a prompt's images, where settings have different numbers of them


def vendi(vectors: np.ndarray) -> np.ndarray:
    """Vendi score, the effective number of different items: 1 = all alike, n = n orthogonal ones.

    exp of the Shannon entropy of the eigenvalues of K / n, K the cosine kernel of the n items.

    Source: Friedman & Dieng, The Vendi Score (TMLR 2023, arXiv 2210.02410).

    Args:
        vectors: [..., n, D]; none all 0.

    Returns:
        [...]

    Raises:
        UserError: a vector is all 0 or not finite.
    """
    flat = vectors.reshape(-1, vectors.shape[-1])
    if not np.isfinite(flat).all() or not (flat != 0).any(axis=1).all():
        raise UserError("an image's vector is all 0 or not finite: it has no cosine with others")
    unit = normalize(flat).reshape(vectors.shape)
    return _score(unit @ np.swapaxes(unit, -1, -2))


def _score(kernel: np.ndarray) -> np.ndarray:
    """[..., n, n] cosine kernel -> [...]."""
    eigenvalues = np.linalg.eigvalsh(kernel / kernel.shape[-1]).clip(min=0)
    return np.exp(stats.entropy(eigenvalues, axis=-1))


def kernels(vectors: np.ndarray | sparse.csr_array, rows: pd.DataFrame) -> dict[int, np.ndarray]:
    """Cosine kernel [n, n] of every prompt's images; `rows` says which prompt each vector belongs to."""
    unit = normalize(vectors)
    out = {}
    for prompt, indices in rows.reset_index(drop=True).groupby("prompt_index").indices.items():
        kernel = unit[indices] @ unit[indices].T
        out[int(prompt)] = np.asarray(kernel.todense() if sparse.issparse(kernel) else kernel, float)
    return out


def histograms(codes: np.ndarray) -> sparse.csr_array:
    """Image codes [n, T] int -> how often each image holds each code [n, codes]."""
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    ones = np.ones(codes.size)
    return sparse.csr_array((ones, (rows, codes.ravel())), shape=(len(codes), int(codes.max()) + 1))


def diversity_table(rows: pd.DataFrame, kernel: dict[int, np.ndarray], size: int, seed: int) -> pd.DataFrame:
    """One setting's diversity, one row a prompt; NaN where there are too few images.

    Columns:
        vendi: of all the prompt's images.
        vendi_equal: of `size` images, the number that every setting has; where a prompt has more, the mean over up to
            20 random choices. Only this one may be compared between settings: more images score higher by themselves.
        vendi_within_plan: of the images of one plan, mean over plans.
        plans_distinct: different plans over plans.
    """
    rng = np.random.default_rng(seed)
    out = {}
    for prompt, part in rows.groupby("prompt_index"):
        matrix = kernel[int(prompt)]
        plans = part.groupby("plan_index")["plan"].first()
        inside = [indices for indices in part.reset_index().groupby("plan_index").indices.values() if len(indices) > 1]
        within = [float(_score(matrix[np.ix_(i, i)])) for i in inside]
        out[prompt] = {
            "vendi": float(_score(matrix)) if len(part) > 1 else np.nan,
            "vendi_equal": _of_size(matrix, size, rng),
            "vendi_within_plan": float(np.mean(within)) if within else np.nan,
            "plans_distinct": plans.nunique() / len(plans) if (plans != "").any() else np.nan,
        }
    return pd.DataFrame.from_dict(out, orient="index").rename_axis("prompt_index")


def _of_size(matrix: np.ndarray, size: int, rng: np.random.Generator) -> float:
    if size < 2 or len(matrix) < size:
        return np.nan
    if len(matrix) == size:
        return float(_score(matrix))
    chosen = np.stack([rng.choice(len(matrix), size, replace=False) for _ in range(SUBSETS)])
    return float(_score(matrix[chosen[:, :, None], chosen[:, None, :]]).mean())


def equal_size(counts: Sequence[int]) -> int:
    """The number of images that every prompt of every setting has at least."""
    return min(counts, default=0)
