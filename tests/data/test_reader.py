"""The reader: real prompts come back whole and fast; every fault is named with its line and its mend."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from egrpo.data import PromptFileError, PromptRecord, read_prompts
from egrpo.data.records import LOCALITIES
from egrpo.rewards.detection_rules import DIRECTIONS, NEARNESS

GOOD = {"prompt": "a cat", "nouns": ["cat"], "task_type": "object"}
SPATIAL = {"obj1": "cat", "obj2": "dog", "locality": "left of"}
BOTH = {**GOOD, "nouns": ["cat", "dog"], "task_type": "spatial", "spatial_info": SPATIAL}
COUNTED = {**GOOD, "task_type": "numeracy", "numeracy_info": [{"obj_name": "cat", "num": 2}]}


def write(path: Path, *lines: dict | str | bytes) -> Path:
    def encode(line: dict | str | bytes) -> bytes:
        if isinstance(line, bytes):
            return line
        return (line if isinstance(line, str) else json.dumps(line)).encode()

    path.write_bytes(b"\n".join(encode(line) for line in lines) + b"\n")
    return path


def problems_of(path: Path) -> list[tuple[int, str, str]]:
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    return caught.value.problems


def test_real_prompts_are_read_whole_and_in_under_a_second(shared: Path) -> None:
    path = shared / "prompts" / "t2i_r1_train.jsonl"
    start = time.perf_counter()
    records = read_prompts(path)
    assert time.perf_counter() - start < 1.0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 7223
    assert [record.to_dict() for record in records] == rows
    assert Counter(record.task_type for record in records)["spatial"] == 2195


def test_fields_and_extra_keys(tmp_path: Path) -> None:
    numeracy = [{"obj_name": "cat", "num": 2}]
    path = write(
        tmp_path / "p.jsonl",
        {**GOOD, "attr_nouns": ["red cat"], "spatial_info": None, "source": "own", "weight": 2},
        {**GOOD, "task_type": "complex", "spatial_info": SPATIAL},
        {**GOOD, "task_type": "numeracy", "numeracy_info": numeracy},
    )
    assert read_prompts(path) == [
        PromptRecord(
            "a cat", ["cat"], attr_nouns=["red cat"], task_type="object", extra={"source": "own", "weight": 2}
        ),
        PromptRecord("a cat", ["cat"], spatial_info=SPATIAL, task_type="complex"),
        PromptRecord("a cat", ["cat"], numeracy_info=numeracy, task_type="numeracy"),
    ]


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "prompt": "ein süßes Kätzchen\u2028"}, ensure_ascii=False).encode()
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n   \n" + line)
    assert [record.prompt for record in read_prompts(path)] == ["ein süßes Kätzchen\u2028"] * 2


@pytest.mark.parametrize(
    ("line", "fault", "mend"),
    [
        ("{not json", "is not JSON", "JSON object a line"),
        ('{"a": 1},', "is not JSON: Extra data at character 9", "without commas"),
        ("[1]", "is a list, not an object", '"prompt"'),
        ('"text"', "is a string, not an object", '"prompt"'),
        ("[" * 100_000, "is not usable JSON", "plain"),
        (b'{"prompt": "\xff"}', "byte 0xff at position 13", "UTF-8"),
        ({**GOOD, "prompt": None}, 'has no "prompt"', "add"),
        ({**GOOD, "prompt": "  "}, '"prompt" is empty', "remove the line"),
        ({**GOOD, "prompt": 3}, '"prompt" is a number', "quotes"),
        ({**GOOD, "prompt": ["a"]}, '"prompt" is a list', "quotes"),
        ({**GOOD, "prompt": "a \ud83d"}, "surrogate", "character"),
        (
            {**GOOD, "task_type": "spacial"},
            "'spacial', which is unknown",
            'did you mean "spatial"? valid are object, color',
        ),
        ({**GOOD, "task_type": 7}, "7, which is unknown", "valid are object"),
        ({**GOOD, "task_type": ["object"]}, "unknown", "valid are object"),
        ({"prompt": "a", "nouns": []}, 'has no "task_type"', "object, color"),
        ({**GOOD, "task_type": "spatial"}, 'there is no "spatial_info"', "obj1"),
        ({**GOOD, "task_type": "numeracy"}, 'there is no "numeracy_info"', "obj_name"),
        ({**GOOD, "spatial_info": "left"}, '"spatial_info" is a string', "obj1"),
        ({**GOOD, "spatial_info": {**SPATIAL, "obj2": 1}}, 'no string "obj2"', "obj2"),
        ({**GOOD, "spatial_info": {"obj1": "a", "obj2": "b"}}, 'no string "locality"', "locality"),
        ({"prompt": "a", "task_type": "non"}, 'has no "nouns"', "[]"),
        ({**GOOD, "nouns": "cat"}, '"nouns" is not a list', '["cat", "dog"]'),
        ({**GOOD, "nouns": ["cat", 1]}, '"nouns" is not a list of non-empty strings', "write"),
        ({**GOOD, "attr_nouns": ["red cat", " "]}, '"attr_nouns" is not a list of non-empty strings', "write"),
        ({**GOOD, "numeracy_info": {"cat": 2}}, '"numeracy_info" is not a list', "obj_name"),
        ({**GOOD, "numeracy_info": []}, '"numeracy_info" is not a list', "obj_name"),
        (
            {**GOOD, "numeracy_info": [{"obj_name": "cat", "num": 0}]},
            'entry 1 of "numeracy_info" has no positive',
            "num",
        ),
        ({**GOOD, "numeracy_info": [{"obj_name": "cat", "num": True}]}, "positive whole", "num"),
        ({**GOOD, "numeracy_info": [{"obj_name": "cat", "num": "2"}]}, "positive whole", "unquoted"),
        ({**GOOD, "numeracy_info": [{"obj_name": "a", "num": 1}, {"num": 1}]}, "entry 2 of", "obj_name"),
        ({**GOOD, "prompt": "a \x07cat"}, '"prompt" holds the control character U+0007', "remove it"),
        ({**GOOD, "prompt": "a \x1b[31mcat"}, "control character U+001B", "remove it"),
        ({**GOOD, "prompt": "a cat\x00"}, "control character U+0000", "remove it"),
    ],
)
def test_each_fault_is_named_with_its_line_and_its_mend(
    tmp_path: Path, line: dict | str | bytes, fault: str, mend: str
) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, "", line, GOOD)
    ((number, found_fault, found_mend),) = problems_of(path)
    assert number == 3
    assert fault in found_fault
    assert mend in found_mend


@pytest.mark.parametrize("task", ["complex", "non", "object", "spatial", "numeracy"])
def test_what_only_a_detector_would_mind_is_read(tmp_path: Path, task: str) -> None:
    counts = [{"obj_name": "bird", "num": 2}]
    info = {"obj1": "bird", "obj2": "tree", "locality": "inside"}
    other = {**GOOD, "nouns": [], "spatial_info": info, "numeracy_info": counts, "task_type": task}
    path = write(tmp_path / "p.jsonl", other, BOTH, COUNTED)
    assert [record.task_type for record in read_prompts(path)] == [task, "spatial", "numeracy"]


def test_ends_of_lines_within_a_prompt_are_no_ends_of_the_files_lines(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\tb", "a\nb"]
    rows = [json.dumps({**GOOD, "prompt": text}, ensure_ascii=False) for text in texts]
    assert [r.prompt for r in read_prompts(write(tmp_path / "p.jsonl", *rows))] == texts
    plain = texts[:4]
    path = write(tmp_path / "p.txt", *["\ufeff" + plain[0], *plain[1:]])
    assert [record.prompt for record in read_prompts(path)] == plain


def test_control_characters_of_plain_text_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "a cat", "a \x08dog")
    assert [(line, fault) for line, fault, _ in problems_of(path)] == [
        (2, '"prompt" holds the control character U+0008')
    ]


def test_localities_are_those_of_the_detectors_rules() -> None:
    assert sorted(LOCALITIES) == sorted([*DIRECTIONS, *NEARNESS])


@pytest.mark.parametrize("name, count", [("train", 1600), ("validation", 800)])
def test_shapes_prompts_are_read(name: str, count: int) -> None:
    assert len(read_prompts(f"package:egrpo/shapes/assets/prompts/{name}.jsonl")) == count


def test_all_bad_lines_at_once_and_several_faults_of_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", b"\xff\xfa broken", "{", GOOD, {"prompt": "", "nouns": 1, "task_type": "x"})
    path.write_bytes(b" " + path.read_bytes())
    assert [line for line, _, _ in problems_of(path)] == [1, 2, 4, 4, 4]
    with pytest.raises(PromptFileError, match=r"3 bad lines(.|\n)*line 4: .*; mend: ") as caught:
        read_prompts(path)
    assert caught.value.path == path


def test_long_report_is_capped_but_problems_hold_all(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *["{"] * 50)
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    assert len(caught.value.problems) == 50
    assert str(caught.value).count("\n") == 21
    assert "50 bad lines" in str(caught.value)
    assert "30 more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "no prompts"), (b"\n \n", "no prompts"), (b"\xff\xfe{\x00", "UTF-16")]
)
def test_unusable_files(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    ((line, found, _),) = problems_of(path)
    assert line == 0
    assert fault in found


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"absent\.jsonl does not exist"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(PromptFileError, match="is a folder"):
        read_prompts(tmp_path)
    with pytest.raises(PromptFileError, match="does not exist"):
        read_prompts("package:no_such_package/x.jsonl")


def test_package_prefix_reads_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package" / "assets"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    write(package / "p.jsonl", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read_prompts("package:some_package/assets/p.jsonl")[0].prompt == "a cat"
