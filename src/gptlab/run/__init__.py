"""The run directory, its checkpoints, and opening a model by path, run or hub name."""
