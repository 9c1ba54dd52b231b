"""Training runs: checks at the start, stopping, saving and finding checkpoints."""
