"""Prompts say what their `scene` asks, in the schema of the training file, and the splits are apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from egrpo.data import read_prompts
from egrpo.paths import resolve
from egrpo.shapes import atlas, oracle
from egrpo.shapes.plans import draw_scene
from egrpo.shapes.pretrain.__main__ import write_prompts
from egrpo.shapes.pretrain.language import spoil_until_wrong
from egrpo.shapes.prompts import draw, draw_open, is_unseen_composition, make_splits, split_of
from egrpo.shapes.scene import judge
from egrpo.types import TASK_TYPES, PromptRecord
from tests.shapes.helpers import phrase

FIGURES = {"circle": "round", "square": "square", "triangle": "triangular", "cross": "crossed"}
NUMBERS = ("zero", "one", "two", "three", "four")
PREFIXES = ("a photo of ", "a picture of ")


def drawn(task: str, count: int = 200) -> list[PromptRecord]:
    rng = np.random.default_rng(3)
    return [draw(rng, task) for _ in range(count)]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[PromptRecord]]:
    return make_splits()


@pytest.mark.parametrize("task", TASK_TYPES)
def test_records_survive_the_prompt_file(task, tmp_path):
    records = drawn(task)
    write_prompts(tmp_path / "prompts.jsonl", records)
    assert read_prompts(tmp_path / "prompts.jsonl") == records
    assert {record.task_type for record in records} == {task}


@pytest.mark.parametrize("task", TASK_TYPES)
def test_a_scene_drawn_for_the_prompt_is_right_on_pixels_and_a_spoiled_one_is_not(task):
    rng = np.random.default_rng(4)
    for record in drawn(task):
        spec = oracle.spec_of(record)
        things = draw_scene(spec, rng)
        assert oracle.score(atlas.paint(atlas.encode(things, rng)), record) == 1
        spoiled = spoil_until_wrong(things, spec, rng)
        assert judge(spoiled, spec) < 1
        assert oracle.score(atlas.paint(atlas.encode(spoiled, rng)), record) < 1


def wanted_text(record: PromptRecord) -> str:
    """The prompt without its opening, written anew from `scene` alone (words that vary are left as they stand)."""
    spec, prompt = record.extra["scene"], record.prompt
    parts = spec["parts"]
    names = [phrase(part) for part in parts]
    if record.task_type == "shape":
        names = [f"{FIGURES[part['shape']]} figure" for part in parts]
    if record.task_type == "numeracy":
        return " and ".join(f"{NUMBERS[p['count']]} {phrase(p)}{'s' * (p['count'] > 1)}" for p in parts).replace(
            "crosss", "crosses"
        )
    if record.task_type == "complex":
        verb = next(word for word in ("is", "stands", "sits") if f" {word} " in prompt)
        return f"the {names[0]} {verb} {spec['locality']} the {names[1]}"
    if record.task_type == "spatial":
        return f"a {names[0]} {spec['locality']} a {names[1]}"
    if record.task_type == "non":
        attribute, kind = spec["bond"]
        words = {"color": ("color", "paint"), "texture": ("texture", "pattern")}[attribute]
        noun = next(word for word in words if prompt.rstrip("s").endswith(word))
        tail = f"of the same {noun}" if kind == "same" else f"of different {noun}s"
        return f"a {names[0]} and a {names[1]} {tail}"
    joint = " with " if " with " in prompt else " and "
    return joint.join(f"a {name}" for name in names)


@pytest.mark.parametrize("task", TASK_TYPES)
def test_the_text_says_what_the_scene_asks(task):
    for record in drawn(task):
        text = record.prompt
        for prefix in PREFIXES:
            text = text.removeprefix(prefix)
        assert text == wanted_text(record)


@pytest.mark.parametrize("task", TASK_TYPES)
def test_the_rewards_keys_say_what_the_scene_asks(task):
    for record in drawn(task):
        spec = record.extra["scene"]
        shapes = [part["shape"] for part in spec["parts"]]
        assert record.nouns == (["figure"] * len(shapes) if task == "shape" else shapes)
        names = {
            "color": [phrase(part) for part in spec["parts"]],
            "shape": [f"{FIGURES[shape]} figure" for shape in shapes],
            "texture": [phrase(part) for part in spec["parts"]],
            "complex": [phrase(part) for part in spec["parts"]],
        }
        assert record.attr_nouns == names.get(task)
        related = task in ("spatial", "complex")
        info = {"obj1": shapes[0], "obj2": shapes[-1], "locality": spec.get("locality")}
        assert record.spatial_info == (info if related else None)
        counts = [{"obj_name": part["shape"], "num": part["count"]} for part in spec["parts"]]
        assert record.numeracy_info == (counts if task == "numeracy" else None)
        assert ("locality" in spec, "bond" in spec) == (related, task == "non")


def test_draw_gives_every_task_about_equally():
    rng = np.random.default_rng(0)
    tasks = [draw(rng).task_type for _ in range(1600)]
    assert all(150 <= tasks.count(task) <= 250 for task in TASK_TYPES)  # 200 expected, standard deviation 13


def texts(records: list[PromptRecord]) -> set[str]:
    return {record.prompt for record in records}


def test_splits_are_apart(splits):
    assert {name: len(records) for name, records in splits.items()} == {
        "train": 1600,
        "seen": 160,
        "unseen_prompt": 480,
        "unseen_composition": 160,
    }
    for name, records in splits.items():
        assert len(texts(records)) == len(records)
        assert {record.extra["split"] for record in records} == {name}
    train, unseen, compositions = (texts(splits[n]) for n in ("train", "unseen_prompt", "unseen_composition"))
    assert train.isdisjoint(unseen)
    assert train.isdisjoint(compositions)
    assert unseen.isdisjoint(compositions)
    assert texts(splits["seen"]) <= train


def test_train_holds_nothing_held_out(splits):
    assert not any(is_unseen_composition(record) or split_of(record) == "held_out" for record in splits["train"])
    assert all(split_of(record) == "held_out" for record in splits["unseen_prompt"])
    assert all(is_unseen_composition(record) for record in splits["unseen_composition"])


def asked(record: PromptRecord) -> str:
    """What is asked for, whatever the wording and, without a relation, the order."""
    scene = record.extra["scene"]
    sides = {"on top of": "above", "on the left of": "left of", "on the right of": "right of"}
    locality = scene.get("locality")
    parts = [str(sorted(part.items())) for part in scene["parts"]]
    return str(
        (record.task_type, parts if locality else sorted(parts), sides.get(locality, locality), scene.get("bond"))
    )


def test_no_held_out_scene_is_asked_for_in_training_in_other_words(splits):
    known = {asked(record) for record in splits["train"]}
    assert known.isdisjoint(map(asked, splits["unseen_prompt"]))
    assert known.isdisjoint(map(asked, splits["unseen_composition"]))
    rng = np.random.default_rng(10)
    held_out = {asked(record) for record in splits["unseen_prompt"]}
    assert not any(asked(draw_open(rng)) in held_out for _ in range(3000))


def composition(record: PromptRecord) -> tuple[str, str, str] | None:
    """Colour and shape of the first thing and what side it is on, where the prompt names all three."""
    sides = {"on top of": "above", "on the left of": "left of", "on the right of": "right of"}
    first, locality = record.extra["scene"]["parts"][0], record.extra["scene"].get("locality")
    return (first["color"], first["shape"], sides.get(locality, locality)) if locality and "color" in first else None


def test_unseen_compositions_occur_in_no_other_split_even_under_another_name(splits):
    known = {composition(record) for name in ("train", "seen", "unseen_prompt") for record in splits[name]}
    unseen = {composition(record) for record in splits["unseen_composition"]}
    assert None not in unseen
    assert known.isdisjoint(unseen)
    assert len(known - {None}) > 60 and len(unseen) > 5  # of 5 colours x 4 shapes x 5 relations = 100


def test_splits_are_balanced(splits):
    """Task types come equally often, but for three that can ask for little; they give what they have."""
    few = {"object", "shape", "texture"}
    for name, tasks in (
        ("train", TASK_TYPES),
        ("unseen_prompt", TASK_TYPES),
        ("unseen_composition", ("spatial", "complex")),
    ):
        counts = {task: sum(record.task_type == task for record in splits[name]) for task in tasks}
        others = [count for task, count in counts.items() if task not in few]
        assert max(others) - min(others) <= 1, counts
        assert min(counts.values()) >= 10, counts
        assert sum(counts.values()) == len(splits[name])


def test_draw_open_never_gives_a_held_out_prompt(splits):
    rng = np.random.default_rng(9)
    held_out = texts(splits["unseen_prompt"]) | texts(splits["unseen_composition"])
    for _ in range(3000):
        record = draw_open(rng)
        assert record.prompt not in held_out
        assert split_of(record) == "open"
        assert not is_unseen_composition(record)


def test_splits_are_the_same_every_time(splits):
    assert make_splits() == splits
    assert texts(make_splits(seed=8)["train"]) != texts(splits["train"])


def test_asking_for_more_prompts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="of 100000 distinct prompts"):
        make_splits(train=10, seen=1, unseen=1, compositions=100000)


@pytest.mark.parametrize("name", ["train", "validation"])
def test_shipped_prompts_are_the_splits(name, splits):
    path = Path(resolve(f"package:egrpo/shapes/assets/prompts/{name}.jsonl"))
    if not path.is_file():
        pytest.skip("the shapes world's prompts are not in this checkout (python -m egrpo.shapes.pretrain makes them)")
    parts = {"train": ("train",), "validation": ("unseen_prompt", "unseen_composition", "seen")}[name]
    expected = [record for part in parts for record in splits[part]]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record.to_dict() for record in expected]
    assert read_prompts(path) == expected
