"""Values written as overrides are read back by Hydra as they were."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from egrpo.settings import override

PARSER = OverridesParser.create()


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -3, 1e-5, 1e22, 0.3, "", "plain", "null", "True", "nan", "12", "1e3", "a,b", "a, b"),
        *(
            "{x: 1}",
            "[a]",
            "it's",
            'say "so"',
            "a=b",
            "#",
            "~/x",
            "/tmp/a-b/c_0.d",
            "/",
            "tail\\",
            "it\\'s",
            "a\\b",
            "a b",
            "(x",
            ";",
            "ü",
            "%",
        ),
        *(
            [],
            ["a", None, 1.5],
            ["a,b", "c'd"],
            {"cot": False, "system": "a: b"},
            [["text"], ["image"]],
            "outputs/a-b.c",
        ),
    ],
)
def test_round_trip(value):
    word = override("some.key", value)
    read = PARSER.parse_override(word)
    assert read.key_or_group == "some.key" and not read.is_sweep_override()
    assert read.value() == value and type(read.value()) is type(value)


def test_plain_values_are_written_plainly():
    assert override("a", "uniform") == "a=uniform" and override("a", None) == "a=null"
    assert override("a", "x, y") == "a='x, y'" and override("+a.b", [1, "c"]) == "+a.b=[1, c]"
