"""Engines that compute rows on the server, behind one protocol."""
