"""A smaller sibling of a model: layers pruned, then distilled."""
