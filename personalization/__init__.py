"""What learns about a user: adapters, ranking, fusion; runs where training runs, never on the device."""
