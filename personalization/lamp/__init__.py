"""LaMP: tasks, ranking, prompts, answers and scores."""
