"""A training run: checked at its start, stopped, saved whole, found again."""
