"""Independent references of the original models in plain tensor code."""
