"""Makes the shipped weights from nothing: `python -m egrpo.shapes.pretrain` (conf/pretrain.yaml)."""
