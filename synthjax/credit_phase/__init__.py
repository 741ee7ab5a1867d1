"""Credit assignment on tabular policies, exactly: what each method learns from the same traces."""
