"""Reconstruction, sparsity, and what the model loses."""
