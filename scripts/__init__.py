"""The command line, the embedded server, the synthetic data and the demo: what joins the folders."""
