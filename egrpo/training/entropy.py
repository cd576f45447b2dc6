"""Entropy and reward while training: maps, histograms, running correlations; a cheap view of what a study measures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

from egrpo import distributed
from egrpo.images import save_figure
from egrpo.types import Rollout

ENTROPIES = ("entropy_mean", "entropy_std")  # of an image's tokens, an image
TILE = 96  # pixels of a picture and of its map
COLOURS, BRIGHTEST = "viridis", 0.5  # few tokens are more uncertain, and of those the map says no more


class RunningCorrelation:
    """Pearson's correlation of reward with the mean and standard deviation of image entropy, over recent steps.

    Covariances and variances of each step fade exponentially. A step's samples are compared with their own step's (or
    group's) mean alone: in training entropy falls while reward rises, and over steps the two would always correlate.

    Args:
        decay: Of a step's part, a step.
    """

    def __init__(self, decay: float = 0.9):
        self.decay = decay
        self.moments = np.zeros((2, len(ENTROPIES), 3))  # all or within groups; entropy; its variance, reward's, both

    def add(self, rewards: np.ndarray, entropies: np.ndarray, group_size: int) -> None:
        """One step: rewards [N], entropies [N, 2] in the order of `ENTROPIES`, in groups of consecutive samples.

        Groups with a reward that is NaN are left out.
        """
        values = np.column_stack([entropies, rewards]).astype(np.float64)
        whole = ~np.isnan(rewards).reshape(-1, group_size).any(axis=1)
        values = values[np.repeat(whole, group_size)]
        if not len(values):
            return
        grouped = values.reshape(-1, group_size, values.shape[1])
        centred = (values - values.mean(axis=0), (grouped - grouped.mean(axis=1, keepdims=True)).reshape(values.shape))
        for kind, deviations in enumerate(centred):
            x, y = deviations[:, :-1], deviations[:, -1:]
            step = np.stack([(x * x).mean(0), np.repeat((y * y).mean(0), x.shape[1]), (x * y).mean(0)], axis=1)
            self.moments[kind] = self.decay * self.moments[kind] + step

    def metrics(self) -> dict[str, float]:
        """Of those that are defined: a name for all samples and one within groups, for each entropy."""
        names = ("correlation", "correlation_within_group")
        return {
            f"{name}/{entropy}": float(both / math.sqrt(own * rewards))
            for name, kinds in zip(names, self.moments, strict=True)
            for entropy, (own, rewards, both) in zip(ENTROPIES, kinds, strict=True)
            if own > 0 and rewards > 0
        }


class EntropyView(Callback):
    """Shows where the policy is uncertain: a sheet in `samples/`, and its media in W&B or TensorBoard.

    The sheet has the first images of this process beside the entropies of their tokens, and histograms over all that
    the process drew. Correlations are those of all ranks.

    Args:
        folder: Of the run.
        every_n_train_steps: Steps from one view to the next; 0 = none.
        num_samples: Images on the sheet.
        decay: Of the running correlations, a step.
    """

    def __init__(self, folder: str, every_n_train_steps: int = 50, num_samples: int = 16, decay: float = 0.9) -> None:
        self.folder, self.every, self.num_samples = Path(folder), every_n_train_steps, num_samples
        self.running = RunningCorrelation(decay)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if self.every < 1:
            return
        _, rollout, table = pl_module.last_rollout
        entropy = rollout.image.entropy
        columns = (entropy.mean(1), entropy.std(1, correction=0), table.complete_total)
        own = torch.stack([column.cpu() for column in columns], dim=1)
        values = np.concatenate([part.numpy() for part in distributed.gather(own)])
        self.running.add(values[:, -1], values[:, :-1], pl_module.rollout_settings.group_size)
        if trainer.global_step % self.every >= pl_module.objective.updates_per_rollout:
            return
        pl_module.write({f"train/{name}": value for name, value in self.running.metrics().items()})
        if trainer.is_global_zero:
            self._show(trainer, rollout)

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.running.moments.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running.moments = np.array(state["moments"])

    def _show(self, trainer: Trainer, rollout: Rollout) -> None:
        step = trainer.global_step
        tokens = {"image": rollout.image.entropy[rollout.image.mask].cpu().numpy()}
        if rollout.text is not None:
            tokens["text"] = rollout.text.entropy[rollout.text.mask].cpu().numpy()
        mosaic = entropy_mosaic(rollout[: self.num_samples])
        save_view(self.folder / "samples" / f"entropy_step_{step:06d}.png", mosaic, tokens, step)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                media: dict[str, Any] = {"train/entropy_maps": wandb.Image(mosaic)}
                media |= {f"train/tokens_entropy_{name}": wandb.Histogram(v.tolist()) for name, v in tokens.items()}
                logger.log_metrics(media, step=step)
            elif isinstance(logger, TensorBoardLogger):
                for name, values in tokens.items():
                    logger.experiment.add_histogram(f"train/tokens_entropy_{name}", values, step)
                logger.experiment.add_image("train/entropy_maps", mosaic, step, dataformats="HWC")


def entropy_mosaic(rollout: Rollout, columns: int = 4) -> np.ndarray:
    """[H, W, 3] uint8: each image beside the map of its tokens' entropies, dark = 0, bright = `BRIGHTEST`."""
    side = math.isqrt(rollout.image.tokens.shape[1])
    entropy = rollout.image.entropy.cpu().numpy()
    maps = matplotlib.colormaps[COLOURS](entropy.reshape(-1, side, side) / BRIGHTEST)[..., :3]
    tiles = []
    for picture, heat in zip(rollout.pixels.cpu().numpy(), (maps * 255).astype(np.uint8), strict=True):
        pair = np.concatenate([enlarged(picture), enlarged(heat)], axis=1)
        tiles.append(np.pad(pair, ((2, 2), (2, 2), (0, 0)), constant_values=255))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.concatenate([np.concatenate(tiles[at : at + columns], axis=1) for at in range(0, len(tiles), columns)])


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A square picture [S, S, 3] as [TILE, TILE, 3], by its nearest pixels."""
    at = np.arange(TILE) * picture.shape[0] // TILE
    return picture[at][:, at]


def save_view(path: Path, mosaic: np.ndarray, tokens: dict[str, np.ndarray], step: int) -> None:
    """Writes the mosaic above histograms of the tokens' entropies, one a segment."""
    figure = Figure(figsize=(8, 8 * mosaic.shape[0] / mosaic.shape[1] + 2.6), layout="constrained")
    grid = figure.add_gridspec(2, len(tokens), height_ratios=(8 * mosaic.shape[0] / mosaic.shape[1], 2))
    above = figure.add_subplot(grid[0, :])
    above.imshow(mosaic)
    above.axis("off")
    above.set_title(
        f"Images and the entropy of their tokens at step {step}; dark 0, bright {BRIGHTEST} and more", fontsize=9
    )
    for column, (name, values) in enumerate(tokens.items()):
        axis = figure.add_subplot(grid[1, column])
        axis.hist(values, bins=40, range=(0, 1), color="0.4")
        axis.set_xlabel(f"entropy of {name} tokens", fontsize=8)
        axis.set_ylabel("tokens", fontsize=8)
        axis.tick_params(labelsize=7)
    save_figure(figure, path)
