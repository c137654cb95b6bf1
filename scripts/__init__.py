"""The command line, the embedded server and its drills, the synthetic data: what joins the folders."""
