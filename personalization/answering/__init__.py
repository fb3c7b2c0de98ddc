"""Answers prompts with a bundle, a torch model or an endpoint."""
