"""The thin library that a student reads: losses, sampling, one loop for each method, measures."""
