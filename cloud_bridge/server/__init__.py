"""The server side of the cloud: sessions over an engine that computes a large model's log-probabilities."""
