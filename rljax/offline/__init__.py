"""Learning from experience that is already there: datasets, and where they come from."""
