"""Runs many jobs on this machine or a Ray cluster, so that they can resume."""
