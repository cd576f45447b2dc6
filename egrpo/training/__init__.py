"""Training: the LightningModule, its settings, callbacks, validation and the report."""

from egrpo.training.metrics_file import MetricsFile
from egrpo.training.module import GRPOModule
from egrpo.training.settings import Objective, RolloutSettings, TrainingError

__all__ = ["GRPOModule", "MetricsFile", "Objective", "RolloutSettings", "TrainingError"]
