"""Generates records with a language model."""
