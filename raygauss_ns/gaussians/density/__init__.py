"""Where Gaussians are added and removed in training: the statistic, and two strategies that follow it."""
