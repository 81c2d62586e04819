"""Studies: one file describes many runs, what they differ in and what is compared."""
