"""egrpo: the experiment platform for entropy-guided RL of autoregressive image generators."""

__version__ = "0.1.0"
