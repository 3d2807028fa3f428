"""How much a model has to compute, and how much a device can."""
