"""The NT-Xent loss for two or more views of each sample, one backend per file, and its metrics."""
