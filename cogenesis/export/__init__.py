"""`cogenesis export`: models, adapters, encoders and combiners to files that a device reads."""
