"""LRS2: sentences from British television, with the speaker's face."""
