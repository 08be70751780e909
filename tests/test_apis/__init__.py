"""Models to be called from Python."""
