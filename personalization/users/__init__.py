"""Users' data: reading, splitting, holding out."""
