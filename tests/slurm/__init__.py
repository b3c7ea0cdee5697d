"""Real Slurm for tests: a controller and nodes as processes of this machine, with faults as methods."""
