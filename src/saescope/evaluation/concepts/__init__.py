"""Features against known concepts: single features, cones of them, and outside embeddings."""
