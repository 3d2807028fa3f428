"""The parts that composing a configuration is made of."""
