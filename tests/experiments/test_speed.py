"""The yardstick: the published step computes what ours does, and the command tells what it measured."""

from __future__ import annotations

import csv
import re

import pytest
import torch

from egrpo.algorithm.entropy_policies import entropy_guided
from experiments.speed import __main__ as command
from experiments.speed import decoding, growth, published
from experiments.speed.equality import TOLERANCES, check
from experiments.speed.growth import Curve
from experiments.speed.meter import ProcessMemory
from experiments.speed.report import Measured, last_line, step_ratio
from experiments.speed.sides import Ours
from experiments.speed.subject import DEFAULTS, build, read_settings

FEW = ["prompts=2", "group_size=2", "rewards=[hps]"]


@pytest.fixture(scope="module")
def shapes():
    """The shipped model, and our side of it."""
    subject = build(read_settings(DEFAULTS, ["shape=shapes", *FEW]))
    assert len({len(subject.policy.image_ids(record.prompt)) for record in subject.records}) > 1, "no padding to test"
    return subject, Ours(subject)


@pytest.fixture(scope="module")
def tiny():
    """Random weights of the smallest sizes."""
    subject = build(read_settings(DEFAULTS, ["shape=small", "dry_run=true", *FEW]))
    return subject, Ours(subject)


def test_the_published_step_computes_what_ours_does(shapes):
    found = check(*shapes)
    assert found.keys() == TOLERANCES.keys()


@pytest.mark.parametrize(
    "name, change",
    [
        ("draw_images", lambda plain: lambda *a, cfg_weight, **k: plain(*a, cfg_weight=1.0, **k)),
        ("write_plans", lambda plain: lambda *a, max_tokens, **k: plain(*a, max_tokens=max_tokens - 1, **k)),
        ("score_image", lambda plain: lambda model, image, temperature: plain(model, image, temperature * 1.001)),
        ("score_text", lambda plain: lambda model, text, temperature: plain(model, text, temperature * 1.001)),
        ("token_advantages", lambda plain: lambda *a: plain(*a) * 1.001),
        ("loss", lambda plain: lambda *a: plain(*a) * 1.001),
    ],
)
def test_a_side_that_computes_something_else_ends_the_run(tiny, monkeypatch, name, change):
    check(*tiny)
    monkeypatch.setattr(published, name, change(getattr(published, name)))
    with pytest.raises(ValueError, match="do not compute the same"):
        check(*tiny)


def test_thresholds_sorted_on_the_cpu_are_ours():
    source = torch.Generator().manual_seed(0)
    entropy = torch.rand(12, 40, generator=source)
    is_image = (torch.arange(40) >= 23).expand(12, 40)
    lengths = torch.tensor([1, 2, 3, 4, 5, 6, 9, 10, 11, 19, 20, 23])
    mask = is_image | (torch.arange(40) < lengths[:, None])
    advantages = torch.randn(12, generator=source)
    ours, _ = entropy_guided(advantages, entropy, mask, is_image)
    torch.testing.assert_close(published.token_advantages(advantages, entropy, mask, 23), ours)


def test_the_command_ends_with_both_ratios_and_leaves_every_run(tmp_path, capsys):
    sizes = ["growth_groups=[]", "growth_tokens=[4, 9]", "growth_vocabularies=[300, 900]", "growth_repeats=1"]
    folder = ["rewards=[hps]", "repeats=2", f"folder={tmp_path}"]
    command.main(["shape=janus_pro_1b", "dry_run=true", "growth=true", *sizes, *folder])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"speed: step_ratio=\d+\.\d\d scoring_memory_ratio=\d+\.\d\d", lines[-1])
    drawn = next(line for line in lines if line.startswith("plan tokens drawn"))
    assert len(set(re.findall(r"\d+", drawn))) == 1, drawn
    with (tmp_path / "janus_pro_1b" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["side"], row["run"]) for row in rows} == {(s, r) for s in ("published", "ours") for r in "01"}
    for row in rows:
        parts = [r for r in rows if (r["side"], r["run"]) == (row["side"], row["run"])]
        step = next(float(r["seconds"]) for r in parts if r["phase"] == "step")
        assert sum(float(r["seconds"]) for r in parts) <= 2 * step + 1e-3, "phases overlap"
    with (tmp_path / "janus_pro_1b" / "growth.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 2 * (2 + 2)
    memory = {
        (p["side"], p["size"]): float(p["value"]) for p in points if p["curve"] == "scoring memory over vocabulary"
    }
    assert memory["published", "900"] > memory["published", "300"]
    assert (tmp_path / "janus_pro_1b" / "growth.png").stat().st_size > 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["shape=large"], "shape=large is unknown: choose one of"),
        (["repeat=3"], "repeat: no such setting"),
        (["clock=cpu", "device=meta"], "choose wall, or cpu where device=cpu"),
        (["repeats=0"], "repeats=0: give at least 1"),
        (["checkpointing=some"], "choose one of true, false, ours"),
    ],
)
def test_a_wrong_setting_is_told(arguments, words):
    with pytest.raises(ValueError, match=words):
        read_settings(DEFAULTS, arguments)


def test_the_real_shapes_need_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"runs on an accelerator .* dry_run=true"):
        read_settings(DEFAULTS, ["shape=janus_pro_7b"])
    assert read_settings(DEFAULTS, ["shape=janus_pro_7b", "dry_run=true"]).device == "cpu"


def test_ratios_are_of_paired_runs():
    slow, fast = (Measured([{"step": s} for s in seconds]) for seconds in ((2.0, 8.0, 3.0), (1.0, 2.0, 2.0)))
    found = step_ratio(slow, fast)
    assert (found.middle, found.least, found.most) == (2.0, 1.5, 4.0)
    assert last_line(slow, fast) == "speed: step_ratio=2.00"
    slow.peaks, fast.peaks = {"scoring+backward": 400}, {"scoring+backward": 100}
    assert last_line(slow, fast) == "speed: step_ratio=2.00 scoring_memory_ratio=0.25"


def test_a_line_is_fitted_and_told():
    curve = Curve("step", "images", "seconds", [1, 2, 4], {"published": [3.0, 5.0, 9.0], "ours": [2.0, 3.0, 5.0]})
    assert curve.fit("published") == pytest.approx((1.0, 2.0, 1.0))
    assert growth.statement(curve).endswith("slopes published over ours 2.00")


def test_peak_memory_of_the_process_is_of_what_was_held_within():
    memory = ProcessMemory()
    for count in (50_000_000, 10_000_000):  # the smaller second: its peak is not the first one's
        before = memory.reset()
        held = torch.ones(count)
        assert memory.peak() - before == pytest.approx(4 * count, rel=0.1, abs=8_000_000)
        del held


def test_every_way_of_decoding_is_told(capsys):
    decoding.main(["shape=janus_pro_7b", "dry_run=true", "ways=[eager,static]", "context_tokens=20"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"limit by memory: [\d.]+ ms a token", lines[1])
    rows = [line.split() for line in lines[3:]]
    assert [row[0] for row in rows] == ["eager", "static"] and float(rows[0][3]) == 1
    assert all(float(value) > 0 for row in rows for value in row[2:4])
