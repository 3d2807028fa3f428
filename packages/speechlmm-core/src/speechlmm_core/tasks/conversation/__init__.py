"""What the tasks of whole conversations have in common."""
