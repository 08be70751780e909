"""Independent references in plain tensor code: what the original models compute."""
