"""One LoRA adapter a user: training, evaluation, the card."""
