"""Option groups that several commands share; each option is defined once."""
