"""The state of an optimiser by the names of the parameters, the same however a training is spread."""
