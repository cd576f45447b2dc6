"""Images from Python, in a notebook say: three lines from a model to a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from egrpo.generation.drawing import Picture, chosen, draw
from egrpo.generation.png import versions
from egrpo.generation.requests import batches, prompt_records, requests_for
from egrpo.paths import config_dir, resolve
from egrpo.policies import given_settings, is_export, load_policy, model_hash, trained_settings
from egrpo.policy import JanusPolicy
from egrpo.rewards.placement import pick_device

OTHER = "janus_pro_1b"  # whose settings stand for a model that has none of its own in conf/model


class Generator:
    """Draws images with a model.

        from egrpo import Generator
        generator = Generator("shapes")
        generator.generate("a red circle", num_images=4, seed=0)[0]

    Args:
        model: A name in conf/model ("shapes", "janus_pro_7b"), the folder of a training run or a checkpoint in it, a
            folder that transformers loads (an export), or a name on the hub.
        device: "auto" = a GPU where there is one, else the CPU; or as torch names it.
        batch_size: Images drawn at once.
        overrides: Of conf/generate.yaml, as a command line has them: ["model/templates=world_knowledge"]. A model from
            elsewhere has the settings of Janus-Pro unless told here: ["model=shapes"].

    Raises:
        UserError, FileNotFoundError: there is no such model, or it does not load.
    """

    def __init__(
        self, model: str | Path = "shapes", *, device: str = "auto", batch_size: int = 32, overrides: Sequence[str] = ()
    ) -> None:
        self.batch_size = batch_size
        self.policy, self.trained = _load(str(model), overrides)
        self.policy.to(pick_device(device))
        self.about = {"model": f"{model} sha256:{model_hash(self.policy)}", "versions": versions()}

    def generate(
        self,
        prompts: str | Sequence[str],
        num_images: int = 4,
        seed: int = 0,
        *,
        cot: bool | None = None,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> list[Picture]:
        """`num_images` pictures a prompt, in order, the same ones that `python -m egrpo.generate` draws.

        Args:
            prompts: One text, or several.
            num_images: Images a prompt.
            seed: An image is set by (prompt, index, seed).
            cot: Whether a plan is written first. None, here and below: as the run was trained; else with a plan, guided
                as the model's generation config says, at temperature 1.
            cfg_weight: Guidance of image tokens, 1 = none.
            temperature: Of the sampling.
            top_k: Draws from this many most likely tokens.
            top_p: Draws from the fewest tokens that hold this much probability.

        Raises:
            UserError: an argument is out of range.
        """
        names = {"cot": cot, "cfg_weight": cfg_weight, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings = chosen(self.policy, seed, names, self.trained)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        requests = requests_for(prompt_records(texts), num_images)
        parts = batches(requests, self.batch_size)
        return [picture for part in parts for picture in draw(self.policy, part, settings, self.about)]


def _load(model: str, overrides: Sequence[str]) -> tuple[JanusPolicy, Mapping[str, Any]]:
    """The policy, and how it was trained to draw, if that is known."""
    if "/" not in model and Path(config_dir(), "model", f"{model}.yaml").is_file():
        return load_policy(_composed([f"model={model}", *overrides]).model), {}
    folder = resolve(model)
    if folder.exists() and (is_export(folder) or not (folder / "config.json").is_file()):
        given = given_settings(overrides)
        return load_policy(_composed(overrides).model, folder, given=given), trained_settings(folder)
    base = [] if any(word.startswith("model=") for word in overrides) else [f"model={OTHER}"]
    cfg = _composed([*base, *overrides])
    cfg.model.path = model
    return load_policy(cfg.model), {}


def _composed(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("generate", ["prompts=[]", "run_dir=null", *overrides])
