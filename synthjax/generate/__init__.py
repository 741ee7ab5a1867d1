"""The teacher's side: problems and traces."""
