"""The cloud's side: sessions over an engine that computes a large model's log-probabilities."""
