"""Rules that turn detections of one image into a score; pure functions of plain numbers.

Source: the object-detector reward of T2I-R1 (`rules="original"`) and of EG-GRPO (`rules="strict"`, which also takes
credit for surplus objects away). The published code has faults that `quirks="reference"` keeps and `quirks="fixed"`
mends: see `detection_score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import permutations

from egrpo.base.errors import UserError
from egrpo.data.records import LOCALITIES
from egrpo.types import PromptRecord

RULES = ("strict", "original")
QUIRKS = ("fixed", "reference")
OBJECT_CREDIT = 0.2  # of a spatial prompt, for each of the two objects that is there
POSITION_CREDIT = 0.5  # of a spatial prompt, for the relation
COUNT_CREDIT = 0.2  # of a numeracy prompt, for an object that is there in a wrong number
SURPLUS_PENALTY = 0.5  # strict: share of an object's credit that each surplus instance takes
MAX_IOU = 0.1  # objects that overlap more stand beside each other only in part
NMS_IOU = 0.5
NEAR_PIXELS = 150  # as published, beside coordinates in 0..1
NEAR = NEAR_PIXELS / 384  # fraction of the image: what 150 pixels are of the published run's 384

# Direction (x, y) in which the first object lies from the second.
DIRECTIONS = {
    "on the right of": (1, 0),
    "right of": (1, 0),
    "on the left of": (-1, 0),
    "left of": (-1, 0),
    "on the bottom of": (0, 1),
    "below": (0, 1),
    "on the top of": (0, -1),
    "on top of": (0, -1),
    "above": (0, -1),
}
NEARNESS = ("next to", "on side of", "near")
UNRULED_AS_PUBLISHED = ("above", "on top of")  # the published code has no rule for them


@dataclass(frozen=True)
class Detection:
    """One box that the detector gave a phrase."""

    phrase: str
    box: Sequence[float]  # [cx, cy, w, h], each 0..1
    score: float  # of the phrase, 0..1


def detection_prompt(nouns: Sequence[str]) -> tuple[str, list[list[list[int]]]]:
    """The detector's caption, and for each noun the character spans [start, end) of its first and last word.

    ["hot air balloon", "cat"] -> "hot air balloon . cat.", [[[0, 3], [8, 15]], [[18, 21]]]. One span where the noun has
    one word.
    """
    caption, spans = "", []
    for noun in nouns:
        caption += " . " if caption else ""
        first, last = noun.split(" ")[0], noun.split(" ")[-1]
        start, end = len(caption), len(caption) + len(noun)
        whole = [[start, start + len(first)], [end - len(last), end]]
        spans.append(whole if " " in noun else whole[:1])
        caption += noun
    return caption + ".", spans


def detection_score(
    detections: Sequence[Detection], record: PromptRecord, *, rules: str = "strict", quirks: str = "fixed"
) -> float:
    """Score in 0..1 (spatial prompts: 0..0.9, as published) of what was detected in one image.

    Numeracy prompts are scored by the count of each object, spatial prompts by two objects and their relation, all
    others by the share of nouns that are there; without nouns the score is 1, whatever the image.

    `quirks="reference"` keeps, and `"fixed"` mends, these faults of the published code:
    "above" and "on top of" earn no position credit; "next to", "near" and "on side of" compare 150 pixels with
    coordinates in 0..1 and so always hold (fixed: fractions of the image, both axes); duplicates are suppressed for
    numeracy only, on [cx, cy, w, h] read as corners (fixed: on corners, before anything is counted); a noun of three
    or more words never equals its phrase, which is named by its first and last word; two objects of one name fail
    and score 0 (fixed: they are two instances); boxes without area fail.

    Raises:
        UserError: unknown `rules` or `quirks`, or a record that lacks what its task type needs.
    """
    if rules not in RULES or quirks not in QUIRKS:
        raise UserError(f"rules={rules!r}, quirks={quirks!r}: rules are {RULES}, quirks {QUIRKS}")
    if not record.nouns:
        return 1.0
    fixed, strict = quirks == "fixed", rules == "strict"
    if record.task_type == "spatial":
        return _spatial_score(detections, record, strict, fixed)
    if record.task_type == "numeracy":
        return _numeracy_score(detections, record, fixed)
    credits = [_object_credit(len(_named(noun, detections, fixed)), strict) for noun in record.nouns]
    return sum(credit / len(credits) for credit in credits)


def unjudged(record: PromptRecord) -> list[str]:
    """Why the rules give a record less than it could earn, whatever the image: a sentence for each fault."""
    named: list[tuple[str, str]] = []
    found = []
    if record.task_type == "spatial" and record.spatial_info:
        info = record.spatial_info
        named = [(f'"{key}" of "spatial_info"', info[key]) for key in ("obj1", "obj2")]
        if info["locality"] not in LOCALITIES:
            near = get_close_matches(info["locality"].lower(), LOCALITIES, n=1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            found.append(
                f'the prompt {record.prompt!r} has the locality {info["locality"]!r} in "spatial_info", for which the '
                f"detector has no rule: {hint}valid are {', '.join(LOCALITIES)}"
            )
    elif record.task_type == "numeracy" and record.numeracy_info:
        items = enumerate(record.numeracy_info, start=1)
        named = [(f'"obj_name" in entry {place} of "numeracy_info"', item["obj_name"]) for place, item in items]
    if record.nouns:
        found += [
            f'the prompt {record.prompt!r} has {name!r} as {where}, which is not among its "nouns": add it there, '
            "spelt alike, or change the task"
            for where, name in named
            if name not in record.nouns
        ]
    return found


def has_rule(record: PromptRecord) -> bool:
    """Whether the score depends on the image; without nouns it is 1."""
    return bool(record.nouns)


def _object_credit(count: int, strict: bool) -> float:
    """1 for an object that is there; strict: less for each surplus instance."""
    if not strict or count == 0:
        return float(count > 0)
    return max(0.0, 1 - SURPLUS_PENALTY * (count - 1))


def _named(noun: str, detections: Sequence[Detection], fixed: bool) -> list[Detection]:
    """The detections of a noun, best first; fixed: without duplicates, and found under its short name too."""
    found = [d for d in detections if d.phrase == noun]
    if fixed and not found and len(noun.split()) > 2:
        found = [d for d in detections if d.phrase == f"{noun.split()[0]} {noun.split()[-1]}"]
    found.sort(key=lambda d: -d.score)
    return _suppress(found, corners) if fixed else found


def _suppress(best_first: list[Detection], read_box) -> list[Detection]:
    """Greedy non-maximum suppression: drops what overlaps a kept, better one by more than `NMS_IOU`."""
    kept: list[Detection] = []
    for detection in best_first:
        box = read_box(detection.box)
        if all(iou(box, read_box(other.box)) <= NMS_IOU for other in kept):
            kept.append(detection)
    return kept


def _numeracy_score(detections: Sequence[Detection], record: PromptRecord, fixed: bool) -> float:
    """Mean over the objects: 1 in the right number, `COUNT_CREDIT` in another, 0 where there is none."""
    if not record.numeracy_info:
        raise UserError(f"the numeracy prompt {record.prompt!r} has no numeracy_info to count by")
    weight = 1 / len(record.numeracy_info)
    score = 0.0
    for item in record.numeracy_info:
        found = _named(item["obj_name"], detections, fixed)
        count = len(found if fixed else _suppress(found, tuple))  # as published: [cx, cy, w, h] read as corners
        if count:
            score += (1 if count == item["num"] else COUNT_CREDIT) * weight
    return score


def _spatial_score(detections: Sequence[Detection], record: PromptRecord, strict: bool, fixed: bool) -> float:
    info = record.spatial_info
    if not info or any(key not in info for key in ("obj1", "obj2", "locality")):
        if not fixed:
            return 0.0  # as published: a failed computation
        raise UserError(f"the spatial prompt {record.prompt!r} needs spatial_info with obj1, obj2 and locality")
    if fixed and info["obj1"] == info["obj2"]:
        return _twin_score(_named(info["obj1"], detections, fixed), info["locality"], strict)
    first, second = (_named(info[key], detections, fixed) for key in ("obj1", "obj2"))
    score = sum(OBJECT_CREDIT * _object_credit(len(found), strict) for found in (first, second))
    judged = len(first) == len(second) == 1 if strict else bool(first and second)
    if not judged:
        return score
    if info["obj1"] == info["obj2"]:
        return 0.0  # as published: the second object is looked for among other phrases, and the computation fails
    return score + POSITION_CREDIT * position_score(info["locality"], first[0].box, second[0].box, fixed=fixed)


def _twin_score(found: list[Detection], locality: str, strict: bool) -> float:
    """Spatial score where both objects have one name: two instances are asked for, in either order."""
    if len(found) < 2:
        return OBJECT_CREDIT * len(found)
    surplus = len(found) - 2 if strict else 0
    score = 2 * OBJECT_CREDIT * max(0.0, 1 - SURPLUS_PENALTY * surplus)
    if surplus:
        return score
    orders = permutations([d.box for d in found[:2]])
    return score + POSITION_CREDIT * max(position_score(locality, a, b, fixed=True) for a, b in orders)


def position_score(locality: str, first: Sequence[float], second: Sequence[float], *, fixed: bool = True) -> float:
    """0..1: how well `first` stands `locality` `second`, boxes [cx, cy, w, h] (rule of T2I-CompBench).

    A direction must be the larger of the two offsets; an overlap above `MAX_IOU` lowers the score to `MAX_IOU`/IoU. A
    locality without a rule scores 0.
    """
    x, y = first[0] - second[0], first[1] - second[1]
    if locality in NEARNESS:
        if not fixed:  # either axis, in the units of the boxes
            return 1.0 if min(abs(x), abs(y)) < NEAR_PIXELS else NEAR_PIXELS / max(abs(x), abs(y))
        distance = max(abs(x), abs(y))
        return 1.0 if distance < NEAR else NEAR / distance
    if locality not in DIRECTIONS or (not fixed and locality in UNRULED_AS_PUBLISHED):
        return 0.0
    dx, dy = DIRECTIONS[locality]
    along, across = (x * dx, y) if dx else (y * dy, x)
    if along <= 0 or along <= abs(across):
        return 0.0
    a, b = corners(first), corners(second)
    if not fixed and not area(a) + area(b):
        return 0.0  # as published: 0/0 is neither below nor above the limit
    overlap = iou(a, b)
    return 1.0 if overlap < MAX_IOU else MAX_IOU / overlap


def corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    """[cx, cy, w, h] -> (left, top, right, bottom)."""
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def area(box: Sequence[float]) -> float:
    """Of a box of corners."""
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes of corners; 0 where neither has an area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = area(a) + area(b) - intersection
    return intersection / union if union else 0.0
