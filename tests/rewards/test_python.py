from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from egrpo.rewards.ensemble import applying
from egrpo.rewards.python import PythonReward
from egrpo.types import PromptRecord

IMAGES = [Image.new("RGB", (4, 4), (grey, grey, grey)) for grey in (0, 51, 255)]
RECORDS = [PromptRecord("a cat"), PromptRecord("two dogs"), PromptRecord("a hat")]

SOURCE = """
import numpy as np

def score(images, records):
    return [image.getpixel((0, 0))[0] / 255 for image in images]

def lengths(images, records):
    return np.array([len(record.prompt) for record in records])

def talk(images, records):
    return None

def lonely(images):
    return [0.0 for image in images]

def partial(images, records):
    return [0.5 for image in images]

partial.applies = lambda records: [record.prompt != "a cat" for record in records]

class Scorer:
    @staticmethod
    def static(images, records):
        return [1.0 for image in images]

scale = 3
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package outside the project: my_lab.brightness and modules that fail on import."""
    package = tmp_path / "my_lab_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "brightness.py").write_text(SOURCE)
    (package / "needy.py").write_text("import a_library_nobody_has\n")
    (package / "broken.py").write_text("raise KeyError('weights')\n")
    (package / "torn.py").write_text("def score(images, records:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_a_dotted_path(lab):
    values = PythonReward("my_lab_of_tests.brightness.score")(IMAGES, RECORDS)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.2, 1.0]))
    assert values.dtype == torch.float32


def test_arrays_and_static_methods(lab):
    assert PythonReward("my_lab_of_tests.brightness.lengths")(IMAGES, RECORDS).tolist() == [5.0, 8.0, 5.0]
    assert PythonReward("my_lab_of_tests.brightness.Scorer.static")(IMAGES, RECORDS).tolist() == [1.0] * 3


def test_where_the_function_applies(lab):
    told = applying("python", PythonReward("my_lab_of_tests.brightness.partial"), RECORDS)
    assert told.tolist() == [False, True, True]
    plain = PythonReward("my_lab_of_tests.brightness.score")
    assert not hasattr(plain, "applies")
    assert applying("python", plain, RECORDS).tolist() == [True] * 3


def test_values_are_float32_whatever_the_default_type(lab):
    torch.set_default_dtype(torch.bfloat16)
    try:
        values = PythonReward("my_lab_of_tests.brightness.score")(IMAGES, RECORDS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor([0.0, 0.2, 1.0]))


def test_a_file(lab, tmp_path, monkeypatch):
    by_path = PythonReward(f"{lab}/brightness.py:score")
    torch.testing.assert_close(by_path(IMAGES, RECORDS), torch.tensor([0.0, 0.2, 1.0]))
    monkeypatch.chdir(tmp_path)
    assert PythonReward("my_lab_of_tests/brightness.py:lengths")(IMAGES, RECORDS).tolist() == [5.0, 8.0, 5.0]


@pytest.mark.parametrize(
    "function, words",
    [
        (None, "set reward.python.reward.function="),
        ("score", "names no function: give package.module.function"),
        ("my_lab_of_tests..score", "names no function"),
        ("no_such_lab.brightness.score", "there is no module no_such_lab.brightness"),
        ("my_lab_of_tests.darkness.score", "has no 'darkness'"),
        ("my_lab_of_tests.brightness.scores", "has no 'scores'"),
        ("my_lab_of_tests.brightness.scale", "is a int, not a function"),
        ("my_lab_of_tests.brightness.Scorer", "is a class"),
        ("my_lab_of_tests.brightness.lonely", "cannot be called with (images, records)"),
        ("nowhere/brightness.py:score", "there is no file nowhere/brightness.py"),
    ],
)
def test_a_wrong_name_is_told_when_built(lab, function, words: str):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        PythonReward(function)
    assert "\n" not in str(caught.value)


def test_a_missing_name_of_a_file(lab):
    with pytest.raises(ValueError, match=r"brightness\.py has no 'scores'"):
        PythonReward(f"{lab}/brightness.py:scores")


@pytest.mark.parametrize("form", ["my_lab_of_tests.{}.score", "{lab}/{}.py:score"])
@pytest.mark.parametrize("module, kind", [("needy", ModuleNotFoundError), ("broken", KeyError), ("torn", SyntaxError)])
def test_an_error_inside_the_module_keeps_its_cause(lab, form: str, module: str, kind: type[Exception]):
    with pytest.raises(ValueError, match=rf"importing .*{module}.* raised {kind.__name__}") as caught:
        PythonReward(form.format(module, lab=lab))
    assert isinstance(caught.value.__cause__, kind)


def test_what_is_no_list_of_numbers(lab):
    with pytest.raises(TypeError, match="returned a NoneType that is no list of numbers"):
        PythonReward("my_lab_of_tests.brightness.talk")(IMAGES, RECORDS)


def test_a_wrong_length_is_left_to_the_ensemble(lab):
    assert PythonReward("my_lab_of_tests.brightness.score")(IMAGES[:2], RECORDS).shape == (2,)
    assert isinstance(np.float32(1.0), np.floating)
