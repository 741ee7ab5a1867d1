"""Credit assignment: sampled traces, steps, schedules of rollouts, step values, pits, pairs."""
