"""Records of personal writing tasks, in our format and the authors'."""
