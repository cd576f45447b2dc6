"""The maths of entropy-guided GRPO as pure functions of tensors.

N sequences, T token positions (text segment first, then image), V vocabulary, D hidden width. Masks: True = counted.
"""

from egrpo.algorithm.advantages import group_advantages
from egrpo.algorithm.entropy import logps_and_entropy
from egrpo.algorithm.losses import k3_kl, policy_loss

__all__ = ["group_advantages", "k3_kl", "logps_and_entropy", "policy_loss"]
