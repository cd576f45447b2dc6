"""What the table and the files beside it hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from egrpo.analysis.records import distribution, read_embeddings, read_records, read_tokens, schema
from egrpo.shapes.reward import OracleReward
from tests.analysis.studies import config, work


@pytest.fixture(scope="module")
def records(study: Path) -> pd.DataFrame:
    return read_records(study)


def test_one_row_an_image_in_the_order_of_settings_prompts_plans_and_images(records: pd.DataFrame):
    keys = list(records[["setting", "prompt_index", "plan_index", "image_index"]].itertuples(index=False, name=None))
    plain = [("base", prompt, 0, image) for prompt in range(3) for image in range(2)]
    planned = [("base_cot", p, plan, image) for p in range(3) for plan in range(2) for image in range(2)]
    assert keys == plain + planned
    assert list(records.columns) == schema(["shapes_oracle"], ["oracle", "strict"]).names
    assert (records["seed"] == 0).all() and records["split"].str.startswith("unseen").all()


def test_plans_belong_to_their_images(records: pd.DataFrame):
    plain, planned = records[records.setting == "base"], records[records.setting == "base_cot"]
    assert (plain.plan == "").all() and (plain.plan_tokens == 0).all()
    assert plain.filter(like="text_entropy").isna().all().all()
    assert (planned.groupby("plan_id").plan.nunique() == 1).all() and planned.plan_id.nunique() == 6
    assert planned.plan_id.iloc[5] == "base_cot/1/0"
    assert planned.plan_tokens.between(1, 6).all() and planned.filter(like="text_entropy").notna().all().all()


def test_rewards_are_those_of_the_image_in_its_file(study: Path, records: pd.DataFrame):
    chosen = {record.prompt: record for record in work(study).prompts}
    images = [Image.open(study / file) for file in records.file]
    own = OracleReward(strict=False)(images, [chosen[prompt] for prompt in records.prompt]).numpy()
    np.testing.assert_allclose(records["reward/shapes_oracle"], own, atol=1e-6)
    np.testing.assert_allclose(records["judge/oracle"], own, atol=1e-6)
    weight = config(study).reward.shapes_oracle.weight
    np.testing.assert_allclose(records["reward"], weight * own, atol=1e-6)
    assert records.file.nunique() == len(records) and np.std(own) > 0


@pytest.mark.parametrize("name", ["image_entropy", "guided_entropy", "text_entropy"])
def test_distributions_are_those_of_the_tokens(study: Path, records: pd.DataFrame, name: str):
    for (setting, prompt), rows in records.groupby(["setting", "prompt_index"], sort=False):
        table = read_tokens(study, setting, prompt)
        for (_, row), values in zip(rows.iterrows(), getattr(table, name), strict=True):
            if not len(values):
                assert setting == "base" and name == "text_entropy"
                continue
            values = values.astype(float)
            assert row[f"{name}_mean"] == pytest.approx(values.mean(), abs=1e-9)
            assert row[f"{name}_std"] == pytest.approx(np.sqrt(((values - values.mean()) ** 2).mean()), abs=1e-9)
            assert row[f"{name}_q50"] == pytest.approx(np.median(values), abs=1e-9)
            assert row[f"{name}_q25"] <= row[f"{name}_q50"] <= row[f"{name}_q75"]


def test_tokens_of_a_plan_stand_with_each_of_its_images(study: Path, records: pd.DataFrame):
    rows = records[(records.setting == "base_cot") & (records.prompt_index == 1)]
    table = read_tokens(study, "base_cot", 1)
    assert table.codes.shape == table.image_entropy.shape == table.guided_entropy.shape == (4, 36)
    assert (
        [len(ids) for ids in table.plan_ids] == [len(texts) for texts in table.plan_texts] == rows.plan_tokens.tolist()
    )
    assert np.array_equal(table.plan_ids[0], table.plan_ids[1])
    for plan, texts in zip(rows.plan, table.plan_texts, strict=True):
        assert all(word in "".join(texts) for word in plan.split())
    assert np.abs(table.guided_entropy - table.image_entropy).max() > 0.01
    assert [len(ids) for ids in read_tokens(study, "base", 1).plan_ids] == [0, 0]


def test_without_a_reward_that_embeds_there_are_no_embeddings(study: Path, records: pd.DataFrame):
    assert read_embeddings(study, records) is None


def test_distribution_literal():
    told = distribution("x", np.array([0.0, 0.0, 1.0, 1.0], np.float32))
    assert told == {"x_mean": 0.5, "x_std": 0.5, "x_q25": 0.0, "x_q50": 0.5, "x_q75": 1.0}
    assert all(np.isnan(value) for value in distribution("x", np.zeros(0)).values())


def test_what_is_not_there_is_told(study: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="not the folder of a finished study"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match="no tokens of setting base, prompt 7"):
        read_tokens(study, "base", 7)
