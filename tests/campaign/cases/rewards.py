"""Reward functions and servers that are not there, hang, end the program or answer nonsense; reward models."""

from __future__ import annotations

from tests.campaign.case import Case, refused
from tests.campaign.files import HTML, POINTER

SHORT = (
    *("+experiment=shapes_no_cot", "+debug=fast", "logger=none", "judge=none", "baseline_temperatures=[]"),
    *("trainer.limit_val_batches=1", "data.val_batch_size=2", "hydra.run.dir=out"),
)
PYTHON = "reward=[python]  judge=none  reward.python.reward.function="
HTTP = "reward=[http]  judge=none  reward.http.reward.url="


def function(body: str, *says: str, words: tuple[str, ...] = ()) -> Case:
    """A training whose reward is a function with this body."""
    files = {"lab.py": f"import time, sys, os\n\ndef score(images, records):\n    {body}\n"}
    own = ("reward=[python]", "reward.python.reward.function=lab.py:score")
    return Case("train", (*SHORT, *own, *words), says, files=files, leaves=("out/error.txt",))  # type: ignore[arg-type]


CASES = [
    *refused(
        "train",
        ("reward=[python]  judge=none", "function", "set reward.python.reward.function"),
        (f"{PYTHON}lab", "names no function", "package.module.function"),
        (f"{PYTHON}my_lab.score", "no module my_lab", "PYTHONPATH"),
        (f"{PYTHON}lab.py:scor", "scor", "score|lab.py"),
        (f"{PYTHON}lab.py:Judge", "is a class", "name a plain function"),
        (f"{PYTHON}lab.py:NUMBER", "is a int|is an int", "not a function of"),
        (f"{PYTHON}lab.py:one", "lab.py:one", "images, records"),
        (f"{PYTHON}broken.py:score", "broken.py", "SyntaxError|syntax|import"),
        (f"{PYTHON}raises.py:score", "raises.py", "no licence"),
        (f"{PYTHON}nowhere.py:score", "nowhere.py", "no such|not there|no file|does not exist"),
        (f"{PYTHON}lab.py:score  reward.python.reward.timeout=0", "timeout=0", "above 0"),
        (f"{PYTHON}lab.py:score  reward.python.on_error=ignore", "on_error=.ignore", "choose stop"),
        (f"{PYTHON}lab.py:score  reward.python.weight=nan", "weight=nan", "a finite number"),
        (f"{PYTHON}lab.py:score  reward.python.weight=heavy", "weight=heavy", "a number"),
        (f"{PYTHON}lab.py:score  reward.python.weight=0", "weight", "weight|reward"),
        ("reward=[]", "refers to reward", "give it as reward="),
        ("reward=shapes_oracle,shapes_strict", "reward", "need -m|quotes|list"),
        files={
            "lab.py": "NUMBER = 3\nclass Judge: ...\ndef one(images): ...\ndef score(images, records): ...\n",
            "broken.py": "def score(:\n",
            "raises.py": "raise RuntimeError('no licence')\n",
        },
    ),
    *refused(
        "train",
        ("reward=[http]  judge=none", "url", "http"),
        (f"{HTTP}localhost:80", "url", "http://"),
        (f"{HTTP}ftp://host/", "url", "http://"),
        (f"{HTTP}http://user:pass@host/", "url", "token_env"),
        (f"{HTTP}http://host:99999/", "url", "port|http://"),
        (f"{HTTP}http://", "url", "http://"),
        (f"{HTTP}http://host/  reward.http.reward.timeout=0", r"timeout=0", "above 0"),
        (f"{HTTP}http://host/  reward.http.reward.timeout=null", r"timeout=null", "a number above 0"),
        (f"{HTTP}http://host/  reward.http.reward.retries=-1", r"retries=-1", "from 0"),
        (f"{HTTP}http://host/  reward.http.reward.token_env=EGRPO_NONE", "EGRPO_NONE", "is not set"),
        (f"{HTTP}http://host/  reward.http.reward.headers=x", "headers=x", "mapping"),
    ),
    *refused(
        "train",
        ("reward=[hps]  reward_models=nowhere", "nowhere/hps", "egrpo.download"),
        ("reward=[git]  reward_models=nowhere", "nowhere/git", "egrpo.download"),
        ("reward=[gdino]  reward_models=nowhere", "nowhere/gdino", "egrpo.download"),
        ("reward=[orm]  reward_models=nowhere", "nowhere/orm", "egrpo.download"),
        ("reward=[hps]  reward_models=", "reward_models= is empty", "name the file or folder"),
        ("reward=[hps]  reward_models=m", "m/hps", "download|config.json"),
        ("reward=[hps]  reward_models=page", "page/hps", "download|config.json|JSON"),
        (
            "reward=[hps]  reward_models=package:egrpo/shapes/assets/rewards  reward.hps.reward.device=tpu",
            "device=tpu|tpu",
            "cpu",
        ),
        (
            "reward=[hps]  reward_models=package:egrpo/shapes/assets/rewards  reward.hps.reward.dtype=int4",
            "dtype",
            "float32",
        ),
        (
            "reward=[hps]  reward_models=package:egrpo/shapes/assets/rewards  reward.hps.reward.batch_size=0",
            "batch_size=0",
            "from 1",
        ),
        (
            "reward=[gdino]  reward_models=package:egrpo/shapes/assets/rewards  reward.gdino.reward.rules=lenient",
            "rules=lenient|lenient",
            "strict",
        ),
        (
            "reward=[gdino]  reward_models=package:egrpo/shapes/assets/rewards  reward.gdino.reward.threshold=30",
            "threshold=30",
            "from 0 to 1",
        ),
        files={
            "m/hps/model.safetensors": POINTER,
            "page/hps/config.json": HTML,
            "page/hps/model.safetensors": HTML,
        },
    ),
    function("sys.exit(0)", r"sys\.exit\(0\)", "raise an exception"),
    function("time.sleep(600)", "timeout", "allow it more", words=("reward.python.reward.timeout=1",)),
    function("return [float('nan')] * len(images)", "reward python", "on_error|failures|NaN"),
    function("return [0.5]", "python", "one number|numbers|failures"),
    function("return 'good'", "no list of numbers", "python|lab.py"),
    function("raise OSError(28, 'No space left on device', 'x.bin')", "x.bin|python", "failures|free some space"),
]
