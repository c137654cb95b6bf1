"""How fast a server answers: perf_analyzer runs, their table and their plot."""
