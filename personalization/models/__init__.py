"""Loads base models and encoders for training."""
