"""One training step of a model with the exact shapes of Janus-Pro, random weights: does it run, what does it cost?"""
