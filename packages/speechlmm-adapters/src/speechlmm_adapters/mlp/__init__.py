"""Frame stacking and a multi-layer perceptron."""
