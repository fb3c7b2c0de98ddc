"""Writes files and directories atomically: complete or not at all."""
