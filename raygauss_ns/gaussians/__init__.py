"""What is trained and when: the set of Gaussians, its start, its densification, its schedules and its files."""
