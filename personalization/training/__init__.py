"""Fine-tuning that resumes."""
