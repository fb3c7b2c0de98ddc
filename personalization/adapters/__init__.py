"""One LoRA adapter per user: training, evaluation and the training card."""
