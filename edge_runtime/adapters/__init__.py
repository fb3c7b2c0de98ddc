"""A user's LoRA adapter on the device: its file, the store of many, and the packed form a decoder takes."""
