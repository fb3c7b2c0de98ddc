"""Users' LoRA adapters on the device: the file of one, the store of many, and the packed form for a decoder."""
