"""Makes the shapes world's four reward networks from nothing: `python -m egrpo.shapes.pretrain_rewards`."""
