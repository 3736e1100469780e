"""Programs that show how Shoal is used. Each is a package that runs with `python -m examples.<name>`."""
