"""The set of Gaussians: parameters, initialization, densification, regularization, schedules and file formats."""
