"""Writes bundles and checks them against their conformance vectors."""
