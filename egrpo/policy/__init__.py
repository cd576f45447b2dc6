"""The policy: load, templates, rollout, score, adapters."""

from egrpo.policy.adapter import AdapterOffReference, FrozenReference, add_lora
from egrpo.policy.drawing import inverse_cdf
from egrpo.policy.janus import JanusPolicy
from egrpo.policy.loading import load_janus
from egrpo.policy.randomness import sample_uniforms
from egrpo.policy.sampling import sample_image_tokens
from egrpo.policy.templates import Templates

__all__ = [
    "AdapterOffReference",
    "FrozenReference",
    "JanusPolicy",
    "Templates",
    "add_lora",
    "inverse_cdf",
    "load_janus",
    "sample_image_tokens",
    "sample_uniforms",
]
