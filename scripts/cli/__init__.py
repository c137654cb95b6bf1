"""The command line, one file a verb; click is imported nowhere else."""
