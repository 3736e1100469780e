"""The dashboard: `web` has its sources, `static` what `hatch_build.py` makes of them, `pages` serves that."""
