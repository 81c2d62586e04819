"""Writing: from ids to the ids that follow. Ids in, ids out; text is evaluation/samples.py's."""
