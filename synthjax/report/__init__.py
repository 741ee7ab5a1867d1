"""What a person looks at: the figures of a study."""
