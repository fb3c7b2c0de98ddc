"""`cogenesis store`: edit and search a profile store."""
