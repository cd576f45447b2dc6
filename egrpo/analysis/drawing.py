"""One unit of work: draw, score and store all images of one prompt in one setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from egrpo.analysis.records import JUDGE, REWARD, distribution, write_part, write_tokens
from egrpo.analysis.storage import image_file, tokens_path, whole
from egrpo.analysis.study import TokenTable
from egrpo.analysis.work import STUDY_STEP, Sampling, Setting, Sizes, Unit, Work
from egrpo.policy import JanusPolicy
from egrpo.rewards import Reward, RewardEnsemble, RewardError
from egrpo.rewards.measuring import measure
from egrpo.types import PromptRecord, Rollout


@dataclass(frozen=True)
class Scorers:
    """What images are scored with."""

    rewards: RewardEnsemble
    judges: Mapping[str, Reward]

    def columns(self, images: list[Image.Image], record: PromptRecord) -> list[dict[str, float]]:
        """Columns of scores, a dict an image; NaN where a reward says nothing about this prompt, or was dropped."""
        records = [record] * len(images)
        table = self.rewards(images, records)
        if not bool(table.judged.all()):
            raise RewardError(
                f"no reward is left for {int((~table.judged).sum())} of {len(images)} images of the prompt "
                f"{record.prompt!r}, and a study needs one for each: look at the warnings above"
            )
        values = table.values.masked_fill(~table.told, torch.nan).double()
        columns = {"reward": table.total.double().tolist()}
        columns |= {REWARD + name: values[:, i].tolist() for i, name in enumerate(table.names)}
        for name, judge in self.judges.items():
            told = measure(name, judge, images, records, failures=self.rewards.failures)
            columns[JUDGE + name] = told.values.double().tolist()
        return [{name: column[i] for name, column in columns.items()} for i in range(len(images))]

    def embeddings(self, images: list[Image.Image]) -> np.ndarray | None:
        """[N, D] by the first reward that embeds images; None if none does."""
        for weighted in self.rewards.rewards.values():
            embed = getattr(weighted.reward, "embed", None) if weighted is not None else None
            if embed is not None:
                return embed(images).float().cpu().numpy()
        return None


def draw_unit(policy: JanusPolicy, scorers: Scorers, work: Work, unit: Unit) -> int:
    """Draws, scores and stores a unit; its part of the table comes last. Returns how many images it has."""
    setting, record = work.settings[unit.setting], work.prompts[unit.prompt_index]
    rollout = drawn(policy, record, setting, work.sizes, work.sampling)
    table = token_table(policy, rollout, work.sampling)
    images = [Image.fromarray(pixels) for pixels in rollout.pixels.cpu().numpy()]
    scores = scorers.columns(images, record)
    per_plan = work.sizes.images_per_plan if setting.cot else len(rollout)
    rows: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        plan_index, image_index = divmod(i, per_plan)
        file = image_file(unit, plan_index, image_index)
        with whole(work.folder / file) as path:
            image.save(path, format="PNG")
        rows.append(
            {
                **{"setting": unit.setting, "prompt": record.prompt, "prompt_index": unit.prompt_index},
                **{"task_type": record.task_type, "split": record.extra.get("split"), "plan": rollout.plans[i]},
                **{"plan_index": plan_index, "plan_id": f"{unit.setting}/{unit.prompt_index}/{plan_index}"},
                **{"image_index": image_index, "seed": work.sampling.seed, "file": file},
                **scores[i],
                **{"plan_tokens": len(table.plan_ids[i]), "plan_truncated": bool(rollout.truncated[i])},
                **distribution("text_entropy", table.text_entropy[i]),
                **distribution("image_entropy", table.image_entropy[i]),
                **distribution("guided_entropy", table.guided_entropy[i]),
            }
        )
    plans = [row["plan_index"] for row in rows]
    write_tokens(tokens_path(work.folder, unit), table, plans, scorers.embeddings(images))
    write_part(work, unit, rows)
    return len(rows)


def drawn(policy: JanusPolicy, record: PromptRecord, setting: Setting, sizes: Sizes, how: Sampling) -> Rollout:
    """All images of one prompt in one setting. Settings share their random numbers, so that they compare in pairs."""
    return policy.rollout(
        [record],
        sizes.images(setting.cot),
        seed=how.seed,
        step=STUDY_STEP,
        cot=setting.cot,
        cfg_weight=how.cfg_weight,
        temperature=how.temperature,
        chunk=how.batch_size,
        top_k=how.top_k,
        top_p=how.top_p,
        images_per_plan=sizes.images_per_plan,
    )


def token_table(policy: JanusPolicy, rollout: Rollout, how: Sampling) -> TokenTable:
    """Tokens of a rollout with the entropies that were recorded while drawing, and those of the guided logits."""
    ids: list[np.ndarray] = [np.zeros(0, np.int64)] * len(rollout)
    entropy: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rollout)
    if rollout.text is not None:
        masks = rollout.text.mask.cpu().numpy()
        ids = [row[mask] for row, mask in zip(rollout.text.tokens.cpu().numpy(), masks, strict=True)]
        entropy = [row[mask] for row, mask in zip(rollout.text.entropy.cpu().numpy(), masks, strict=True)]
    return TokenTable(
        codes=rollout.image.tokens.cpu().numpy(),
        image_entropy=rollout.image.entropy.float().cpu().numpy(),
        guided_entropy=guided_entropy(policy, rollout, how).float().cpu().numpy(),
        plan_ids=ids,
        plan_texts=[[str(policy.tokenizer.decode([token])) for token in row.tolist()] for row in ids],
        text_entropy=entropy,
    )


@torch.no_grad()
def guided_entropy(policy: JanusPolicy, rollout: Rollout, how: Sampling) -> torch.Tensor:
    """[N, T] entropies of the guided distribution that image tokens are drawn from, before cuts, 0..1."""
    if how.cfg_weight == 1:
        return rollout.image.entropy
    guided = replace(rollout, guidance=how.cfg_weight)
    size = how.batch_size or len(rollout)
    parts = [guided[start : start + size] for start in range(0, len(rollout), size)]
    return torch.cat([policy.score(part, temperature=how.temperature, segment="image").entropy for part in parts])


def load_scorers(ensemble: Any, judges: Any) -> Scorers:
    """Builds rewards and judges from their nodes."""
    from hydra.utils import instantiate

    return Scorers(instantiate(ensemble, _convert_="object"), instantiate(judges, _convert_="object"))
