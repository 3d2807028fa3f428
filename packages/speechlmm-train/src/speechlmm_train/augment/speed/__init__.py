"""Speed perturbation."""
