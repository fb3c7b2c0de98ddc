"""Fine-tunes models; an interrupted run can be resumed."""
