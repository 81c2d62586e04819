"""What is learned: each objective is a function from a model and a batch to sums."""
