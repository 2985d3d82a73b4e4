"""Tasks, architectures, dataset adapters and the one training loop."""
