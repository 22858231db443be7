"""Meta-training but for its tensors: tasks, schedule, validation, state, several processes."""
