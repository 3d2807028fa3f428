"""SpecAugment."""
