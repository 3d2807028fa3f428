"""AutoAVSR's visual speech encoder."""
