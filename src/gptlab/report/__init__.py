"""What a run's files become for a reader: one HTML page, Markdown, plots."""
