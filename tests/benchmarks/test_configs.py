"""conf/benchmark: every yaml builds, its numbers are the official ones, and its models can be told where to lie."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.benchmarks.pieces import benchmark
from tests.conf.helpers import CONF, check_target, choices_of, targets

NAMES = choices_of("benchmark")


@pytest.mark.parametrize("name", NAMES)
def test_every_target_takes_its_arguments(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(None, [f"+benchmark={name}", "+reward_models=models"])
    nodes = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    found = dict(targets(nodes))
    assert found["benchmark"]["_target_"].startswith("egrpo.benchmarks.")
    for path, node in found.items():
        check_target(path, node)


@pytest.mark.parametrize("name", NAMES)
def test_names_within_a_benchmark_fit_each_other(name):
    of = benchmark(name)
    columns = set(of.table.columns) - {"overall"}
    assert columns == set(of.expected)
    assert set(of.weights) <= columns and ("overall" in of.table.columns) == bool(of.weights)
    assert set(of.scored_by) <= columns and set(of.scored_by.values()) <= set(of.scorers)
    for row in of.table.published:
        assert row.source and set(row.scores) <= set(of.table.columns)


@pytest.mark.parametrize(
    "name, prompts",
    [("t2i_compbench", 8 * 300), ("geneval", 553), ("wise", 1000), ("wise_verified", 1000), ("shapes", 1280)],
)
def test_official_sets_have_their_size(name, prompts):
    assert sum(benchmark(name).expected.values()) == prompts  # shapes: all, and its two splits


def test_a_scorer_that_does_not_exist_is_named():
    with pytest.raises(Exception, match="scored_by names"):
        benchmark("geneval", "benchmark.scored_by.counting=nobody")


def test_counts_below_one_are_refused():
    for name in ("t2i_compbench", "geneval", "shapes"):
        with pytest.raises(Exception, match="images_per_prompt=0: give at least 1"):
            benchmark(name, "benchmark.images_per_prompt=0")
