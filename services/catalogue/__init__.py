"""What the workers can run, and the router that chooses."""
