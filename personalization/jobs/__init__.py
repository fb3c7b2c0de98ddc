"""Runs many jobs, resumably, on this machine or a Ray cluster."""
