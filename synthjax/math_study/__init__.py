"""Study A's parts: a cell, its arms, their tuning, preference data, the diagnosis."""
