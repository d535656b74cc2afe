"""Jobs: trainings that one command runs through Hydra's launchers, as a sweep or a comparison."""
