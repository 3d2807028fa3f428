"""Starting trainings: in this process, in several, on a cluster, many at a time."""
