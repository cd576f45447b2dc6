"""Prompts of the shapes world, in the schema of the T2I-R1 training file, and their disjoint splits.

`record.extra["scene"]` holds what the prompt asks (for the oracle), `record.extra["split"]` the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from egrpo.base.errors import UserError
from egrpo.shapes.scene import COLORS, LOCALITIES, SHAPES, TEXTURES, Part, Spec
from egrpo.types import TASK_TYPES, PromptRecord

PREFIXES = ("", "a photo of ", "a picture of ")
FIGURES = {"circle": "round", "square": "square", "triangle": "triangular", "cross": "crossed"}
NUMBERS = {1: "one", 2: "two", 3: "three"}
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
SPLITS = ("train", "seen", "unseen_prompt", "unseen_composition")


def phrase(part: Part) -> str:
    """The part without article or number: "striped red circle"."""
    return " ".join(word for word in (part.texture, part.color, part.shape or "figure") if word)


def counted(part: Part) -> str:
    """The part with its number: "two red circles"."""
    noun = phrase(part)
    if part.count > 1:
        head, _, last = noun.rpartition(" ")
        noun = f"{head} {PLURALS[last]}".strip()
    return f"{NUMBERS[part.count]} {noun}"


def _record(task: str, prompt: str, spec: Spec, attributes: list[str] | None = None, **info: object) -> PromptRecord:
    nouns = [part.shape or "figure" for part in spec.parts]
    extra = {"scene": spec.to_dict()}
    return PromptRecord(prompt, nouns, attributes, task_type=task, extra=extra, **info)  # type: ignore[arg-type]


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[rng.integers(len(values))]


def _listed(rng: np.random.Generator, phrases: list[str]) -> str:
    return _pick(rng, PREFIXES) + _pick(rng, (" and ", " with ")).join(f"a {text}" for text in phrases)


def _object(rng: np.random.Generator) -> PromptRecord:
    spec = Spec(tuple(Part(shape=_pick(rng, SHAPES)) for _ in range(rng.integers(1, 3))))
    return _record("object", _listed(rng, [phrase(p) for p in spec.parts]), spec)


def _color(rng: np.random.Generator) -> PromptRecord:
    spec = Spec(tuple(Part(_pick(rng, SHAPES), _pick(rng, COLORS)) for _ in range(rng.integers(1, 3))))
    phrases = [phrase(p) for p in spec.parts]
    return _record("color", _listed(rng, phrases), spec, phrases)


def _shape(rng: np.random.Generator) -> PromptRecord:
    spec = Spec(tuple(Part(shape=_pick(rng, SHAPES)) for _ in range(rng.integers(1, 3))))
    phrases = [f"{FIGURES[p.shape or '']} figure" for p in spec.parts]
    record = _record("shape", _listed(rng, phrases), spec, phrases)
    return PromptRecord(**{**vars(record), "nouns": ["figure"] * len(phrases)})


def _texture(rng: np.random.Generator) -> PromptRecord:
    parts = [Part(_pick(rng, SHAPES), None, _pick(rng, TEXTURES)) for _ in range(rng.integers(1, 3))]
    phrases = [phrase(p) for p in parts]
    return _record("texture", _listed(rng, phrases), Spec(tuple(parts)), phrases)


def _spatial(rng: np.random.Generator) -> PromptRecord:
    colored = rng.random() < 0.75
    parts = tuple(Part(_pick(rng, SHAPES), _pick(rng, COLORS) if colored else None) for _ in range(2))
    locality = _pick(rng, tuple(LOCALITIES))
    a, b = (phrase(p) for p in parts)
    info = {"obj1": parts[0].shape, "obj2": parts[1].shape, "locality": locality}
    text = f"{_pick(rng, PREFIXES)}a {a} {locality} a {b}"
    return _record("spatial", text, Spec(parts, locality), spatial_info=info)


def _numeracy(rng: np.random.Generator) -> PromptRecord:
    mixed = rng.random() < 0.5
    counts = [(1, 1), (1, 2), (2, 1)][rng.integers(3)] if mixed else (int(rng.integers(2, 4)),)
    shapes = rng.permutation(SHAPES)
    parts = tuple(
        Part(str(shapes[i]), _pick(rng, COLORS) if rng.random() < 0.5 else None, count=n) for i, n in enumerate(counts)
    )
    info = [{"obj_name": part.shape, "num": part.count} for part in parts]
    text = _pick(rng, PREFIXES) + " and ".join(counted(p) for p in parts)
    return _record("numeracy", text, Spec(parts), numeracy_info=info)


def _complex(rng: np.random.Generator) -> PromptRecord:
    parts = tuple(Part(_pick(rng, SHAPES), _pick(rng, COLORS), _pick(rng, TEXTURES)) for _ in range(2))
    a, b = phrases = [phrase(p) for p in parts]
    locality = _pick(rng, tuple(LOCALITIES))
    info = {"obj1": parts[0].shape, "obj2": parts[1].shape, "locality": locality}
    text = f"the {a} {_pick(rng, ('is', 'stands', 'sits'))} {locality} the {b}"
    return _record("complex", text, Spec(parts, locality), phrases, spatial_info=info)


def _non(rng: np.random.Generator) -> PromptRecord:
    """Relations that are not spatial: sharing or differing in colour or texture."""
    attribute = _pick(rng, ("color", "texture"))
    kind = _pick(rng, ("same", "different"))
    # A texture where colours are bound, a colour where textures are, or neither.
    given = _pick(rng, TEXTURES if attribute == "color" else COLORS) if rng.random() < 0.6 else None
    parts = tuple(
        Part(_pick(rng, SHAPES), *((None, given) if attribute == "color" else (given, None))) for _ in range(2)
    )
    a, b = (phrase(p) for p in parts)
    noun = _pick(rng, (attribute, "paint" if attribute == "color" else "pattern"))
    tail = f"of the same {noun}" if kind == "same" else f"of different {noun}s"
    return _record("non", f"{_pick(rng, PREFIXES)}a {a} and a {b} {tail}", Spec(parts, bond=(attribute, kind)))


MAKERS = dict(
    zip(TASK_TYPES, (_object, _color, _shape, _texture, _spatial, _numeracy, _complex, _non), strict=True),
)


def draw(rng: np.random.Generator, task_type: str | None = None) -> PromptRecord:
    """One random prompt, task types equally likely unless one is named."""
    return MAKERS[task_type or TASK_TYPES[rng.integers(len(TASK_TYPES))]](rng)


def is_unseen_composition(record: PromptRecord) -> bool:
    """Whether the prompt puts a (colour, shape) into a relation that no other split shows it in (1 of 8 do)."""
    parts = record.extra["scene"]["parts"]
    locality = record.extra["scene"].get("locality")
    if locality is None or "color" not in parts[0]:
        return False
    key = f"{parts[0]['color']} {parts[0]['shape']} {LOCALITIES[locality]}"
    return hashlib.sha256(key.encode()).digest()[0] % 8 == 0


def split_of(record: PromptRecord) -> str:
    """Which side a prompt is on: "held_out" for 1 in 5 of what can be asked for, "open" for the others.

    By a stable hash of task type and scene, so that another wording, or another order of the same things, is on the
    same side.
    """
    scene = record.extra["scene"]
    parts = [" ".join(f"{name}={value}" for name, value in sorted(part.items())) for part in scene["parts"]]
    if "locality" not in scene:
        parts.sort()
    key = f"{record.task_type}: {parts} {LOCALITIES.get(scene.get('locality', ''))} {scene.get('bond')}"
    return "held_out" if hashlib.sha256(key.encode()).digest()[0] % 5 == 0 else "open"


def draw_open(rng: np.random.Generator, task_type: str | None = None) -> PromptRecord:
    """A prompt that may be trained on: neither held out nor an unseen composition."""
    while True:
        record = draw(rng, task_type)
        if split_of(record) == "open" and not is_unseen_composition(record):
            return record


def make_splits(train: int = 1600, seen: int = 160, unseen: int = 480, compositions: int = 160, seed: int = 7):
    """Four lists of distinct prompts keyed by split; task types balanced, `seen` a part of `train`.

    Pretraining and RL draw from `train` and other open prompts only. `unseen_prompt` and `unseen_composition` are the
    held-out prompts. A small kind (there are only so many ways to ask for one circle) gives all it has.
    """
    rng = np.random.default_rng(seed)
    out: dict[str, list[PromptRecord]] = {}
    out["train"] = list(_distinct(rng, train, lambda r: split_of(r) == "open" and not is_unseen_composition(r)))
    out["seen"] = [out["train"][i] for i in sorted(rng.choice(train, seen, replace=False))]
    out["unseen_prompt"] = list(
        _distinct(rng, unseen, lambda r: split_of(r) == "held_out" and not is_unseen_composition(r))
    )
    out["unseen_composition"] = list(_distinct(rng, compositions, is_unseen_composition, ("spatial", "complex")))
    return {
        split: [PromptRecord(**{**vars(r), "extra": {**r.extra, "split": split}}) for r in records]
        for split, records in out.items()
    }


def _distinct(rng, total: int, keep, tasks: tuple[str, ...] = TASK_TYPES) -> Iterator[PromptRecord]:
    """`total` distinct prompts that pass `keep`, task types in turn; a type that runs dry is passed over."""
    known: set[str] = set()
    dry: set[str] = set()
    made = 0
    while made < total:
        for task in [t for t in tasks if t not in dry]:
            for _ in range(400):
                record = draw(rng, task)
                if record.prompt not in known and keep(record):
                    known.add(record.prompt)
                    made += 1
                    yield record
                    break
            else:
                dry.add(task)
            if made == total:
                return
        if len(dry) == len(tasks):
            raise UserError(f"only {made} of {total} distinct prompts exist for {tasks}")
