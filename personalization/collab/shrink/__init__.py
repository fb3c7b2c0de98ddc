"""Makes a smaller version of a model: layers are pruned, then the rest is distilled."""
