"""The published run at its real size: random checkpoints of the exact shapes, measured on the GPUs that there are."""
