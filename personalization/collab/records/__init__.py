"""Records of personal writing tasks, ours and the authors'."""
