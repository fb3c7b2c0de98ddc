"""The learning part of CoGenesis: data, log-probs, combiner and evaluation."""
