"""What is known of a training before it starts: its memory, and whether it will run."""
