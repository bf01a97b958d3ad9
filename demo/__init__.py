"""What `make run` needs besides the pipeline: a model small enough for two cores, and a labelled corpus."""
