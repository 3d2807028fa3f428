"""Splicing media into text: the plan (NumPy, in the data worker) and the gather (torch, in `forward`)."""
